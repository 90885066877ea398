"""DeepSpot: a deep set over a spot and its neighbours, and an ensemble of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stcontrast._arguments import check_fields, whole
from stcontrast.methods.published._regression import RegressionMethod, RegressionOptions

if TYPE_CHECKING:
    from stcontrast.nn import SpotModule

__all__ = ["Deepspot", "DeepspotOptions"]


@dataclass(frozen=True, kw_only=True)
class DeepspotOptions(RegressionOptions):
    """Options of :class:`Deepspot`; see :class:`RegressionOptions`.

    Parameters
    ----------
    n_members
        Networks of the ensemble. Each leaves out its share of the training spots; a prediction is the median.
    """

    n_members: int = 10
    learning_rate: float = 1e-3
    max_epochs: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, n_members=whole(1))


class Deepspot(RegressionMethod):
    """Deep set regression on a spot and its neighbourhood.

    One small network on the features of the spot, another on those of its six nearest spots, of which the largest of
    every output is taken; a third network on both gives the expression. An ensemble of ten, whose median is the
    prediction.
    """

    name: ClassVar[str] = "deepspot"
    reference: ClassVar[str] = "Nonchev et al. 2025 (DeepSpot, medRxiv)"
    options_type: ClassVar[type[RegressionOptions]] = DeepspotOptions
    n_nearest: ClassVar[int] = 7
    options: DeepspotOptions

    def build(self, *, n_image: int, n_gene: int, n_targets: int) -> SpotModule:
        """The ensemble."""
        from stcontrast.nn import DeepSets

        del n_gene
        options = self.options
        return DeepSets(
            n_image=n_image, n_targets=n_targets, n_hidden=options.n_hidden, dropout=options.dropout,
            n_members=options.n_members,
        )  # fmt: skip

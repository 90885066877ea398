"""TRIPLEX: a spot, its neighbourhood and its slide, fused, and each view taught by the fusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stcontrast._arguments import SHARE, check_fields
from stcontrast.methods.published._regression import RegressionMethod, RegressionOptions
from stcontrast.methods.published._trained import Schedule

if TYPE_CHECKING:
    from stcontrast.nn import SpotModule

__all__ = ["Triplex", "TriplexOptions"]


@dataclass(frozen=True, kw_only=True)
class TriplexOptions(RegressionOptions):
    """Options of :class:`Triplex`; see :class:`RegressionOptions`.

    Parameters
    ----------
    n_layers, n_heads
        Of the attention over the neighbourhood, and of that over the slide.
    distillation
        Share of the fused prediction in what the heads of the three views learn.
    max_sequence
        Most spots of a slide that attend to one another; longer slides are cut into halves, again and again.
    """

    n_hidden: int = 128
    n_layers: int = 1
    n_heads: int = 8
    distillation: float = 0.3
    max_sequence: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, distillation=SHARE)
        if self.n_hidden % self.n_heads:
            msg = f"`n_hidden` must be a multiple of `n_heads`, found {self.n_hidden} and {self.n_heads}."
            raise ValueError(msg)


class Triplex(RegressionMethod):
    """Multi-resolution regression on a spot, its neighbourhood and its slide.

    A token of the spot; tokens of the 25 nearest spots, which attend to one another by how they lie; tokens of all spots
    of the slide, with attention and a positional convolution. The slide's token of the spot looks at the other two, and
    their sum gives the expression. Three more heads, one a view, learn the expression and the fused prediction.
    """

    name: ClassVar[str] = "triplex"
    reference: ClassVar[str] = "Chung et al. 2024 (TRIPLEX, CVPR)"
    options_type: ClassVar[type[RegressionOptions]] = TriplexOptions
    published: ClassVar[Schedule | None] = Schedule(
        data="her2st, 8 patients", n_spots=11548, n_slides=32, batch_size=128, max_epochs=None, n_steps=None,
        optimizer="AdamW, rate × 0.1 after 10 epochs without a gain on the test fold", learning_rate=1e-4,
        weight_decay=None, end="20 epochs without a gain on the test fold",
    )  # fmt: skip
    n_nearest: ClassVar[int] = 25
    options: TriplexOptions

    def build(self, *, n_image: int, n_gene: int, n_targets: int) -> SpotModule:
        """The three views and their fusion."""
        from stcontrast.nn import ThreeViews

        del n_gene
        options = self.options
        return ThreeViews(
            n_image=n_image, n_targets=n_targets, n_model=options.n_hidden, n_heads=options.n_heads,
            n_layers=options.n_layers, dropout=options.dropout, distillation=options.distillation,
            max_sequence=options.max_sequence,
        )  # fmt: skip

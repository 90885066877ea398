"""BLEEP: expression and image in one space by a linear gene head and similarity targets; prediction by retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stcontrast.methods.published._contrastive import ContrastiveMethod, ContrastiveOptions
from stcontrast.methods.published._schedule import Schedule
from stcontrast.nn import Loss  # noqa: TC001 (read at run time, to check options)

if TYPE_CHECKING:
    from stcontrast.nn import PairModule

__all__ = ["Bleep", "BleepOptions"]


@dataclass(frozen=True, kw_only=True)
class BleepOptions(ContrastiveOptions):
    """Options of :class:`Bleep`; see :class:`ContrastiveOptions`."""

    loss: Loss = "similarity_target"
    normalize: bool = False
    temperature: float = 1.0
    batch_size: int = 512
    max_epochs: int = 150


class Bleep(ContrastiveMethod):
    """Bi-modal contrastive learning for expression prediction.

    Expression enters its projection head as it is; the image's features enter theirs. The similarity-target loss on
    embeddings as they are, temperature 1. A prediction is the mean of the 50 training spots nearest by cosine.
    ``targets="input"`` takes the similarities from the inputs instead, detached: the repaired form. With
    ``loss="info_nce"`` it is plain CLIP.
    """

    name: ClassVar[str] = "bleep"
    reference: ClassVar[str] = "Xie et al. 2023 (BLEEP, arXiv 2306.01859)"
    options_type: ClassVar[type[ContrastiveOptions]] = BleepOptions
    published: ClassVar[Schedule | None] = Schedule(
        data="liver, four fifths of the spots of three sections", n_spots=5593, n_slides=3, batch_size=512, max_epochs=150,
        n_steps=1500, optimizer="AdamW", learning_rate=1e-3, weight_decay=1e-3, end="lowest loss on a fifth of the spots",
    )  # fmt: skip

    def build(self, *, n_image: int, n_gene: int, n_targets: int) -> PairModule:
        """Two projection heads."""
        from stcontrast.nn import HeadPair

        del n_targets
        options = self.options
        return HeadPair(
            self.contrast(), n_image=n_image, n_gene=n_gene, n_embedding=options.n_embedding, dropout=options.dropout
        )

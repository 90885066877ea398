"""mclSTExp: a Transformer over the spots of a slide, with learnt positions, in contrast with the image; retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from stcontrast.methods._retrieval import Weighting  # noqa: TC001 (read at run time, to check options)
from stcontrast.methods.published._contrastive import ContrastiveMethod, ContrastiveOptions
from stcontrast.methods.published._trained import Schedule

if TYPE_CHECKING:
    from stcontrast.nn import PairModule

__all__ = ["Mclstexp", "MclstexpOptions"]

FAST_WIDTH: Final = 128


@dataclass(frozen=True, kw_only=True)
class MclstexpOptions(ContrastiveOptions):
    """Options of :class:`Mclstexp`; see :class:`ContrastiveOptions`.

    Parameters
    ----------
    n_layers, n_heads, n_per_head
        Of the Transformer.
    n_model
        Width of the Transformer; by default, as published, the number of genes.
    fast
        A Transformer of width 128, unless `n_model` says otherwise.
    max_sequence
        Most spots that attend to one another, once it is trained; longer slides are cut into halves, again and again.
    """

    dropout: float = 0.0
    normalize: bool = False
    temperature: float = 1.0
    k: int = 200
    weights: Weighting = "inverse_square"
    learning_rate: float = 1e-4
    max_epochs: int = 90
    n_layers: int = 2
    n_heads: int = 8
    n_per_head: int = 64
    max_sequence: int = 4096
    n_model: int | None = None
    fast: bool = False


class Mclstexp(ContrastiveMethod):
    """Multi-modal contrastive learning with a Transformer over spots.

    Expression plus learnt positions go through a Transformer over the spots of their slide (in a step of the training,
    over a random part of them), then a projection head;
    image features through another. InfoNCE on embeddings as they are, temperature 1. A prediction is the mean of the
    200 training spots nearest by cosine, weighted by 1 / d² of the embeddings. The image side of a spot that is
    predicted sees neither genes nor other spots.
    """

    name: ClassVar[str] = "mclstexp"
    trains_tower: ClassVar[bool] = True
    reference: ClassVar[str] = "Min et al. 2024 (mclSTExp, Briefings in Bioinformatics bbae551)"
    options_type: ClassVar[type[ContrastiveOptions]] = MclstexpOptions
    published: ClassVar[Schedule | None] = Schedule(
        data="her2st, 32 sections", n_spots=11548, n_slides=32, batch_size=128, max_epochs=90, n_steps=8100,
        optimizer="Adam", learning_rate=1e-4, weight_decay=1e-3, end="the last epoch",
    )  # fmt: skip
    options: MclstexpOptions

    def __init__(self, *, seed: int = 0, **options: Any) -> None:
        super().__init__(seed=seed, **(({"n_model": FAST_WIDTH} if options.get("fast") else {}) | options))

    def build(self, *, n_image: int, n_gene: int, n_targets: int) -> PairModule:
        """The Transformer and two projection heads."""
        from stcontrast.nn import SlidePair

        del n_targets
        options = self.options
        return SlidePair(
            self.contrast(),
            n_image=n_image,
            n_gene=n_gene,
            n_embedding=options.n_embedding,
            dropout=options.dropout,
            n_layers=options.n_layers,
            n_heads=options.n_heads,
            n_per_head=options.n_per_head,
            max_sequence=options.max_sequence,
            n_model=options.n_model,
        )

"""mclSTExp: a Transformer over the spots of a slide, with learnt positions, in contrast with the image; retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stcontrast.methods._retrieval import Weighting  # noqa: TC001 (read at run time, to check options)
from stcontrast.methods.published._contrastive import ContrastiveMethod, ContrastiveOptions

if TYPE_CHECKING:
    from stcontrast.nn import PairModule

__all__ = ["Mclstexp", "MclstexpOptions"]


@dataclass(frozen=True, kw_only=True)
class MclstexpOptions(ContrastiveOptions):
    """Options of :class:`Mclstexp`; see :class:`ContrastiveOptions`.

    Parameters
    ----------
    n_layers, n_heads, n_per_head
        Of the Transformer.
    max_sequence
        Most spots that attend to one another; longer slides are cut into halves, again and again.
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


class Mclstexp(ContrastiveMethod):
    """Multi-modal contrastive learning with a Transformer over spots.

    Expression plus learnt positions go through a Transformer over the spots of their slide, then a projection head;
    image features through another. InfoNCE on embeddings as they are, temperature 1. A prediction is the mean of the
    200 training spots nearest by cosine, weighted by 1 / d² of the embeddings. The image side of a spot that is
    predicted sees neither genes nor other spots.
    """

    name: ClassVar[str] = "mclstexp"
    reference: ClassVar[str] = "Min et al. 2024 (mclSTExp, Briefings in Bioinformatics bbae551)"
    options_type: ClassVar[type[ContrastiveOptions]] = MclstexpOptions
    options: MclstexpOptions

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
        )

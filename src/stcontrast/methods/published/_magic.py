"""Magic: contrast with momentum towers that give pseudo-targets, queues, and a decoder of expression on the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from stcontrast._arguments import SHARE, check_fields, number, whole
from stcontrast.methods.published._contrastive import ContrastiveMethod, ContrastiveOptions
from stcontrast.nn import ExpressionLoss  # noqa: TC001 (read at run time, to check options)

if TYPE_CHECKING:
    from stcontrast.nn import PairModule

__all__ = ["Magic", "MagicOptions"]


@dataclass(frozen=True, kw_only=True)
class MagicOptions(ContrastiveOptions):
    """Options of :class:`Magic`; see :class:`ContrastiveOptions`.

    Parameters
    ----------
    momentum
        Share of the old weights in a step of the momentum towers.
    queue_size
        Embeddings of earlier spots that a spot is compared with too.
    distillation
        Share of the momentum towers' similarities in the targets.
    n_fields
        Fields that the image features are made of, each of equal width: tokens of the decoder.
    n_layers, n_heads
        Of the decoder.
    contrastive_weight, expression_weight
        Weights of the contrast and of the decoder's error.
    expression_loss
        Of the decoder: ``"squared"`` error, or ``"rank"``.
    """

    loss: Literal["info_nce"] = "info_nce"
    targets: Literal["embedding"] = "embedding"
    normalize: Literal[True] = True
    negatives: Literal["all"] = "all"
    temperature: float = 0.07
    learn_temperature: bool = True
    decoder: Literal["retrieval", "regression", "vae"] = "regression"
    learning_rate: float = 1e-4
    weight_decay: float = 0.02
    momentum: float = 0.995
    queue_size: int = 1024
    distillation: float = 0.4
    n_fields: int = 4
    n_layers: int = 2
    n_heads: int = 8
    contrastive_weight: float = 1.0
    expression_weight: float = 1.0
    expression_loss: ExpressionLoss = "squared"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(
            self, momentum=number(least=0, below=1), queue_size=whole(0), distillation=SHARE, n_fields=whole(1),
        )  # fmt: skip
        if self.n_embedding % self.n_heads:
            msg = f"`n_embedding` must be a multiple of `n_heads`, found {self.n_embedding} and {self.n_heads}."
            raise ValueError(msg)


class Magic(ContrastiveMethod):
    """Online self-distillation in contrastive learning, and a decoder of expression.

    A head on the image, one on the expression, and a momentum copy of each. A spot is compared with the copies'
    embeddings of its batch and of a queue of earlier spots; a share of its targets is what the copies find similar. A
    Transformer decoder predicts expression from the fields of the image; ``decoder="retrieval"`` takes the joint space.
    """

    name: ClassVar[str] = "magic"
    reference: ClassVar[str] = "Yan et al. 2025 (Magic, Briefings in Bioinformatics bbaf317); settings decided here"
    options_type: ClassVar[type[ContrastiveOptions]] = MagicOptions
    regresses: ClassVar[bool] = True
    options: MagicOptions

    def build(self, *, n_image: int, n_gene: int, n_targets: int) -> PairModule:
        """The heads, their copies and the decoder."""
        from stcontrast.nn import MomentumPair

        options = self.options
        return MomentumPair(
            self.contrast(), n_image=n_image, n_gene=n_gene, n_targets=n_targets, n_fields=options.n_fields,
            n_embedding=options.n_embedding, dropout=options.dropout, n_layers=options.n_layers,
            n_heads=options.n_heads, momentum=options.momentum, queue_size=options.queue_size,
            distillation=options.distillation,
            weights={"contrastive": options.contrastive_weight, "expression": options.expression_weight},
        )  # fmt: skip

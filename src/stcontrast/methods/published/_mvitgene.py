"""MViTGene: heads on several fields and on expression, Gaussian soft targets, a second image branch; retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, ClassVar, Literal

from stcontrast._arguments import POSITIVE, check_fields, number, whole
from stcontrast.methods.published._contrastive import ContrastiveMethod, ContrastiveOptions
from stcontrast.methods.published._trained import Schedule
from stcontrast.nn import ExpressionLoss  # noqa: TC001 (read at run time, to check options)

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from stcontrast.nn import PairModule

__all__ = ["Mvitgene", "MvitgeneOptions"]

LEAST_RATE = 1e-6


@dataclass(frozen=True, kw_only=True)
class MvitgeneOptions(ContrastiveOptions):
    """Options of :class:`Mvitgene`; see :class:`ContrastiveOptions`.

    Parameters
    ----------
    n_fields
        Fields that the image features are made of, each of equal width: every field has a head of its own.
    bandwidth
        Of the Gaussian kernels that make the soft targets.
    contrastive_weight, soft_weight, second_weight, expression_weight
        Weights of the four losses. Those published are all 0; these are ours.
    expression_loss
        Of the regression: ``"squared"`` error, or ``"rank"``.
    """

    loss: Literal["info_nce"] = "info_nce"
    targets: Literal["embedding"] = "embedding"
    normalize: Literal[True] = True
    dropout: float = 0.55
    temperature: float = 0.3
    weight_decay: float = 1e-2
    n_fields: int = 4
    bandwidth: float = 0.2
    contrastive_weight: float = 1.0
    soft_weight: float = 1.0
    second_weight: float = 0.5
    expression_weight: float = 1.0
    expression_loss: ExpressionLoss = "squared"

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative = number(least=0)
        check_fields(
            self, n_fields=whole(1), bandwidth=POSITIVE, soft_weight=not_negative, second_weight=not_negative,
            n_embedding=whole(2),
        )  # fmt: skip


class Mvitgene(ContrastiveMethod):
    """Multi-modal contrast with several views of the image.

    BLEEP's head on every field of the image, whose mean is the image embedding, and on the expression. A contrast from
    genes to image, one-to-one and with Gaussian soft targets; a second image branch with a contrast of its own; an
    expression head on the image embedding. A prediction is the mean of the 50 training spots nearest by cosine;
    ``decoder="regression"`` takes the expression head.
    """

    name: ClassVar[str] = "mvitgene"
    reference: ClassVar[str] = "MViTGene 2026 (J. Biomed. Inform. 105003); weights of the losses decided here"
    options_type: ClassVar[type[ContrastiveOptions]] = MvitgeneOptions
    published: ClassVar[Schedule | None] = Schedule(
        data="liver, four fifths of the spots of three sections", n_spots=5593, n_slides=3, batch_size=128,
        max_epochs=None, n_steps=None, optimizer="AdamW, cosine to 1e-6", learning_rate=1e-3, weight_decay=1e-2,
        end="not known",
    )  # fmt: skip
    regresses: ClassVar[bool] = True
    options: MvitgeneOptions

    def build(self, *, n_image: int, n_gene: int, n_targets: int) -> PairModule:
        """The heads, the second branch and the expression head."""
        from stcontrast.nn import FieldPair

        options = self.options
        return FieldPair(
            self.contrast(), n_image=n_image, n_gene=n_gene, n_targets=n_targets, n_fields=options.n_fields,
            n_embedding=options.n_embedding, dropout=options.dropout, bandwidth=options.bandwidth,
            weights={
                "contrastive": options.contrastive_weight, "soft": options.soft_weight,
                "second": options.second_weight, "expression": options.expression_weight,
            },
        )  # fmt: skip

    def optimizer(self, module: PairModule) -> tuple[Optimizer, LRScheduler | None]:
        """AdamW, the rate along half a cosine over `max_epochs`, to 1e-6."""
        adam, _ = super().optimizer(module)
        return adam, cosine_to(adam, LEAST_RATE, epochs=self.options.max_epochs)


def cosine_to(optimizer: Optimizer, least: float, *, epochs: int) -> LRScheduler:
    """The rate along half a cosine from its own to `least` over some epochs, and `least` after them."""
    from torch.optim.lr_scheduler import LambdaLR

    share = least / max(optimizer.defaults["lr"], least)
    return LambdaLR(optimizer, lambda epoch: share + (1 - share) * (1 + cos(pi * min(epoch / epochs, 1.0))) / 2)

"""NH²ST: a query branch and a neighbour branch, hypergraphs, cross-attention, two contrastive scales, regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from stcontrast.methods.published._contrastive import ContrastiveMethod, ContrastiveOptions
from stcontrast.methods.published._trained import Schedule
from stcontrast.nn import ExpressionLoss, Variant  # noqa: TC001 (read at run time, to check options)

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from stcontrast.nn import PairModule

__all__ = ["Nh2st", "Nh2stOptions"]

FAST_WIDTH: Final = 256


@dataclass(frozen=True, kw_only=True)
class Nh2stOptions(ContrastiveOptions):
    """Options of :class:`Nh2st`; see :class:`ContrastiveOptions`.

    Parameters
    ----------
    variant
        ``"paper"`` or ``"code"``; the latter has batches of 8 and 200 epochs by default, as published.
    n_layers, n_heads
        Of the cross-attention.
    query_weight, neighbor_weight
        Weights of the two contrasts, relative to the error of the regression.
    fast
        Tokens of 256 dimensions; in ``"code"`` also batches of 64 and 50 epochs. What is given beside it stays.
    expression_loss
        Of the regression: ``"squared"`` error, or ``"rank"``.
    """

    variant: Variant = "paper"
    n_embedding: int = 512
    dropout: float = 0.5
    temperature: float = 0.05
    decoder: Literal["retrieval", "regression", "vae"] = "regression"
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    batch_size: int = 64
    max_epochs: int = 50
    n_layers: int = 1
    n_heads: int = 8
    query_weight: float = 1.0
    neighbor_weight: float = 0.5
    fast: bool = False
    expression_loss: ExpressionLoss = "squared"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embedding % (2 * self.n_heads):
            msg = f"`n_embedding` must be a multiple of twice `n_heads`, found {self.n_embedding} and {self.n_heads}."
            raise ValueError(msg)


class Nh2st(ContrastiveMethod):
    """Neighbourhood-aware, hypergraph-based contrast with direct regression.

    A query branch (the spot) and a neighbour branch (the nine nearest spots, itself among them, joined by a
    hypergraph of image similarity), for image and genes; contrast on both scales; expression by regression from the
    image. ``variant="paper"`` does what the paper describes, ``variant="code"`` what its code does.
    """

    name: ClassVar[str] = "nh2st"
    reference: ClassVar[str] = "Qu et al. 2025 (NH²ST, arXiv 2506.23827)"
    options_type: ClassVar[type[ContrastiveOptions]] = Nh2stOptions
    published: ClassVar[Schedule] = Schedule(
        data="the README; steps for the 11 548 spots of her2st", n_spots=11548, n_slides=32, batch_size=8, max_epochs=200,
        n_steps=288600, optimizer="Adam, rate × 0.9 every 50 epochs", learning_rate=5e-4, weight_decay=0.0,
        end="20 epochs without a higher r on the test fold",
    )  # fmt: skip
    n_nearest: ClassVar[int] = 9
    regresses: ClassVar[bool] = True
    options: Nh2stOptions

    def __init__(self, *, seed: int = 0, **options: Any) -> None:
        preset: dict[str, Any] = {"n_embedding": FAST_WIDTH} if options.get("fast") else {}
        if options.get("variant") == "code" and not options.get("fast"):
            preset = {"batch_size": self.published.batch_size, "max_epochs": self.published.max_epochs}
        super().__init__(seed=seed, **(preset | options))

    def build(self, *, n_image: int, n_gene: int, n_targets: int) -> PairModule:
        """Both branches of both modalities."""
        from stcontrast.nn import DualScalePair

        options = self.options
        return DualScalePair(
            self.contrast(),
            variant=options.variant,
            n_image=n_image,
            n_gene=n_gene,
            n_targets=n_targets,
            n_embedding=options.n_embedding,
            n_layers=options.n_layers,
            n_heads=options.n_heads,
            dropout=options.dropout,
            query_weight=options.query_weight,
            neighbor_weight=options.neighbor_weight,
        )

    def optimizer(self, module: PairModule) -> tuple[Optimizer, LRScheduler | None]:
        """Adam, the learning rate times 0.9 every 50 epochs."""
        import torch

        options = self.options
        rate, decay = options.learning_rate, options.weight_decay
        # one pass over the weights: with batches of 8 the optimiser otherwise takes a third of a step
        adam = torch.optim.Adam(module.parameters(), lr=rate, weight_decay=decay, fused=True)
        return adam, torch.optim.lr_scheduler.StepLR(adam, step_size=50, gamma=0.9)

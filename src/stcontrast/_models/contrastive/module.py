"""Hyper-parameters, towers and loss of the contrastive model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from stcontrast.nn import ProjectionHead, contrastive_loss

if TYPE_CHECKING:
    from stcontrast.nn import Loss

__all__ = ["Batch", "ContrastiveConfig", "ContrastiveModule"]


@dataclass(frozen=True, slots=True)
class ContrastiveConfig:
    """Hyper-parameters of a :class:`~stcontrast.models.ContrastiveModel`, where they are described."""

    n_image: int
    n_gene: int = 0
    n_targets: int = 0
    n_classes: int = 0
    n_embedding: int = 128
    dropout: float = 0.3
    input_dropout: float = 0.1
    loss: Loss = "info_nce"
    temperature: float = 0.1
    contrastive_weight: float = 0.1
    subtype_weight: float = 1.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    max_epochs: int = 60
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in ("info_nce", "similarity_target"):
            msg = f"Unknown loss {self.loss!r}. Valid options are 'info_nce' and 'similarity_target'."
            raise ValueError(msg)
        if self.n_image < 1:
            msg = f"The model needs image features, found {self.n_image}."
            raise ValueError(msg)
        if not (self.n_targets or self.n_classes):
            msg = "Nothing to learn: neither counts nor labels."
            raise ValueError(msg)
        if self.temperature <= 0 or self.max_epochs < 1 or self.batch_size < 2:
            msg = "`temperature` must be positive, `max_epochs` at least 1 and `batch_size` at least 2."
            raise ValueError(msg)


class Batch(NamedTuple):
    """Spots of a training step.

    Attributes
    ----------
    image
        Image features (n, n_image).
    gene
        Input of the gene tower (n, n_gene); ignored where `measured` is false.
    target
        Standardised expression (n, n_targets); ignored likewise.
    measured
        Whether the spot has counts (n,).
    label
        Class of the spot (n,), -1 for none.
    """

    image: Tensor
    gene: Tensor
    target: Tensor
    measured: Tensor
    label: Tensor


class ContrastiveModule(pl.LightningModule):
    """Image tower and gene tower with a common space; decoder to expression and subtype head on the image side."""

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        self.recorded: list[tuple[int, dict[str, float]]] = []
        heads = {"dropout": config.dropout}
        self.image_tower = ProjectionHead(
            config.n_image, config.n_embedding, input_dropout=config.input_dropout, **heads
        )
        self.gene_tower = ProjectionHead(config.n_gene, config.n_embedding, **heads) if config.n_gene else None
        self.decoder = nn.Linear(config.n_embedding, config.n_targets) if config.n_targets else None
        self.subtype_head = nn.Linear(config.n_embedding, config.n_classes) if config.n_classes else None
        if self.decoder is not None:
            # an untrained model predicts the mean of every gene
            nn.init.zeros_(self.decoder.weight)
            nn.init.zeros_(self.decoder.bias)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Parts of the loss on a batch, by name, as far as the batch has the data for them."""
        image = self.image_tower(batch.image)
        parts: dict[str, Tensor] = {}
        measured = batch.measured
        if self.decoder is not None and bool(measured.any()):
            parts["expression"] = functional.mse_loss(self.decoder(image[measured]), batch.target[measured])
        # one pair has no negatives
        if self.gene_tower is not None and self.config.contrastive_weight > 0 and int(measured.sum()) > 1:
            gene = self.gene_tower(batch.gene[measured])
            parts["contrastive"] = contrastive_loss(
                gene, image[measured], loss=self.config.loss, temperature=self.config.temperature,
                targets_from=(batch.gene[measured], batch.image[measured]),
            )  # fmt: skip
        labelled = batch.label >= 0
        if self.subtype_head is not None and bool(labelled.any()):
            parts["subtype"] = functional.cross_entropy(self.subtype_head(image[labelled]), batch.label[labelled])
        return parts

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the parts."""
        weights = {"contrastive": self.config.contrastive_weight, "subtype": self.config.subtype_weight}
        zero = next(self.parameters()).sum() * 0.0
        return sum((weights.get(name, 1.0) * value for name, value in parts.items()), start=zero)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """Loss of a training batch."""
        parts = self.losses(Batch(*batch))
        total = self.total(parts)
        self.record("train", parts, total, n=len(batch[0]))
        return total

    def validation_step(self, batch: list[Tensor]) -> None:
        """Loss on held-out groups. The contrast depends on the other spots of the batch and is not part of the sum."""
        parts = self.losses(Batch(*batch))
        judged = {name: value for name, value in parts.items() if name != "contrastive"} or parts
        self.record("validation", parts, self.total(judged), n=len(batch[0]))

    def on_validation_epoch_end(self) -> None:
        """Log the loss for early stopping."""
        self.log("validation_loss", self.epoch_means()["validation_loss"])

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW with one cycle of the learning rate over the whole training."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.config.learning_rate, total_steps=steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def record(self, stage: str, parts: dict[str, Tensor], total: Tensor, *, n: int) -> None:
        """Record the losses of a batch of n spots. Logging by Lightning costs as much as a step of a small network."""
        values = {f"{stage}_{name}": float(value.detach()) for name, value in parts.items()}
        self.recorded.append((n, values | {f"{stage}_loss": float(total.detach())}))

    def epoch_means(self) -> dict[str, float]:
        """Mean of every loss over the spots since the last call of ``recorded.clear()``."""
        sums: dict[str, float] = {}
        weights: dict[str, int] = {}
        for n, values in self.recorded:
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + n * value
                weights[name] = weights.get(name, 0) + n
        return {name: sums[name] / weights[name] for name in sums}

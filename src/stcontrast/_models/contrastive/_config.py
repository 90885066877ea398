"""Hyper-parameters of the contrastive model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ContrastiveConfig"]


@dataclass(frozen=True, slots=True)
class ContrastiveConfig:
    """What a :class:`~stcontrast.models.ContrastiveModel` is built and trained with; see there."""

    n_image: int
    n_gene: int = 0
    n_targets: int = 0
    n_classes: int = 0
    n_embedding: int = 128
    dropout: float = 0.3
    input_dropout: float = 0.1
    loss: Literal["info_nce", "similarity_target"] = "info_nce"
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

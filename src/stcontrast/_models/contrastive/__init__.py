"""The trained image–gene model."""

from __future__ import annotations

from stcontrast._models.contrastive.model import ContrastiveModel
from stcontrast._models.contrastive.module import ContrastiveModule

__all__ = ["ContrastiveModel", "ContrastiveModule"]

"""Two towers and their contrast, trained on spots in memory."""

from __future__ import annotations

from stcontrast._models.contrastive.model import ContrastiveModel
from stcontrast._models.contrastive.training import embed_pairs, train_pairs

__all__ = ["ContrastiveModel", "embed_pairs", "train_pairs"]

"""Fine-tuning of an image encoder on the training spots."""

from __future__ import annotations

from stcontrast._models.image_tower.encoder import TunedEncoder
from stcontrast._models.image_tower.options import TowerOptions

__all__ = ["TowerOptions", "TunedEncoder"]

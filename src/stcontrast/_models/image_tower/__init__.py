"""Fine-tuning of an image encoder on the training spots; the training itself is in :mod:`.cross_fit`."""

from __future__ import annotations

from stcontrast._models.image_tower.crop_store import CropRows, CropStore
from stcontrast._models.image_tower.encoder import TunedEncoder
from stcontrast._models.image_tower.options import TowerOptions

__all__ = ["CropRows", "CropStore", "TowerOptions", "TunedEncoder"]

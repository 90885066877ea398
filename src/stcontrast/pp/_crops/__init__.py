"""Crops of the H&E, read from an image pyramid."""

from __future__ import annotations

from stcontrast.pp._crops.crops import crops, shrunk_image
from stcontrast.pp._crops.levels import pick_level
from stcontrast.pp._crops.reader import iter_batches, iter_crops
from stcontrast.pp._crops.tiles import Tiles, background_color

__all__ = ["Tiles", "background_color", "crops", "iter_batches", "iter_crops", "pick_level", "shrunk_image"]

"""Preprocessing: spots, crops of the H&E and their image features."""

from __future__ import annotations

from stcontrast.pp._complete import complete
from stcontrast.pp._crops import crops
from stcontrast.pp._encoders import ColorEncoder, Encoder, TextureEncoder, TimmEncoder
from stcontrast.pp._image_features import image_features
from stcontrast.pp._stain import SlideStain, StainNormalizer
from stcontrast.pp._tissue_grid import tissue_grid

__all__ = [
    "ColorEncoder",
    "Encoder",
    "SlideStain",
    "StainNormalizer",
    "TextureEncoder",
    "TimmEncoder",
    "complete",
    "crops",
    "image_features",
    "tissue_grid",
]

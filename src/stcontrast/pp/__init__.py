"""Preprocessing: spots, crops of the H&E and their image features."""

from __future__ import annotations

from stcontrast.pp._complete import complete
from stcontrast.pp._crops import crops
from stcontrast.pp._encoders import (
    ColorEncoder,
    Encoder,
    EncoderCard,
    LazySlideEncoder,
    TextureEncoder,
    TimmEncoder,
    TorchvisionEncoder,
    encoders,
)
from stcontrast.pp._features import image_features
from stcontrast.pp._stain import SlideStain, StainNormalizer
from stcontrast.pp._tissue import tissue_grid

__all__ = [
    "ColorEncoder",
    "Encoder",
    "EncoderCard",
    "LazySlideEncoder",
    "SlideStain",
    "StainNormalizer",
    "TextureEncoder",
    "TimmEncoder",
    "TorchvisionEncoder",
    "complete",
    "crops",
    "encoders",
    "image_features",
    "tissue_grid",
]

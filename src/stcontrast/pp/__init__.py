"""Preprocessing: crops of the H&E and their image features."""

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
from stcontrast.pp._image_features import image_features

__all__ = [
    "ColorEncoder",
    "Encoder",
    "EncoderCard",
    "LazySlideEncoder",
    "TextureEncoder",
    "TimmEncoder",
    "TorchvisionEncoder",
    "complete",
    "crops",
    "encoders",
    "image_features",
]

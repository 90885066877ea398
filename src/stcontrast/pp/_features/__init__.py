"""Image features: crops of the H&E through a frozen encoder."""

from __future__ import annotations

from stcontrast.pp._features.encoding import FeatureRecipe, encode_centers, prefetched, recipe_of, slide_fingerprint
from stcontrast.pp._features.slides import (
    DEFAULT_FIELDS_UM,
    encode_slides,
    encode_spots,
    image_features,
    parse_fields,
)

__all__ = [
    "DEFAULT_FIELDS_UM",
    "FeatureRecipe",
    "encode_centers",
    "encode_slides",
    "encode_spots",
    "image_features",
    "parse_fields",
    "prefetched",
    "recipe_of",
    "slide_fingerprint",
]

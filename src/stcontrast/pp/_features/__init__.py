"""Image features: crops of the H&E through a frozen encoder."""

from __future__ import annotations

from stcontrast.pp._features.encoding import (
    FeatureSpec,
    encode_centers,
    feature_spec,
    pair_encoders,
    prefetched,
    slide_fingerprint,
)
from stcontrast.pp._features.slides import (
    DEFAULT_FIELDS_UM,
    encode_slides,
    encode_spots,
    image_features,
    join_records,
    parse_fields,
    split_blocks,
)

__all__ = [
    "DEFAULT_FIELDS_UM",
    "FeatureSpec",
    "encode_centers",
    "encode_slides",
    "encode_spots",
    "feature_spec",
    "image_features",
    "join_records",
    "pair_encoders",
    "parse_fields",
    "prefetched",
    "slide_fingerprint",
    "split_blocks",
]

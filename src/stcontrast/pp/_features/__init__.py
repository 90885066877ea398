"""Image features: crops of the H&E through a frozen encoder."""

from __future__ import annotations

from stcontrast.pp._features.encoding import (
    FeatureSpec,
    encode_centers,
    feature_spec,
    pair_encoders,
    prefetched,
)
from stcontrast.pp._features.evidence import (
    at_recorded_scale,
    changed_since,
    print_of_image,
    print_of_slide,
    same_scale,
    warn_of_looks,
    window_places,
)
from stcontrast.pp._features.on_disk import encode_on_disk
from stcontrast.pp._features.slides import (
    DEFAULT_FIELDS_UM,
    encode_slides,
    encode_spots,
    image_features,
    is_ours,
    join_records,
    parse_fields,
    record_of,
    split_blocks,
)

__all__ = [
    "DEFAULT_FIELDS_UM",
    "FeatureSpec",
    "at_recorded_scale",
    "changed_since",
    "encode_centers",
    "encode_on_disk",
    "encode_slides",
    "encode_spots",
    "feature_spec",
    "image_features",
    "is_ours",
    "join_records",
    "pair_encoders",
    "parse_fields",
    "prefetched",
    "print_of_image",
    "print_of_slide",
    "record_of",
    "same_scale",
    "split_blocks",
    "warn_of_looks",
    "window_places",
]

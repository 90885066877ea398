"""Image features of the user's objects: those that are there, or made and kept."""

from __future__ import annotations

from stcontrast.tl._features.records import block_widths, describe, keep_features, with_recorded_scale
from stcontrast.tl._features.to_fit import (
    check_slots,
    color_features,
    features_to_fit,
    parse_slots,
    warn_of_mixed_spots,
)
from stcontrast.tl._features.to_predict import chosen_encoders, features_for, plan_features, seen_by, spot_distance_um

__all__ = [
    "block_widths",
    "check_slots",
    "chosen_encoders",
    "color_features",
    "describe",
    "features_for",
    "features_to_fit",
    "keep_features",
    "parse_slots",
    "plan_features",
    "seen_by",
    "spot_distance_um",
    "warn_of_mixed_spots",
    "with_recorded_scale",
]

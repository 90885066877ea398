"""Every slot name that stcontrast writes, once."""

from __future__ import annotations

from typing import Final

__all__ = [
    "CLASS",
    "COMPLETED",
    "EMBEDDING",
    "GENE_EMBEDDING",
    "HELD_OUT_R",
    "IMAGE_EMBEDDING",
    "IMAGE_FEATURES",
    "IN_DISTRIBUTION",
    "LOWER",
    "PREDICTION_TABLE",
    "SLIDE_ERRORS",
    "SPOT_ERRORS",
    "TUNED_FEATURES",
    "UNS",
    "UPPER",
    "VAE_LATENT",
]

UNS: Final = "stcontrast"

# obsm of the measured table
IMAGE_FEATURES: Final = "X_image"
TUNED_FEATURES: Final = "X_image_tuned"
VAE_LATENT: Final = "X_stc_vae"
EMBEDDING: Final = "X_stc"
GENE_EMBEDDING: Final = f"{EMBEDDING}_gene"
IMAGE_EMBEDDING: Final = f"{EMBEDDING}_image"

# layer of the measured table
COMPLETED: Final = "stc_completed"

# the prediction: a table of its own
PREDICTION_TABLE: Final = "stc_pred"
LOWER: Final = "lower"
UPPER: Final = "upper"
IN_DISTRIBUTION: Final = "stc_in_distribution"
HELD_OUT_R: Final = "stc_held_out_r"
SPOT_ERRORS: Final = "stc_spot_errors"
SLIDE_ERRORS: Final = "stc_slide_errors"

# subtypes
CLASS: Final = "stc_class"

"""Scores of predictions and embeddings, within slides: differences between slides do not count as a prediction."""

from __future__ import annotations

from stcontrast.metrics._classes import calibration_error
from stcontrast.metrics._embeddings import batch_mixing, lisi, retrieval_recall
from stcontrast.metrics._genes import (
    correlation_ceiling,
    gene_correlation,
    gene_rank_correlation,
    mean_slide_correlation,
    moran_difference,
    rmse,
    variance_ratio,
)

__all__ = [
    "batch_mixing",
    "calibration_error",
    "correlation_ceiling",
    "gene_correlation",
    "gene_rank_correlation",
    "lisi",
    "mean_slide_correlation",
    "moran_difference",
    "retrieval_recall",
    "rmse",
    "variance_ratio",
]

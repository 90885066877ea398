"""Scores of predictions and embeddings; within slides, for what differs between slides is no merit of a prediction."""

from __future__ import annotations

from stcontrast.metrics._ceiling import correlation_ceiling
from stcontrast.metrics._classes import calibration_error
from stcontrast.metrics._correlation import gene_correlation, mean_slide_correlation, rmse
from stcontrast.metrics._mixing import batch_mixing, lisi
from stcontrast.metrics._retrieval import retrieval_recall
from stcontrast.metrics._structure import gene_rank_correlation, moran_difference, variance_ratio

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

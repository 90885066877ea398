"""Scores of predictions, within slides: what differs between slides is no merit of a prediction."""

from __future__ import annotations

from stcontrast.metrics._ceiling import correlation_ceiling
from stcontrast.metrics._classes import calibration_error
from stcontrast.metrics._correlation import gene_correlation, mean_slide_correlation, rmse
from stcontrast.metrics._structure import gene_rank_correlation, moran_difference, variance_ratio

__all__ = [
    "calibration_error",
    "correlation_ceiling",
    "gene_correlation",
    "gene_rank_correlation",
    "mean_slide_correlation",
    "moran_difference",
    "rmse",
    "variance_ratio",
]

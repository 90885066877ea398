"""Scores of predictions, within slides: what differs between slides is no merit of a prediction."""

from __future__ import annotations

from stcontrast.metrics._correlation import gene_correlation, mean_slide_correlation, rmse

__all__ = ["gene_correlation", "mean_slide_correlation", "rmse"]

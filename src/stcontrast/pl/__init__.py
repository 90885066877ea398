"""Figures: predictions on the H&E, the joint embedding and its search, and the scores of a cross-validation."""

from __future__ import annotations

from stcontrast.pl._cv_classes import calibration, confusion
from stcontrast.pl._cv_scores import cv_summary, gene_scores
from stcontrast.pl._embedding import embedding
from stcontrast.pl._similar import similar
from stcontrast.pl._spatial_class import spatial_class
from stcontrast.pl._spatial_pred import spatial_pred

__all__ = [
    "calibration",
    "confusion",
    "cv_summary",
    "embedding",
    "gene_scores",
    "similar",
    "spatial_class",
    "spatial_pred",
]

"""Figures: predictions on the H&E, crops, the joint embedding and its search, trainings, and the scores of a cross-validation."""

from __future__ import annotations

from stcontrast.pl._batch_mixing import batch_mixing
from stcontrast.pl._crops import crops
from stcontrast.pl._cv_classes import calibration, confusion
from stcontrast.pl._cv_scores import cv_summary, gene_scores
from stcontrast.pl._embedding import embedding
from stcontrast.pl._history import history
from stcontrast.pl._similar import similar
from stcontrast.pl._spatial_class import spatial_class
from stcontrast.pl._spatial_pred import spatial_pred

__all__ = [
    "batch_mixing",
    "calibration",
    "confusion",
    "crops",
    "cv_summary",
    "embedding",
    "gene_scores",
    "history",
    "similar",
    "spatial_class",
    "spatial_pred",
]

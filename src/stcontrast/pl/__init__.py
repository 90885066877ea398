"""Pictures: predictions on the H&E, and the scores of a cross-validation."""

from __future__ import annotations

from stcontrast.pl._calibration import calibration
from stcontrast.pl._confusion import confusion
from stcontrast.pl._cv_summary import cv_summary
from stcontrast.pl._gene_scores import gene_scores
from stcontrast.pl._spatial_class import spatial_class
from stcontrast.pl._spatial_pred import spatial_pred

__all__ = ["calibration", "confusion", "cv_summary", "gene_scores", "spatial_class", "spatial_pred"]

"""A report: one HTML page with everything in it, for a browser without a network."""

from __future__ import annotations

from stcontrast._report.maps import CLASS_COLORS, MAX_CLASSES, SlideNumbers, slide_maps
from stcontrast._report.page import RULE, RULE_WITHOUT_FOLDS, judged, write_page

__all__ = [
    "CLASS_COLORS",
    "MAX_CLASSES",
    "RULE",
    "RULE_WITHOUT_FOLDS",
    "SlideNumbers",
    "judged",
    "slide_maps",
    "write_page",
]

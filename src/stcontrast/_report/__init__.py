"""A report: one HTML page with everything in it, for a browser without a network."""

from __future__ import annotations

from stcontrast._report.colors import CLASS_COLORS
from stcontrast._report.maps import MAX_CLASSES, SlideNumbers, slide_maps
from stcontrast._report.page import write_page
from stcontrast._report.trust import RULE, RULE_WITHOUT_FOLDS, judged

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

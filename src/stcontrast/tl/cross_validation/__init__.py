"""Cross-validation over donors."""

from __future__ import annotations

from stcontrast.tl.cross_validation._cross_validate import cross_validate
from stcontrast.tl.cross_validation._result import CrossValidation

__all__ = ["CrossValidation", "cross_validate"]

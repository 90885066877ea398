"""Pictures: predictions on the H&E."""

from __future__ import annotations

from stcontrast.pl._spatial_class import spatial_class
from stcontrast.pl._spatial_pred import spatial_pred

__all__ = ["spatial_class", "spatial_pred"]

"""The default method."""

from __future__ import annotations

from stcontrast.methods.stcontrast._method import Stcontrast

__all__ = ["Stcontrast"]

"""Data sets: a synthetic one with a known truth, and public ones."""

from __future__ import annotations

from stcontrast.datasets._her2st import her2st
from stcontrast.datasets._toy import toy

__all__ = ["her2st", "toy"]

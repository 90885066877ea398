"""Spots for slides that have H&E only: where the tissue lies, and a lattice over it."""

from __future__ import annotations

from stcontrast.pp._tissue.detect import is_black, overview
from stcontrast.pp._tissue.grid import tissue_grid
from stcontrast.pp._tissue.lattice import Geometry, lattice_points, tissue_fraction

__all__ = ["Geometry", "is_black", "lattice_points", "overview", "tissue_fraction", "tissue_grid"]

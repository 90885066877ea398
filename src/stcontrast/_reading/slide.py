"""One section, and a table of them, as plain arrays.

Pixels follow SpatialData: x to the right, y down, pixel (0, 0) covers the square [0, 1) × [0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stcontrast._reading.elements import SlideImage

__all__ = ["Slide", "Spots", "check_finite"]


@dataclass(frozen=True, slots=True)
class Slide:
    """One section as plain arrays.

    Attributes
    ----------
    name
        Name of the shapes element (SpatialData) or of the library (AnnData).
    rows
        Its rows in the table, shape (n_spots,).
    centers
        Centres of the spots, shape (n_spots, 2): x, y in pixels of the image's finest level, or in the units
        of the shapes where the slide has no image.
    diameter
        Median diameter (or side) of the spots, in the units of `centers`; NaN if unknown.
    image
        The H&E, lazily; `None` if the slide has none.
    um_per_px
        µm per unit of `centers`; `None` if unknown.
    coordinate_system
        Coordinate system that spots and image share.
    """

    name: str
    rows: NDArray[np.intp]
    centers: NDArray[np.float64]
    diameter: float
    image: SlideImage | None
    um_per_px: float | None
    coordinate_system: str | None = None


@dataclass(frozen=True, slots=True)
class Spots:
    """A table and the slides that it annotates. `table` is the user's own object, not a copy."""

    table: AnnData
    slides: list[Slide]
    region_key: str | None = None
    instance_key: str | None = None


def check_finite(centers: NDArray[np.float64], name: str) -> None:
    """Raise where a spot has no position."""
    lost = int((~np.isfinite(centers)).any(axis=1).sum())
    if lost:
        msg = f"{lost} spots of {name!r} have no finite position (an empty geometry, or NaN)."
        raise ValueError(msg)

"""Where spots lie on their slide, in units of its own pitch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from stcontrast._data.design import TIES
from stcontrast._reading import spot_distance
from stcontrast._slides import rows_by_slide

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["lattice_coordinates", "nearest_spots", "sequences"]


def lattice_coordinates(xy: NDArray[np.float64], slide: NDArray[np.int64]) -> NDArray[np.float32]:
    """Positions from the corner of each slide, in pitches: the unit in which slides of any scale are alike.

    Parameters
    ----------
    xy
        Centres of the spots (n_spots, 2), comparable within a slide.
    slide
        Slide of each spot (n_spots,).

    Returns
    -------
    Coordinates (n_spots, 2), at least 0. The pitch is the median distance to the nearest other spot.
    """
    lattice = np.zeros(xy.shape, dtype=np.float32)
    for rows in rows_by_slide(slide):
        here = xy[rows]
        pitch = spot_distance(here)
        lattice[rows] = (here - here.min(axis=0)) / (pitch if np.isfinite(pitch) else 1.0)
    return lattice


def nearest_spots(lattice: NDArray[np.float32], slide: NDArray[np.int64], *, n_nearest: int) -> NDArray[np.int64]:
    """The spot itself and the nearest others of its slide.

    Parameters
    ----------
    lattice
        Coordinates (n_spots, 2), in pitches.
    slide
        Slide of each spot (n_spots,).
    n_nearest
        How many, the spot included.

    Returns
    -------
    Rows (n_spots, n_nearest), the spot first, then by distance; of those equally far, the one more to the top, then
    to the left, so that the order of the spots does not matter. Where a slide has fewer, the spot itself fills the rest.
    """
    nearest = np.repeat(np.arange(len(slide))[:, None], n_nearest, axis=1)
    for rows in rows_by_slide(slide):
        k = min(n_nearest, len(rows))
        if k < 2:
            continue
        here = lattice[rows].astype(np.float64)
        distance, found = cKDTree(here).query(here, k=min(len(rows), k + TIES))
        # so many at one place that the spot itself is not among those found
        lost = ~(found == np.arange(len(rows))[:, None]).any(axis=1)
        found[lost, -1], distance[lost, -1] = np.flatnonzero(lost), 0.0
        offset = here[found] - here[:, None]
        # rounding tells apart what is equally far on a lattice
        order = np.lexsort((offset[..., 0].round(3), offset[..., 1].round(3), distance.round(3)))
        # the spot itself is at distance 0, but may share its place with another
        itself = np.take_along_axis(found, order, axis=1) == np.arange(len(rows))[:, None]
        order = np.take_along_axis(order, np.argsort(~itself, axis=1, kind="stable"), axis=1)[:, :k]
        nearest[rows, :k] = rows[np.take_along_axis(found, order, axis=1)]
    return nearest


def sequences(lattice: NDArray[np.float32], slide: NDArray[np.int64], *, max_length: int) -> list[NDArray[np.int64]]:
    """Rows of every slide, as one sequence; a slide that is too long is halved across its longer side.

    Parameters
    ----------
    lattice
        Coordinates (n_spots, 2).
    slide
        Slide of each spot (n_spots,).
    max_length
        Most spots in a sequence.

    Returns
    -------
    Disjoint rows, together all. How a slide is cut depends on that slide alone.
    """
    waiting = rows_by_slide(slide)
    done = []
    while waiting:
        rows = waiting.pop(0)
        if len(rows) <= max_length:
            done.append(rows)
            continue
        here = lattice[rows]
        axis = int(np.argmax(np.ptp(here, axis=0)))
        order = rows[np.lexsort((here[:, 1 - axis], here[:, axis]))]
        waiting[:0] = [order[: len(order) // 2], order[len(order) // 2 :]]
    return done

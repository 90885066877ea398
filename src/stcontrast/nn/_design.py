"""From image features to what a method sees: the spot's own, its neighbours', standardised within the slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Standardize", "build_design", "neighbor_means", "neighbor_ranges"]

type Standardize = Literal["slide", "none"]

# the fullest ring of a lattice: so many more spots may be as near as the last neighbour
TIES: Final = 12
# the first ring of a hexagonal lattice; of a square one it is eight
RING: Final = 6
# two blocks of the neighbours' extremes double the table: only for features that are few
MAX_RANGED: Final = 1024


def neighbor_means(features: NDArray[np.float32], xy: NDArray[np.float64], *, n_neighbors: int) -> NDArray[np.float32]:
    """Mean features of the nearest spots of the same slide, the spot itself left out.

    Parameters
    ----------
    features
        Image features of one slide (n_spots, n_features).
    xy
        Centres of its spots (n_spots, 2), in any unit.
    n_neighbors
        How many neighbours; 18 are two rings of a hexagonal lattice. Fewer where the slide has fewer spots; more
        where others are just as near as the last of them, so that the order of the spots does not matter.

    Returns
    -------
    Means (n_spots, n_features); a spot alone on its slide has itself.
    """
    found = _neighbors(xy, n_neighbors)
    if found is None:
        return features.copy()
    means = np.zeros_like(features)
    for column, chosen in zip(*found, strict=True):
        # one neighbour at a time: (n, k, features) would be 18 times the table
        means[chosen] += features[column[chosen]]
    return means / found[1].sum(axis=0, dtype=np.float32)[:, None]


def neighbor_ranges(features: NDArray[np.float32], xy: NDArray[np.float64], *, n_neighbors: int) -> NDArray[np.float32]:
    """How far the nearest spots of the same slide rise above a spot's features, and fall below: what a border shows.

    Parameters
    ----------
    features, xy, n_neighbors
        As in :func:`neighbor_means`.

    Returns
    -------
    Largest less own, and own less smallest (n_spots, 2 × n_features); zero for a spot alone on its slide.
    """
    highest, lowest = features.copy(), features.copy()
    found = _neighbors(xy, n_neighbors)
    if found is not None:
        highest[:], lowest[:] = -np.inf, np.inf
        for column, chosen in zip(*found, strict=True):
            highest[chosen] = np.maximum(highest[chosen], features[column[chosen]])
            lowest[chosen] = np.minimum(lowest[chosen], features[column[chosen]])
    return np.concatenate([highest - features, features - lowest], axis=1)


def _neighbors(xy: NDArray[np.float64], n_neighbors: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]] | None:
    """Candidates, nearest first (k, n_spots), and which of them are neighbours; `None` for a spot alone."""
    k = min(n_neighbors, len(xy) - 1)
    if k < 1:
        return None
    distance, nearest = cKDTree(xy).query(xy, k=min(len(xy), k + 1 + TIES))
    # two spots at one place may come back in either order: leave out the spot, not the first column
    distance[nearest == np.arange(len(xy))[:, None]] = np.inf
    last = np.partition(distance, k - 1, axis=1)[:, k - 1]
    # rounding tells apart what is equally far on a lattice
    return nearest.T, (distance <= last[:, None] * (1 + 1e-6)).T


def build_design(
    features: NDArray[np.float32],
    slide: NDArray[np.int64],
    xy: NDArray[np.float64],
    *,
    n_neighbors: int = 18,
    standardize: Standardize = "slide",
) -> NDArray[np.float32]:
    """Set a spot's features beside its neighbours' mean and extremes, and standardise within each slide.

    Neither step fits anything across slides: a slide's design depends on its own image alone, so it may be
    computed for a test slide.

    Parameters
    ----------
    features
        Image features (n_spots, n_features).
    slide
        Slide of each spot (n_spots,).
    xy
        Centres of the spots (n_spots, 2), comparable within a slide.
    n_neighbors
        Neighbours to average over; 0 leaves them out. With them come the extremes of the nearest six (of as many of
        them, if fewer), unless a spot has more than 1024 features.
    standardize
        ``"slide"``: zero mean and unit deviation within every slide, which takes out stain and scanner, and true
        differences in composition too. ``"none"``: as they are.

    Returns
    -------
    Design (n_spots, n_features or two or four times as many), float32.
    """
    width = features.shape[1]
    ranged = bool(n_neighbors) and width <= MAX_RANGED
    design = np.empty((len(features), width * (1 + bool(n_neighbors) + 2 * ranged)), dtype=np.float32)
    design[:, :width] = features
    for code in np.unique(slide):
        rows = np.flatnonzero(slide == code)
        if n_neighbors:
            here, at = features[rows], xy[rows]
            design[rows, width : 2 * width] = neighbor_means(here, at, n_neighbors=n_neighbors)
            if ranged:
                design[rows, 2 * width :] = neighbor_ranges(here, at, n_neighbors=min(n_neighbors, RING))
        if standardize == "slide":
            block = design[rows].astype(np.float64)
            deviation = block.std(axis=0)
            # a constant feature says nothing: it becomes zero, not noise
            flat = deviation <= 1e-6 * np.maximum(np.abs(block).max(axis=0), 1e-12)
            block = (block - block.mean(axis=0)) / np.where(flat, 1.0, deviation)
            block[:, flat] = 0.0
            design[rows] = block
    return design

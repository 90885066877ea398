"""From image features to what a method sees: the spot's own, its neighbours', standardised within the slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Standardize", "build_design", "neighbor_means"]

type Standardize = Literal["slide", "none"]

# the fullest ring of a lattice: so many more spots may be as near as the last neighbour
TIES: Final = 12


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
    k = min(n_neighbors, len(xy) - 1)
    if k < 1:
        return features.copy()
    distance, nearest = cKDTree(xy).query(xy, k=min(len(xy), k + 1 + TIES))
    # two spots at one place may come back in either order: leave out the spot, not the first column
    distance[nearest == np.arange(len(xy))[:, None]] = np.inf
    last = np.partition(distance, k - 1, axis=1)[:, k - 1]
    # rounding tells apart what is equally far on a lattice
    is_neighbor = distance <= last[:, None] * (1 + 1e-6)
    means = np.zeros_like(features)
    for column, chosen in zip(nearest.T, is_neighbor.T, strict=True):
        # one neighbour at a time: (n, k, features) would be 18 times the table
        means[chosen] += features[column[chosen]]
    return means / is_neighbor.sum(axis=1, dtype=np.float32)[:, None]


def build_design(
    features: NDArray[np.float32],
    slide: NDArray[np.int64],
    xy: NDArray[np.float64],
    *,
    n_neighbors: int = 18,
    standardize: Standardize = "slide",
) -> NDArray[np.float32]:
    """Set a spot's features beside the mean of its neighbours' and standardise within each slide.

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
        Neighbours to average over; 0 leaves them out.
    standardize
        ``"slide"``: zero mean and unit deviation within every slide, which takes out stain and scanner, and true
        differences in composition too. ``"none"``: as they are.

    Returns
    -------
    Design (n_spots, n_features or twice as many), float32.
    """
    parts = [features, np.empty_like(features)] if n_neighbors else [features]
    design = np.concatenate(parts, axis=1)
    for code in np.unique(slide):
        rows = np.flatnonzero(slide == code)
        if n_neighbors:
            design[rows, features.shape[1] :] = neighbor_means(features[rows], xy[rows], n_neighbors=n_neighbors)
        if standardize == "slide":
            block = design[rows].astype(np.float64)
            deviation = block.std(axis=0)
            # a constant feature says nothing: it becomes zero, not noise
            flat = deviation <= 1e-6 * np.maximum(np.abs(block).max(axis=0), 1e-12)
            block = (block - block.mean(axis=0)) / np.where(flat, 1.0, deviation)
            block[:, flat] = 0.0
            design[rows] = block
    return design

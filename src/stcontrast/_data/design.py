"""From image features to what a method sees: the spot's own, its neighbours', standardised within the slide."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from scipy.spatial import cKDTree

from stcontrast._slides import rows_by_slide

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from numpy.typing import NDArray

__all__ = [
    "SlideMoments",
    "Standardize",
    "block_of_column",
    "build_design",
    "column_parts",
    "design_of_some",
    "neighbor_means",
    "neighbor_ranges",
    "parts_of_slide",
    "set_out",
    "standardize_slides",
    "surroundings",
]

type Standardize = Literal["slide", "none"]

# the fullest ring of a lattice: so many more spots may be as near as the last neighbour
TIES: Final = 12
# the first ring of a hexagonal lattice; of a square one it is eight
RING: Final = 6
# the neighbours' extremes double the table: only for blocks of few features
MAX_RANGED: Final = 1024
# numbers that are copied at once in double precision
MOST_AT_ONCE: Final = 2**22
# spots whose design is made at once
SPOTS_AT_ONCE: Final = 16_384


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
    blocks: Sequence[int] = (),
    n_neighbors: int = 18,
    standardize: Standardize = "slide",
) -> NDArray[np.float32]:
    """A spot's features with its neighbours' mean and extremes, standardised within each slide.

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
    blocks
        Widths of the blocks of features, such as those of several encoders; one block by default.
    n_neighbors
        Neighbours to average over; 0 leaves them out. With them come the extremes of the nearest six (of as many of
        them, if fewer), for every block of at most 1024 features.
    standardize
        ``"slide"``: zero mean and unit deviation within every slide, which takes out stain and scanner, and true
        differences in composition too. ``"none"``: as they are.

    Returns
    -------
    Design (n_spots, n_design), float32: every block of the features once, twice or four times, see
    :func:`block_of_column`.
    """
    design, moments = design_of_some(
        features, xy, rows_by_slide(slide), np.arange(len(features)), blocks=blocks, n_neighbors=n_neighbors
    )
    return standardize_slides(design, slide, moments) if standardize == "slide" else design


def design_of_some(
    features: NDArray[np.float32],
    xy: NDArray[np.float64],
    of_slides: Sequence[NDArray[np.intp]],
    some: NDArray[np.intp],
    *,
    blocks: Sequence[int] = (),
    n_neighbors: int,
) -> tuple[NDArray[np.float32], list[SlideMoments]]:
    """The design of some spots, not standardised: their neighbours may be any spots of their slide.

    A slide is walked through in parts, so that the design of all its spots is never in memory.

    Parameters
    ----------
    features, xy, blocks, n_neighbors
        As in :func:`build_design`; the features may lie on disk.
    of_slides
        Rows of all spots of each slide.
    some
        Rows of the spots whose design is wanted, all of these slides.

    Returns
    -------
    Design (n_some, n_design), and the moments of the design of all spots of each slide.
    """
    blocks = blocks or (features.shape[1],)
    design = np.empty((len(some), len(block_of_column(blocks, n_neighbors))), dtype=np.float32)
    place = np.full(len(features), -1)
    place[some] = np.arange(len(some))
    moments = []
    for rows in of_slides:
        parts = []
        tree = cKDTree(xy[rows])
        for part in parts_of_slide(xy[rows], SPOTS_AT_ONCE):
            # a small slide is one part
            area = part if len(part) == len(rows) else surroundings(tree, part, n_neighbors=n_neighbors)
            seen = rows[area]
            block = set_out(
                np.asarray(features[seen], dtype=np.float32), xy[seen], blocks=blocks, n_neighbors=n_neighbors
            )
            if len(part) < len(area):
                block = block[np.searchsorted(area, part)]
            parts.append(SlideMoments.of(block))
            wanted = place[rows[part]]
            design[wanted[wanted >= 0]] = block[wanted >= 0]
        moments.append(reduce(SlideMoments.merged, parts))
    return design, moments


def parts_of_slide(xy: NDArray[np.float64], n: int) -> list[NDArray[np.intp]]:
    """All spots of a slide in parts of at most `n`, each in ascending order.

    Neighbours lie together: what the design of a part needs beyond its own spots is little.
    """
    order = np.lexsort((xy[:, 0], xy[:, 1]))
    return [np.sort(order[start : start + n]) for start in range(0, len(order), n)]


def standardize_slides(
    design: NDArray[np.float32], slide: NDArray[np.int64], moments: Sequence[SlideMoments]
) -> NDArray[np.float32]:
    """A design (n_spots, n_design) with zero mean and unit deviation within every slide, changed in place.

    Parameters
    ----------
    design, slide
        Design (n_spots, n_design) and slide (n_spots,) of spots.
    moments
        Of all spots of each of their slides, in ascending order of `slide`.
    """
    n_at_once = max(MOST_AT_ONCE // max(design.shape[1], 1), 1)
    for rows, of_slide in zip(rows_by_slide(slide), moments, strict=True):
        for start in range(0, len(rows), n_at_once):
            part = rows[start : start + n_at_once]
            design[part] = of_slide.standardized(design[part])
    return design


def column_parts(n_rows: int, n_columns: int) -> list[slice]:
    """Columns to compute with at once, so that a copy of a table (n_rows, n_columns) in double precision stays small."""
    width = max(MOST_AT_ONCE // max(n_rows, 1), 16)
    return [slice(start, start + width) for start in range(0, n_columns, width)]


def block_of_column(blocks: Sequence[int], n_neighbors: int) -> NDArray[np.intp]:
    """Block of every column of a design (n_design,).

    The order of the columns: features of all blocks, means of all blocks, and twice the blocks that have extremes.
    """
    own = np.repeat(np.arange(len(blocks)), blocks)
    if not n_neighbors:
        return own
    ranged = own[_ranged(blocks)]
    return np.concatenate([own, own, ranged, ranged])


def _ranged(blocks: Sequence[int]) -> NDArray[np.bool_]:
    """Whether a feature is of a block with extremes (n_features,)."""
    return np.repeat(np.asarray(blocks) <= MAX_RANGED, blocks)


def set_out(
    features: NDArray[np.float32], xy: NDArray[np.float64], *, blocks: Sequence[int], n_neighbors: int
) -> NDArray[np.float32]:
    """A spot's features with its neighbours' mean and extremes, for spots of one slide; not standardised.

    Parameters
    ----------
    features
        Image features (n_spots, n_features).
    xy
        Centres of the spots (n_spots, 2).
    blocks
        Widths of the blocks of features.
    n_neighbors
        As in :func:`build_design`.

    Returns
    -------
    Design (n_spots, n_design), its columns as in :func:`block_of_column`.
    """
    parts = [features]
    if n_neighbors:
        parts.append(neighbor_means(features, xy, n_neighbors=n_neighbors))
        ranged = _ranged(blocks)
        if ranged.any():
            parts.append(neighbor_ranges(features[:, ranged], xy, n_neighbors=min(n_neighbors, RING)))
    return np.concatenate(parts, axis=1)


def surroundings(tree: cKDTree, rows: NDArray[np.intp], *, n_neighbors: int) -> NDArray[np.intp]:
    """Spots of a slide that the design of some of them rests on, themselves included, in ascending order.

    Parameters
    ----------
    tree
        Centres of the slide's spots.
    rows
        Those whose design is wanted.
    n_neighbors
        As in :func:`build_design`.
    """
    if not n_neighbors:
        return np.unique(rows)
    _, nearest = tree.query(tree.data[rows], k=min(tree.n, n_neighbors + 1 + TIES))
    return np.union1d(rows, nearest)


@dataclass(frozen=True, slots=True)
class SlideMoments:
    """Mean, squared deviations and largest value of every column, of some spots of a slide.

    Attributes
    ----------
    n
        Number of spots.
    mean, squares, largest
        Mean, sum of squared deviations from it, and largest absolute value (n_columns,).
    """

    n: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    largest: NDArray[np.float64]

    @classmethod
    def of(cls, block: NDArray[np.floating]) -> Self:
        """Those of spots (n, n_columns)."""
        found = cls(len(block), *np.zeros((3, block.shape[1])))
        for part in column_parts(*block.shape):
            exact = block[:, part].astype(np.float64)
            found.mean[part], found.squares[part] = exact.mean(axis=0), exact.var(axis=0) * len(exact)
            found.largest[part] = np.maximum(exact.max(axis=0), -exact.min(axis=0))
        return found

    def merged(self, other: Self) -> Self:
        """Those of both (Chan et al. 1979)."""
        n = self.n + other.n
        apart = other.mean - self.mean
        return type(self)(
            n,
            self.mean + apart * (other.n / n),
            self.squares + other.squares + apart**2 * (self.n * other.n / n),
            np.maximum(self.largest, other.largest),
        )

    def standardized(self, block: NDArray[np.floating]) -> NDArray[np.float32]:
        """Spots (n, n_columns) of the slide with zero mean and unit deviation; a constant column says nothing: zero."""
        deviation = np.sqrt(self.squares / self.n)
        flat = deviation <= 1e-6 * np.maximum(self.largest, 1e-12)
        scaled = (block.astype(np.float64) - self.mean) / np.where(flat, 1.0, deviation)
        scaled[:, flat] = 0.0
        return scaled.astype(np.float32)

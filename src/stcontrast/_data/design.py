"""From image features to what a method sees: the spot's own, its neighbours', standardised within the slide."""

from __future__ import annotations

from dataclasses import dataclass
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
    "neighbor_means",
    "neighbor_ranges",
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
    blocks = blocks or (features.shape[1],)
    design = np.empty((len(features), len(block_of_column(blocks, n_neighbors))), dtype=np.float32)
    for rows in rows_by_slide(slide):
        design[rows] = set_out(features[rows], xy[rows], blocks=blocks, n_neighbors=n_neighbors)
    return standardize_slides(design, slide) if standardize == "slide" else design


def standardize_slides(design: NDArray[np.float32], slide: NDArray[np.int64]) -> NDArray[np.float32]:
    """A design (n_spots, n_design) with zero mean and unit deviation within every slide, changed in place."""
    for rows in rows_by_slide(slide):
        for part in column_parts(len(rows), design.shape[1]):
            here = design[rows, part]
            design[rows, part] = SlideMoments.of(here).standardized(here)
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

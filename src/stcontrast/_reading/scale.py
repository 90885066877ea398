"""µm per pixel: given, or derived from the lattice of the spots, never guessed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = [
    "TOUCHING",
    "Lattice",
    "Scale",
    "bin_side_um",
    "find_lattice",
    "middle_spots",
    "positive_number",
    "scale_from_spots",
    "spot_distance",
]

VISIUM_PITCH_UM: Final = 100.0
LEGACY_PITCH_UM: Final = 200.0
# width of a spot in pitches. Visium: 55 µm as printed, 65 µm as Space Ranger writes it. A hexagonal array of 100 µm
# spots at 150 µm has 0.667, a square one too
VISIUM_FILL: Final = ((0.53, 0.57), (0.635, 0.66))
LEGACY_FILL: Final = ((0.47, 0.53),)
# sites of the largest Visium array (11 mm), and along a side of legacy ST
VISIUM_SITES: Final = 14_336
LEGACY_SIDE: Final = 35
# how far spots lie from their sites, in pitches (root mean square along an axis): Space Ranger rounds to pixels; spots of
# legacy ST were printed and found in the image, real ones have up to 0.061
VISIUM_JITTER: Final = 0.04
LEGACY_JITTER: Final = 0.07
# of the jitter, by which few spots must lie nearer to their sites than many
STANDARD_ERRORS: Final = 2.0
# bins of Visium HD touch
TOUCHING: Final = 0.95

FEWEST_SPOTS: Final = 12
# spots that the lattice is fitted to, those around the middle
MOST_SPOTS: Final = 4000
# rows of a table that share a place, at most, on a slide of more spots
ROWS_A_SPOT: Final = 4
# neighbours: nearer and farther than the pitch, in pitches; the next ones of a square lattice are at 1.41
RING: Final = (0.75, 1.25)
# agreement of the directions to the neighbours, 1 on a perfect lattice; near 0 without order, 0.5 on relaxed cells
ALIGNED: Final = 0.75
# a similarity of the ideal lattice stretches no axis
STRETCH: Final = 1.02
# two spots at one site
SHARED_SITES: Final = 0.01
# radius of the first fit in pitches, and how much larger every next one is
FIRST_RADIUS: Final = 6.0
GROWTH: Final = 1.6

# names that Space Ranger gives to the bins of Visium HD, and their barcodes
BIN_NAME: Final = re.compile(r"(?<![^\W_])(?:square|s)_(\d{3})um(?![^\W_])")


class Scale(NamedTuple):
    """µm per image pixel, or `None`; and where the number comes from, or why there is none."""

    um_per_px: float | None
    source: str
    assumed: bool = False


class Lattice(NamedTuple):
    """The lattice on which spots lie.

    Attributes
    ----------
    pitch
        Distance between neighbours, in the units of the centres.
    neighbors
        6 (hexagonal) or 4 (square).
    jitter
        How far spots lie from their sites, in pitches: root mean square along an axis.
    side
        Sites along the longer of its axes, of the spots that it was fitted to.
    n_spots
        Their number.
    """

    pitch: float
    neighbors: int
    jitter: float
    side: int
    n_spots: int

    @property
    def kind(self) -> str:
        """Its name."""
        return "hexagonal" if self.neighbors == 6 else "square"

    @property
    def largest_jitter(self) -> float:
        """The jitter that so few spots do not rule out: a dozen cells may lie near a lattice by chance."""
        return self.jitter * (1 + STANDARD_ERRORS / float(np.sqrt(2 * _n_free(self.n_spots))))


def spot_distance(centers: NDArray[np.float64]) -> float:
    """Median distance (NaN for less than two) from a spot to the nearest other one; several rows may share a spot."""
    places = np.unique(centers, axis=0)
    return float(np.median(cKDTree(places).query(places, k=2)[0][:, 1])) if len(places) > 1 else float("nan")


def middle_spots(centers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distinct places (n, 2), from the middle of a slide outwards, at most 4000: a slide may have millions of bins."""
    if len(centers) == 0:
        return centers
    distance = ((centers - np.median(centers, axis=0)) ** 2).sum(axis=1)
    middle = centers[np.argmin(distance)]
    if len(centers) > ROWS_A_SPOT * MOST_SPOTS:
        centers = centers[np.argpartition(distance, ROWS_A_SPOT * MOST_SPOTS)[: ROWS_A_SPOT * MOST_SPOTS]]
    places = np.unique(centers, axis=0)
    return places[np.argsort(((places - middle) ** 2).sum(axis=1), kind="stable")[:MOST_SPOTS]]


def find_lattice(centers: NDArray[np.float64]) -> Lattice | None:
    """The hexagonal or square lattice on which spots lie.

    Two lattice vectors are fitted to all spots, from the middle outwards. So it does not matter how many sites are empty,
    and points that are regular only from neighbour to neighbour (cells) are no lattice.

    Parameters
    ----------
    centers
        Centres of the spots, shape (n_spots, 2).

    Returns
    -------
    The lattice, or `None` where there is none or there are fewer than 12 distinct spots.
    """
    xy = middle_spots(centers)
    if len(xy) < FEWEST_SPOTS:
        return None
    xy = xy - xy[0]
    vectors = _neighbor_vectors(xy)
    if vectors is None:
        return None
    basis, neighbors = vectors
    origin, distance = np.zeros(2), np.hypot(*xy.T)
    radius = FIRST_RADIUS * np.hypot(*basis[0])
    while True:
        near = distance <= radius
        for _ in range(2):
            sites = np.column_stack([np.rint((xy[near] - origin) @ np.linalg.inv(basis)), np.ones(near.sum())])
            if np.linalg.matrix_rank(sites) < 3:
                break
            fitted = np.linalg.lstsq(sites, xy[near], rcond=None)[0]
            basis, origin = fitted[:2], fitted[2]
            if abs(np.linalg.det(basis)) < 1e-9 * np.abs(basis).max() ** 2:
                return None
        if near.all():
            break
        radius *= GROWTH
    sites = np.rint((xy - origin) @ np.linalg.inv(basis))
    if np.ptp(sites, axis=0).min() == 0:  # a row of spots, whose second vector is a guess
        return None
    angle = 2 * np.pi / neighbors
    ideal = np.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
    stretch = np.linalg.svd(np.linalg.inv(ideal) @ basis, compute_uv=False)
    pitch = float(np.sqrt(stretch.prod()))
    jitter = float(np.sqrt(((xy - origin - sites @ basis) ** 2).sum() / _n_free(len(xy))) / pitch)
    shared = 1 - len(np.unique(sites, axis=0)) / len(sites)
    if jitter > LEGACY_JITTER or stretch[0] / stretch[1] > STRETCH or shared > SHARED_SITES:
        return None
    return Lattice(pitch, neighbors, jitter, int(np.ptp(sites, axis=0).max()) + 1, len(xy))


def _n_free(n_spots: int) -> int:
    """Coordinates of spots beyond the six numbers of a lattice and its origin."""
    return 2 * n_spots - 6


def _neighbor_vectors(xy: NDArray[np.float64]) -> tuple[NDArray[np.float64], int] | None:
    """First guess of two lattice vectors (2, 2) and of the symmetry, from the directions to the neighbours."""
    tree, pitch = cKDTree(xy), spot_distance(xy)
    # jitter makes the nearest of several neighbours lie too near: once more with the distance to all of them
    for _ in range(2):
        pairs = tree.query_pairs(RING[1] * pitch, output_type="ndarray")
        vectors = xy[pairs[:, 1]] - xy[pairs[:, 0]]
        lengths = np.hypot(*vectors.T)
        vectors, lengths = vectors[lengths > RING[0] * pitch], lengths[lengths > RING[0] * pitch]
        if len(vectors) < FEWEST_SPOTS / 2:
            return None
        pitch = float(np.median(lengths))
    angles = np.arctan2(vectors[:, 1], vectors[:, 0])
    order = {n: np.exp(1j * n * angles).mean() for n in (4, 6)}
    neighbors = max(order, key=lambda n: abs(order[n]))
    if abs(order[neighbors]) < ALIGNED:
        return None
    first = np.angle(order[neighbors]) / neighbors
    both = first + np.array([0.0, 2 * np.pi / neighbors])
    return pitch * np.column_stack([np.cos(both), np.sin(both)]), neighbors


def scale_from_spots(centers: NDArray[np.float64], diameter_px: float, *, one_size: bool = True) -> Scale:
    """Derive µm per pixel from the lattice of the spots of a slide and from their width.

    Parameters
    ----------
    centers
        Centres in image pixels, shape (n_spots, 2).
    diameter_px
        Diameter (or side) of a spot in image pixels; NaN where it is not known.
    one_size
        Whether all spots have that diameter.

    Returns
    -------
    The scale; or why none can be derived. Visium is a hexagonal lattice (100 µm pitch) of spots that are 0.55 or 0.65
    pitches wide, legacy ST a square lattice (200 µm pitch) of at most 33 × 35 spots half a pitch wide, which is logged as
    an assumption: other square arrays may look like it.
    """
    if not one_size:
        return Scale(None, "the spots have different sizes, as cells do")
    lattice = find_lattice(centers)
    if lattice is None:
        return Scale(None, "the spots form no regular lattice")
    pitch, fill = lattice.pitch, diameter_px / lattice.pitch
    found = f"the spots form a {lattice.kind} lattice ({pitch:.1f} px between neighbours)"
    if not np.isfinite(fill):
        return Scale(None, f"{found}, and their width is not known")
    if lattice.neighbors == 6:
        if _within(fill, VISIUM_FILL) and lattice.largest_jitter <= VISIUM_JITTER and len(centers) <= VISIUM_SITES:
            return Scale(VISIUM_PITCH_UM / pitch, f"a Visium lattice (100 µm pitch), {pitch:.1f} px")
    elif _within(fill, LEGACY_FILL) and lattice.side <= LEGACY_SIDE and lattice.largest_jitter <= LEGACY_JITTER:
        return Scale(LEGACY_PITCH_UM / pitch, f"a legacy ST lattice (200 µm pitch), {pitch:.1f} px", assumed=True)
    platform = (
        "bins that touch"
        if lattice.neighbors == 4 and TOUCHING < fill < 1 / TOUCHING
        else "no platform that stcontrast knows"
    )
    return Scale(None, f"{found} and are {fill:.2f} of that wide: {platform}")


def _within(value: float, ranges: Iterable[tuple[float, float]]) -> bool:
    return any(low <= value <= high for low, high in ranges)


def bin_side_um(names: Iterable[str | None]) -> float | None:
    """Side in µm of the bins of Visium HD, from the first name that says it (``"square_008um"``, ``"s_008um_00010_00042-1"``)."""
    for name in names:
        if name is not None and (found := BIN_NAME.search(name)):
            return float(found.group(1))
    return None


def positive_number(value: object, name: str) -> float:
    """What a user gave for a length or a scale, as a number; raises where it is none above 0."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number) or number <= 0:
        msg = f"{name} must be a positive number, found {value!r}."
        raise ValueError(msg)
    return number

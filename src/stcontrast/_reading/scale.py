"""µm per pixel: given, or derived from the lattice of the spots, never guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Scale", "lattice_pitch", "positive_number", "scale_from_spots"]

VISIUM_PITCH_UM: Final = 100.0
LEGACY_PITCH_UM: Final = 200.0
# a legacy ST spot is 100 µm wide at 200 µm pitch; a bin of Visium HD touches its neighbour
LEGACY_FILL: Final = (0.35, 0.65)


class Scale(NamedTuple):
    """µm per image pixel, and where the number comes from."""

    um_per_px: float
    source: str


def lattice_pitch(centers: NDArray[np.float64]) -> tuple[float, int]:
    """Distance between neighbouring spots and how many neighbours most of them have.

    Parameters
    ----------
    centers
        Centres of the spots, shape (n_spots, 2).

    Returns
    -------
    Median distance to the nearest spot, in the units of `centers`; and 6 (hexagonal), 4 (square) or
    0 (neither, or fewer than 7 distinct spots).
    """
    # several rows of a table may share a spot
    centers = np.unique(centers, axis=0)
    if len(centers) < 7:
        return float("nan"), 0
    tree = cKDTree(centers)
    pitch = float(np.median(tree.query(centers, k=2)[0][:, 1]))
    # a hexagonal lattice has 6 neighbours at one pitch, a square one 4 (the diagonal is at 1.41)
    pairs = tree.query_pairs(1.25 * pitch, output_type="ndarray")
    counts = np.bincount(pairs.ravel(), minlength=len(centers))
    inner = np.median(counts[counts >= np.median(counts)])
    # the nearest of several jittered neighbours lies closer than the pitch: take all of them
    distances = np.linalg.norm(centers[pairs[:, 0]] - centers[pairs[:, 1]], axis=1)
    return float(np.median(distances)), int(inner) if inner in (4, 6) else 0


def scale_from_spots(
    centers: NDArray[np.float64], diameter_px: float, *, spot_diameter_um: float | None = None
) -> Scale | None:
    """Derive µm per pixel from the spots of a slide.

    Parameters
    ----------
    centers
        Centres in image pixels, shape (n_spots, 2).
    diameter_px
        Diameter (or side) of a spot in image pixels; NaN where it is not known.
    spot_diameter_um
        Diameter (or side) of a spot in µm, if the user knows it.

    Returns
    -------
    The scale, or `None` where neither a known platform nor the user settles it. Visium is recognised by its
    hexagonal lattice (pitch 100 µm; the diameter that Space Ranger writes is not the spot's), legacy ST by its
    square lattice with spots half a pitch wide (pitch 200 µm).
    """
    if spot_diameter_um is not None:
        if not np.isfinite(diameter_px) or diameter_px <= 0:
            return None
        return Scale(spot_diameter_um / diameter_px, f"spots of {spot_diameter_um:g} µm, {diameter_px:.1f} px wide")
    pitch, neighbors = lattice_pitch(centers)
    if neighbors == 6:
        return Scale(VISIUM_PITCH_UM / pitch, f"a Visium lattice (100 µm pitch), {pitch:.1f} px")
    if neighbors == 4 and LEGACY_FILL[0] < diameter_px / pitch < LEGACY_FILL[1]:
        return Scale(LEGACY_PITCH_UM / pitch, f"a legacy ST lattice (200 µm pitch), {pitch:.1f} px")
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

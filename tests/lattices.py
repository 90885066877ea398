"""Spots of all kinds of platforms as they lie on a scan, with the true scale: for tests and benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from tests.synthetic import hexagonal, square

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


class Platform(NamedTuple):
    """A kind of array: how its sites are made, their pitch and the widths of a spot (µm), and jitter in pitches."""

    sites: Callable[[int, int, float], NDArray[np.float64]]
    pitch_um: float
    widths_um: tuple[float, ...]
    jitter: tuple[float, float]


PLATFORMS = {
    "Visium": Platform(hexagonal, 100.0, (55.0, 65.0), (0.0, 0.035)),
    "legacy ST": Platform(square, 200.0, (100.0,), (0.0, 0.06)),
    "150 µm, hexagonal": Platform(hexagonal, 150.0, (55.0, 65.0, 100.0, 110.0), (0.0, 0.05)),
    "150 µm, square": Platform(square, 150.0, (55.0, 65.0, 100.0, 110.0), (0.0, 0.05)),
    "pooled squares of 100 µm": Platform(square, 100.0, (55.0, 100.0), (0.0, 0.0)),
    "HD bins": Platform(square, 8.0, (8.0,), (0.0, 0.01)),
    "cells near a hexagonal lattice": Platform(hexagonal, 12.0, (6.6, 7.8, 12.0), (0.05, 0.3)),
    "cells near a square lattice": Platform(square, 12.0, (6.0, 7.8, 12.0), (0.08, 0.3)),
}
RELAXED = "relaxed cells"
CELLS = "cells at random"


class Drawn(NamedTuple):
    """Spots on a scan: centres (n_spots, 2) and width in pixels, and the truth."""

    platform: str
    centers: NDArray[np.float64]
    width_px: float
    um_per_px: float
    holes: float


def draw(rng: np.random.Generator, platforms: Sequence[str] = (*PLATFORMS, RELAXED, CELLS)) -> Drawn:
    """Spots of one of some platforms: of any extent, with none or 10 to 60 % of the sites empty, turned, mirrored, shifted."""
    name = str(rng.choice(platforms))
    rows, columns = (int(n) for n in rng.integers(5, 33, 2))
    um_per_px = float(np.exp(rng.uniform(np.log(0.2), np.log(8.0))))
    holes = float(rng.choice([0.0, rng.uniform(0.1, 0.6)]))
    if name in (CELLS, RELAXED):
        xy = rng.uniform(0, 1, (rows * columns, 2)) * (12.0 * columns, 12.0 * rows)
        for _ in range(int(rng.integers(2, 15)) if name == RELAXED else 0):
            xy = _relaxed(xy, rng)
        width, holes = float(rng.choice([6.0, 6.6, 7.8])), 0.0
    else:
        platform = PLATFORMS[name]
        xy = platform.sites(rows, columns, platform.pitch_um)
        xy = xy + rng.normal(0, rng.uniform(*platform.jitter) * platform.pitch_um, xy.shape)
        xy = xy[rng.random(len(xy)) >= holes]
        width = float(rng.choice(platform.widths_um))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [1, rng.choice([-1, 1])]
    return Drawn(name, xy @ turn.T / um_per_px + rng.uniform(-1e4, 1e4, 2), width / um_per_px, um_per_px, holes)


def _relaxed(xy: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Every point moved to the middle of what is nearest to it (Lloyd): regular from neighbour to neighbour."""
    inside = rng.uniform(xy.min(axis=0), xy.max(axis=0), (20 * len(xy), 2))
    nearest = cKDTree(xy).query(inside)[1]
    n = np.maximum(np.bincount(nearest, minlength=len(xy)), 1)
    return np.column_stack([np.bincount(nearest, inside[:, axis], len(xy)) / n for axis in (0, 1)])

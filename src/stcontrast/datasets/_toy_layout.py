"""Where things lie on a toy slide: spots, tissue outline, subtype regions, cellularity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from scipy.special import ndtr

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PITCH_UM", "SPOT_RADIUS_UM", "SUBTYPES", "Layout", "draw_layout", "smooth_noise"]

SUBTYPES: Final = ("tumour", "stroma", "fat", "glands")
PITCH_UM: Final = 100.0
SPOT_RADIUS_UM: Final = 27.5

_SPOTS_PER_REGION = 14
_RIM_PX = 50.0
_GLASS_PX = 55.0
_COARSE_PX = 4


class Layout(NamedTuple):
    """Geometry of one slide, in pixels of its image (1 µm a pixel); pixel (0, 0) covers [0, 1) × [0, 1)."""

    centres: NDArray[np.float64]
    """Spot centres, (n_spots, 2), x and y."""
    array: NDArray[np.int64]
    """Row and column of each spot on the hexagonal lattice, (n_spots, 2), columns counted in half pitches."""
    tissue: NDArray[np.bool_]
    """Tissue mask, (height, width)."""
    region: NDArray[np.int8]
    """Index into `SUBTYPES` for every pixel, (height, width)."""
    cellularity: NDArray[np.float32]
    """Local density of nuclei between 0 and 1, (height, width)."""
    spot_fraction: NDArray[np.float64]
    """Share of each spot's area that each subtype covers, (n_spots, 4)."""
    spot_cellularity: NDArray[np.float64]
    """Mean cellularity under each spot, (n_spots,)."""
    spot_gradient: NDArray[np.float64]
    """Position between the tissue's left (-1) and right (1) end, (n_spots,)."""


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], length: float) -> NDArray[np.float32]:
    """Random field with a correlation length in pixels, standardised to mean 0 and variance 1."""
    rows, columns = (_interpolation(size, length) for size in shape)
    grid = rng.standard_normal((rows.shape[1], columns.shape[1]), dtype=np.float32)
    return rows @ (columns @ grid.T).T


def _interpolation(size: int, length: float) -> csr_matrix:
    """Weights of the knots, `length` apart, around each of `size` pixels; rows have unit norm."""
    position = (np.arange(size) + 0.5)[:, None] / length
    knots = position.astype(int) + np.arange(6)
    weights = np.exp(-0.5 * ((position + 2 - knots) / 0.6) ** 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return csr_matrix((weights.astype(np.float32).ravel(), knots.ravel(), np.arange(0, knots.size + 1, 6)))


def draw_layout(n_spots: int, *, composition: NDArray[np.float64], rng: np.random.Generator) -> Layout:
    """Lay out a slide with exactly `n_spots` spots on tissue; `composition` weighs the subtypes."""
    xy, array, boundary = _spots_on_blob(n_spots, rng)
    low = boundary.min(axis=0) - _GLASS_PX
    width, height = (int(side) for side in np.ceil(boundary.max(axis=0) + _GLASS_PX - low))
    centres = xy - low
    region = _regions(centres, (height, width), composition=composition, rng=rng)
    cellularity = ndtr(smooth_noise(rng, (height, width), 130.0)).astype(np.float32)

    steps = np.arange(-SPOT_RADIUS_UM, SPOT_RADIUS_UM + 1, 5.0)
    disc = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    disc = disc[np.hypot(*disc.T) <= SPOT_RADIUS_UM]
    columns, rows = np.moveaxis((centres[:, None] + disc).astype(int), -1, 0)
    under_spot = region[rows, columns]
    return Layout(
        centres=centres,
        array=array,
        tissue=_tissue(boundary - low, (height, width), rng),
        region=region,
        cellularity=cellularity,
        spot_fraction=np.stack([(under_spot == s).mean(axis=1) for s in range(len(SUBTYPES))], axis=1),
        spot_cellularity=cellularity[rows, columns].mean(axis=1).astype(np.float64),
        spot_gradient=2 * (centres[:, 0] - centres[:, 0].min()) / max(np.ptp(centres[:, 0]), 1.0) - 1,
    )


def _spots_on_blob(
    n_spots: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Pick the `n_spots` lattice points that lie deepest in a random blob; return them and the blob's outline."""
    row_pitch = PITCH_UM * np.sqrt(3) / 2
    reach = int(np.ceil(2 * np.sqrt(n_spots / np.pi))) + 3
    row, column = (grid.ravel() for grid in np.mgrid[-reach : reach + 1, -2 * reach : 2 * reach + 1])
    on_lattice = (row + column) % 2 == 0
    array = np.stack([row, column], axis=1)[on_lattice]
    xy = array[:, ::-1] * [PITCH_UM / 2, row_pitch] + rng.uniform(-0.5, 0.5, 2) * PITCH_UM

    order = np.arange(2, 6)
    amplitude = rng.normal(0, 0.11, order.size) / (order - 1)
    phase = rng.uniform(0, 2 * np.pi, order.size)

    def blob_radius(angle: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp((amplitude * np.cos(np.multiply.outer(angle, order) + phase)).sum(axis=-1))

    depth = np.hypot(*xy.T) / blob_radius(np.arctan2(xy[:, 1], xy[:, 0]))
    chosen = np.sort(np.argsort(depth, kind="stable")[:n_spots])
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    radius = depth[chosen].max() * blob_radius(angle) + _RIM_PX
    outline = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return xy[chosen], array[chosen] - array[chosen].min(axis=0), outline


def _tissue(outline: NDArray[np.float64], shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    middle = (outline.min(axis=0) + outline.max(axis=0)) / 2
    around = outline - middle
    n_angles = 4096
    angle = np.linspace(-np.pi, np.pi, n_angles, endpoint=False)
    radius = np.interp(angle, np.arctan2(around[:, 1], around[:, 0]), np.hypot(*around.T), period=2 * np.pi)
    # A cut edge is ragged, not a smooth curve: move it by a few µm.
    length = n_angles / (2 * np.pi * radius.mean())
    for reach, wave in ((7.0, 40.0), (2.5, 9.0)):
        radius += reach * smooth_noise(rng, (1, n_angles), wave * length)[0]
    rows, columns = np.indices(shape, dtype=np.float32, sparse=True)
    right, down = columns - np.float32(middle[0]), rows - np.float32(middle[1])
    sector = (np.arctan2(down, right) * np.float32(n_angles / (2 * np.pi))).astype(np.int16)
    return right**2 + down**2 < np.roll(radius.astype(np.float32), -n_angles // 2)[sector] ** 2


def _regions(
    centres: NDArray[np.float64],
    shape: tuple[int, int],
    *,
    composition: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    """Voronoi cells with wavy borders; every subtype owns at least one."""
    n_regions = max(len(SUBTYPES), round(len(centres) / _SPOTS_PER_REGION))
    seeds = [int(rng.integers(len(centres)))]
    nearest = np.full(len(centres), np.inf)
    while len(seeds) < n_regions:
        nearest = np.minimum(nearest, np.hypot(*(centres - centres[seeds[-1]]).T))
        # Far from the other seeds, but not always the farthest: regions differ in size.
        seeds.append(int(np.argmax(nearest * rng.uniform(0.6, 1.0, nearest.size))))
    granted = np.tile(rng.permutation(len(SUBTYPES)), max(1, n_regions // (len(SUBTYPES) + 2)))
    owner = np.concatenate(
        [
            granted,
            rng.choice(len(SUBTYPES), size=n_regions - len(granted), p=composition),
        ]
    )
    coarse = (-(-shape[0] // _COARSE_PX), -(-shape[1] // _COARSE_PX))
    rows, columns = (np.indices(coarse) + 0.5) * _COARSE_PX
    warp = sum(
        reach * np.stack([smooth_noise(rng, coarse, length / _COARSE_PX) for _ in range(2)], axis=-1)
        for reach, length in ((28.0, 110.0), (7.0, 28.0))
    )
    _, index = cKDTree(centres[seeds]).query(np.stack([columns, rows], axis=-1) + warp)
    region = np.kron(owner[index].astype(np.int8), np.ones((_COARSE_PX, _COARSE_PX), dtype=np.int8))
    return region[: shape[0], : shape[1]]

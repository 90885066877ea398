"""A toy slide: its spots, tissue and regions, and an H&E-like image of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation, zoom
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from scipy.special import ndtr

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SPOT_RADIUS_UM", "SUBTYPES", "Layout", "Stain", "draw_histology", "draw_layout"]

SUBTYPES: Final = ("tumour", "stroma", "fat", "glands")
_PITCH_UM: Final = 100.0
SPOT_RADIUS_UM: Final = 27.5
_TUMOUR, _STROMA, _FAT, _GLANDS = range(len(SUBTYPES))
_SPOTS_PER_REGION: Final = 14
_RIM_PX: Final = 50.0
_GLASS_PX: Final = 55.0
_COARSE_PX: Final = 4
_MACENKO_EOSIN: Final = (0.2159, 0.8012, 0.5581)
_STAMP_PX: Final = 19
_N_ANGLES: Final = 18
_GLAND_REACH_PX: Final = 50
_WOBBLE: Final = np.array([0.10, 0.06, 0.03, 0.10, 0.06, 0.03])


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


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], length: float) -> NDArray[np.float32]:
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
    cellularity = ndtr(_smooth_noise(rng, (height, width), 130.0)).astype(np.float32)

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
    row_pitch = _PITCH_UM * np.sqrt(3) / 2
    reach = int(np.ceil(2 * np.sqrt(n_spots / np.pi))) + 3
    row, column = (grid.ravel() for grid in np.mgrid[-reach : reach + 1, -2 * reach : 2 * reach + 1])
    on_lattice = (row + column) % 2 == 0
    array = np.stack([row, column], axis=1)[on_lattice]
    xy = array[:, ::-1] * [_PITCH_UM / 2, row_pitch] + rng.uniform(-0.5, 0.5, 2) * _PITCH_UM

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
        radius += reach * _smooth_noise(rng, (1, n_angles), wave * length)[0]
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
    """Voronoi cells with wavy borders; every subtype has at least one."""
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
        reach * np.stack([_smooth_noise(rng, coarse, length / _COARSE_PX) for _ in range(2)], axis=-1)
        for reach, length in ((28.0, 110.0), (7.0, 28.0))
    )
    _, index = cKDTree(centres[seeds]).query(np.stack([columns, rows], axis=-1) + warp)
    region = np.kron(owner[index].astype(np.int8), np.ones((_COARSE_PX, _COARSE_PX), dtype=np.int8))
    return region[: shape[0], : shape[1]]


class Stain(NamedTuple):
    """How one donor's sections were stained and scanned."""

    vectors: NDArray[np.float64]
    """Optical density of haematoxylin and eosin in R, G, B, unit rows, (2, 3)."""
    strength: NDArray[np.float64]
    """Amount of either dye, relative, (2,)."""
    glass: NDArray[np.float64]
    """Colour of empty glass, 0 to 255, (3,)."""
    blur_px: float
    """Width of the scanner's point spread, pixels."""
    noise: float
    """Standard deviation of the sensor noise, grey levels."""

    @classmethod
    def of_donor(cls, donor: int, rng: np.random.Generator) -> Stain:
        """Draw the stain of one donor; successive donors are spread out, so that few donors differ too."""
        from skimage.color import rgb_from_hed

        hue, redness, blue, pink = 2 * (((donor + 1) * np.array([0.6180, 0.7549, 0.5698, 0.8192])) % 1) - 1
        warm = 0.5 + 0.3 * redness
        haematoxylin, eosin = rgb_from_hed[0], (1 - warm) * rgb_from_hed[1] + warm * np.array(_MACENKO_EOSIN)
        vectors = np.stack(
            [
                haematoxylin + hue * np.array([0.12, -0.05, -0.10]) + rng.normal(0, 0.015, 3),
                eosin + rng.normal(0, 0.015, 3),
            ]
        ).clip(0.02)
        return cls(
            vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            strength=np.exp(0.25 * np.array([blue, pink]) + rng.normal(0, 0.05, 2)),
            glass=rng.uniform(232, 246) + rng.uniform(-4, 4, 3),
            blur_px=float(rng.uniform(0.5, 0.8)),
            noise=float(rng.uniform(1.5, 3.5)),
        )


def draw_histology(layout: Layout, stain: Stain, rng: np.random.Generator) -> NDArray[np.uint8]:
    """RGB image of a slide, (3, height, width), 1 µm a pixel."""
    shape = (layout.tissue.shape[0], layout.tissue.shape[1])
    mottle = _tiled(_smooth_noise(rng, (509, 509), 2.5), shape)
    across, fibres = _fibres(shape, rng)

    haematoxylin = 0.07 + 0.012 * mottle
    eosin = np.maximum(0.30 + 0.11 * fibres, 0.06)
    eosin[layout.region == _GLANDS] *= 0.85

    nests = (layout.region == _TUMOUR) & (np.abs(_smooth_noise(rng, shape, 70.0)) > 0.13)
    haematoxylin[nests] = 0.17 + 0.025 * mottle[nests]
    eosin[nests] = 0.27 + 0.035 * mottle[nests]

    fat, vacuole = _adipocytes(layout, rng)
    haematoxylin[fat] = 0.09
    eosin[fat] = 0.34 + 0.05 * mottle[fat]
    haematoxylin[vacuole] = 0.004
    eosin[vacuole] = 0.012

    nuclei = np.zeros(shape, dtype=np.float32)
    gland = _draw_glands(layout, haematoxylin=haematoxylin, eosin=eosin, nuclei=nuclei, mottle=mottle, rng=rng)
    solid = layout.tissue & ~vacuole & ~gland
    _draw_nuclei(layout, nests=nests & solid, matrix=solid & ~nests, across=across, nuclei=nuclei, rng=rng)
    haematoxylin += nuclei
    eosin *= 1 - 0.5 * np.minimum(nuclei, 1)
    return _through_light(haematoxylin, eosin, layout.tissue, stain=stain, rng=rng)


def _through_light(
    haematoxylin: NDArray[np.float32],
    eosin: NDArray[np.float32],
    tissue: NDArray[np.bool_],
    *,
    stain: Stain,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    shape = (tissue.shape[0], tissue.shape[1])
    # sections are not evenly thick: the same tissue takes up more or less dye at different places
    thickness = np.where(tissue, np.exp(0.12 * _smooth_noise(rng, shape, 220.0)), 0)
    amounts = [
        _blur(dye * thickness * np.float32(np.log(10) * strength), stain.blur_px)
        for dye, strength in zip((haematoxylin, eosin), stain.strength, strict=True)
    ]
    grain = _tiled(np.float32(stain.noise) * rng.standard_normal((1021, 1021), dtype=np.float32), shape)
    picture = np.empty((3, *shape), dtype=np.uint8)
    for channel, glass in enumerate(stain.glass):
        absorbed = sum(np.float32(v) * amount for v, amount in zip(stain.vectors[:, channel], amounts, strict=True))
        light = np.exp(-absorbed) * np.float32(glass)
        light += np.roll(grain, 101 * channel, axis=1)
        np.clip(light, 0, 255, out=light)
        picture[channel] = light
    return picture


def _blur(plane: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Three taps per axis: enough for a point spread below a pixel, and several times as fast as a Gaussian."""
    side = np.float32(sigma**2 / 2)
    for _ in range(2):
        blurred = plane * (1 - 2 * side)
        blurred[1:] += side * plane[:-1]
        blurred[:-1] += side * plane[1:]
        plane = blurred.T
    return plane


def _tiled(tile: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    repeats = (shape[0] // tile.shape[0] + 1, shape[1] // tile.shape[1] + 1)
    return np.tile(tile, repeats)[: shape[0], : shape[1]]


def _fibres(shape: tuple[int, int], rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Wavy collagen: a coordinate across the fibres, in pixels, and the density of fibre at every pixel."""
    rows, columns = np.indices(shape, dtype=np.float32, sparse=True)
    angle = rng.uniform(0, np.pi)
    across = 42 * _smooth_noise(rng, shape, 120.0)
    across += np.float32(np.cos(angle)) * rows - np.float32(np.sin(angle)) * columns
    across -= across.min()
    strand = sum(_smooth_noise(rng, (1, 2 * int(across.max()) + 2), 2 * period)[0] for period in (4.0, 9.0))
    return across, 0.6 * strand[(2 * across).astype(np.int32)] + 0.45 * _smooth_noise(rng, shape, 45.0)


def _adipocytes(layout: Layout, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Fat: densely packed cells, empty except for a thin rim; masks of the fat and of its empty parts."""
    height, width = layout.tissue.shape
    cells = _jittered_grid((height, width), 44.0, 0.28, rng)
    in_fat = _value_at(layout.region, cells) == _FAT
    rim = rng.uniform(3.0, 7.0, len(cells))

    near = binary_dilation((layout.region == _FAT)[::8, ::8], iterations=7)
    near = np.kron(near, np.ones((4, 4), dtype=bool))[: -(-height // 2), : -(-width // 2)]
    pixels = 2.0 * np.argwhere(near)[:, ::-1] + 1
    distance, nearest = cKDTree(cells).query(pixels, k=2, workers=-1)
    fat, inside = np.zeros(near.shape, dtype=bool), np.full(near.shape, -9.0, dtype=np.float32)
    fat[near] = in_fat[nearest[:, 0]]
    inside[near] = np.minimum(distance[:, 1] - distance[:, 0] - rim[nearest[:, 0]], 25 - distance[:, 0])
    fat = np.kron(fat, np.ones((2, 2), dtype=bool))[:height, :width]
    return fat, fat & (zoom(inside, 2, order=1, grid_mode=True, mode="nearest")[:height, :width] > 0)


def _jittered_grid(
    shape: tuple[int, int], pitch: float, jitter: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Points about `pitch` pixels apart, each moved by up to `jitter` pitches; (n_points, 2), x and y."""
    n_rows, n_columns = int(shape[0] / pitch) + 1, int(shape[1] / pitch) + 1
    rows, columns = np.indices((n_rows, n_columns)).reshape(2, -1)
    points = np.stack([columns + 0.5 * (rows % 2), rows], axis=1) + 0.5
    points = (points + rng.uniform(-jitter, jitter, points.shape)) * pitch
    return points[(points >= 0).all(axis=1) & (points < [shape[1], shape[0]]).all(axis=1)]


def _value_at(plane: NDArray, points: NDArray[np.float64]) -> NDArray:
    """Value of the pixel that each point (x, y) lies in."""
    return plane[points[:, 1].astype(int), points[:, 0].astype(int)]


def _draw_nuclei(
    layout: Layout,
    *,
    nests: NDArray[np.bool_],
    matrix: NDArray[np.bool_],
    across: NDArray[np.float32],
    nuclei: NDArray[np.float32],
    rng: np.random.Generator,
) -> None:
    """Add nuclei to a haematoxylin plane: large ones in tumour nests, spindles and lymphocytes between the fibres.

    Their density follows `layout.cellularity` in every kind of tissue; spindles lie along the lines of equal `across`.
    """
    shape = (nuclei.shape[0], nuclei.shape[1])

    points = _jittered_grid(shape, 12.5, 0.33, rng)
    points = points[_value_at(nests, points)]
    points = points[rng.random(len(points)) < 0.30 + 0.68 * _value_at(layout.cellularity, points)]
    size = rng.uniform(4.0, 6.2, 48)
    bank = [_nucleus(r, r * rng.uniform(0.68, 1.0), rng.uniform(0, np.pi), rng.uniform(0.42, 0.72), rng) for r in size]
    _stamp(nuclei, points, bank, rng.integers(len(bank), size=len(points)))

    points = _jittered_grid(shape, 17.0, 0.45, rng)
    points = points[_value_at(matrix, points)]
    points = points[rng.random(len(points)) < 0.10 + 0.30 * _value_at(layout.cellularity, points)]
    bank = [
        _nucleus(rng.uniform(5.0, 7.5), rng.uniform(1.3, 2.0), np.pi * k / _N_ANGLES, rng.uniform(0.45, 0.65), rng)
        for k in range(_N_ANGLES)
    ]
    points = points[(points < np.array(shape[::-1]) - 4).all(axis=1)]
    here = _value_at(across, points)
    slope = [_value_at(across, points + step) - here for step in ([4, 0], [0, 4])]
    angle = np.arctan2(slope[1], slope[0]) + np.pi / 2 + rng.normal(0, 0.15, len(points))
    _stamp(nuclei, points, bank, _nearest_angle(angle))

    points = _jittered_grid(shape, 8.0, 0.4, rng)
    points = points[_value_at(matrix, points)]
    points = points[rng.random(len(points)) < 0.42 * _value_at(layout.cellularity, points) ** 3]
    bank = [_nucleus(r, r, 0.0, rng.uniform(0.75, 0.95), rng) for r in rng.uniform(2.2, 3.1, 12)]
    _stamp(nuclei, points, bank, rng.integers(len(bank), size=len(points)))


def _draw_glands(
    layout: Layout,
    *,
    haematoxylin: NDArray[np.float32],
    eosin: NDArray[np.float32],
    nuclei: NDArray[np.float32],
    mottle: NDArray[np.float32],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Draw rings of epithelium around pale lumens onto the dye planes; return the mask of what they cover."""
    shape = (nuclei.shape[0], nuclei.shape[1])
    covered = np.zeros(shape, dtype=bool)
    centres = _jittered_grid(shape, 78.0, 0.2, rng)
    inside = (centres >= _GLAND_REACH_PX).all(axis=1) & (centres < np.array(shape[::-1]) - _GLAND_REACH_PX).all(axis=1)
    centres = centres[inside]
    centres = centres[(_value_at(layout.region, centres) == _GLANDS) & _value_at(layout.tissue, centres)]

    dy, dx = (np.mgrid[-_GLAND_REACH_PX:_GLAND_REACH_PX, -_GLAND_REACH_PX:_GLAND_REACH_PX] + 0.5).astype(np.float32)
    waves, distance = _waves(np.arctan2(dy, dx)), np.hypot(dy, dx)
    points, angles = [np.zeros((0, 2))], [np.zeros(0)]
    for x, y in centres.astype(int).tolist():
        radius, lumen = rng.uniform(25, 38), rng.uniform(0.25, 0.53)
        wobble = (rng.normal(0, 1, 6) * _WOBBLE).astype(np.float32)
        depth = distance / (radius * np.exp(waves @ wobble))
        window = (slice(y - _GLAND_REACH_PX, y + _GLAND_REACH_PX), slice(x - _GLAND_REACH_PX, x + _GLAND_REACH_PX))
        blue, pink = haematoxylin[window], eosin[window]
        pink[depth < 1.1] = 0.48
        blue[depth < 1] = 0.13 + 0.02 * mottle[window][depth < 1]
        pink[depth < 1] = 0.27 + 0.03 * mottle[window][depth < 1]
        blue[depth < lumen] = 0.01
        pink[depth < lumen] = rng.uniform(0.01, 0.10)
        covered[window] |= depth < 1.1

        # One row of nuclei at the base of the cells, and a loose second one where nuclei are dense.
        for row, share in ((0.80, 0.95), (0.62, 0.9 * layout.cellularity[y, x])):
            angle = np.arange(0, 2 * np.pi, 8.0 / (row * radius))
            angle = (angle + rng.normal(0, 0.06, angle.size))[rng.random(angle.size) < share]
            around = row * radius * np.exp(_waves(angle) @ wobble)
            points.append(np.stack([x + around * np.cos(angle), y + around * np.sin(angle)], axis=1))
            angles.append(angle)
    bank = [
        _nucleus(rng.uniform(3.8, 5.2), rng.uniform(2.4, 3.2), np.pi * k / _N_ANGLES, rng.uniform(0.5, 0.8), rng)
        for k in range(_N_ANGLES)
    ]
    _stamp(nuclei, np.concatenate(points), bank, _nearest_angle(np.concatenate(angles)))
    return covered


def _waves(angle: NDArray) -> NDArray:
    """Cosines and sines of 2, 3 and 5 turns: what the outline of a gland is made of, (..., 6)."""
    turns = np.multiply.outer(angle, np.array([2, 3, 5], dtype=angle.dtype))
    return np.concatenate([np.cos(turns), np.sin(turns)], axis=-1)


def _nearest_angle(angle: NDArray) -> NDArray[np.int64]:
    return np.round(angle / np.pi * _N_ANGLES).astype(np.int64) % _N_ANGLES


def _nucleus(long: float, short: float, angle: float, darkness: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Small square picture of one nucleus: an ellipse with a soft edge and mottled chromatin."""
    y, x = np.mgrid[:_STAMP_PX, :_STAMP_PX] - _STAMP_PX // 2
    along, across = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    inside = np.clip((1.12 - np.hypot(along / long, across / short)) * short * 0.7, 0, 1)
    chromatin = 1 + 0.16 * _smooth_noise(rng, (_STAMP_PX, _STAMP_PX), 1.8)
    return (darkness * inside * chromatin).clip(0).astype(np.float32)


def _stamp(
    plane: NDArray[np.float32], points: NDArray[np.float64], bank: list[NDArray[np.float32]], index: NDArray[np.int64]
) -> None:
    half = _STAMP_PX // 2
    corner = points.astype(int) - half
    fits = (corner >= 0).all(axis=1) & (corner + _STAMP_PX <= plane.shape[::-1]).all(axis=1)
    for (x, y), kind in zip(corner[fits].tolist(), index[fits].tolist(), strict=True):
        window = plane[y : y + _STAMP_PX, x : x + _STAMP_PX]
        np.maximum(window, bank[kind], out=window)

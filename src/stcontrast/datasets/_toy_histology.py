"""Draw an H&E-like picture of a toy slide: two dye concentrations, then light through them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation, zoom
from scipy.spatial import cKDTree

from stcontrast.datasets._toy_layout import SUBTYPES, smooth_noise
from stcontrast.datasets._toy_nuclei import draw_glands, draw_nuclei, jittered_grid, value_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast.datasets._toy_layout import Layout

__all__ = ["Stain", "draw_histology"]

_TUMOUR, _STROMA, _FAT, _GLANDS = range(len(SUBTYPES))
_MACENKO_EOSIN: Final = (0.2159, 0.8012, 0.5581)


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
    """Picture of a slide.

    Parameters
    ----------
    layout
        Geometry of the slide.
    stain
        Stain of its donor.
    rng
        Source of randomness.

    Returns
    -------
    RGB picture, (3, height, width), 1 µm a pixel.
    """
    shape = (layout.tissue.shape[0], layout.tissue.shape[1])
    mottle = _tiled(smooth_noise(rng, (509, 509), 2.5), shape)
    across, fibres = _fibres(shape, rng)

    haematoxylin = 0.07 + 0.012 * mottle
    eosin = np.maximum(0.30 + 0.11 * fibres, 0.06)
    eosin[layout.region == _GLANDS] *= 0.85

    nests = (layout.region == _TUMOUR) & (np.abs(smooth_noise(rng, shape, 70.0)) > 0.13)
    haematoxylin[nests] = 0.17 + 0.025 * mottle[nests]
    eosin[nests] = 0.27 + 0.035 * mottle[nests]

    fat, vacuole = _adipocytes(layout, rng)
    haematoxylin[fat] = 0.09
    eosin[fat] = 0.34 + 0.05 * mottle[fat]
    haematoxylin[vacuole] = 0.004
    eosin[vacuole] = 0.012

    nuclei = np.zeros(shape, dtype=np.float32)
    gland = draw_glands(layout, haematoxylin=haematoxylin, eosin=eosin, nuclei=nuclei, mottle=mottle, rng=rng)
    solid = layout.tissue & ~vacuole & ~gland
    draw_nuclei(layout, nests=nests & solid, matrix=solid & ~nests, across=across, nuclei=nuclei, rng=rng)
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
    # Sections are not evenly thick: the same tissue takes up more or less dye from place to place.
    thickness = np.where(tissue, np.exp(0.12 * smooth_noise(rng, shape, 220.0)), 0)
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
    """Three taps an axis: all that a point spread below a pixel needs, and several times as fast as a Gaussian."""
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
    """Wavy collagen: a coordinate that runs across the fibres, in pixels, and how much of a fibre lies there."""
    rows, columns = np.indices(shape, dtype=np.float32, sparse=True)
    angle = rng.uniform(0, np.pi)
    across = 42 * smooth_noise(rng, shape, 120.0)
    across += np.float32(np.cos(angle)) * rows - np.float32(np.sin(angle)) * columns
    across -= across.min()
    strand = sum(smooth_noise(rng, (1, 2 * int(across.max()) + 2), 2 * period)[0] for period in (4.0, 9.0))
    return across, 0.6 * strand[(2 * across).astype(np.int32)] + 0.45 * smooth_noise(rng, shape, 45.0)


def _adipocytes(layout: Layout, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Fat: cells packed side by side, empty but for a thin rim; masks of the fat and of what is empty in it."""
    height, width = layout.tissue.shape
    cells = jittered_grid((height, width), 44.0, 0.28, rng)
    in_fat = value_at(layout.region, cells) == _FAT
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

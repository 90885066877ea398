"""Crops against a slow, plain computation, pixel for pixel."""

from __future__ import annotations

from typing import Any

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine

import stcontrast as stc
from stcontrast._reading import SlideImage
from stcontrast.pp._crops import iter_crops
from tests.synthetic import picture

GLASS = 231
FACTORS = (1, 2, 4)


def pyramid(seed: int) -> list[np.ndarray]:
    """Levels with nothing in common but their frame, so that the wrong one cannot pass."""
    levels = []
    for i, factor in enumerate(FACTORS):
        pixels = picture(160 // factor, 224 // factor, seed=seed + i)
        for axis in (0, 1):
            turned = np.swapaxes(pixels, 0, axis)
            turned[:8], turned[-8:] = GLASS, GLASS
        levels.append(pixels)
    return levels


def taps(low: float, high: float, size_px: int) -> list[tuple[int, list[int]]]:
    """First pixel and weights in 22 bits of a triangle filter, for every pixel of the output (Pillow's convention)."""
    # the reader hands its window over in single precision, from where the filter begins to reach
    scale = (high - low) / size_px
    origin = int(np.floor(low)) - int(np.ceil(max(1.0, scale))) - 1
    begin, end = float(np.float32(low - origin)), float(np.float32(high - origin))
    scale = float(np.float32(end) - np.float32(begin)) / size_px
    support = max(scale, 1.0)
    found = []
    for i in range(size_px):
        middle = begin + (i + 0.5) * scale
        first, stop = int(middle - support + 0.5), int(middle + support + 0.5)
        weights = [max(0.0, 1.0 - abs((x - middle + 0.5) * (1.0 / support))) for x in range(first, stop)]
        total = sum(weights)
        found.append((first + origin, [int(0.5 + weight / total * 2**22) for weight in weights]))
    return found


def slow_crops(levels: list[np.ndarray], x: float, y: float, side: float, size_px: int) -> list[np.ndarray]:
    """Along x then y, and along y then x, each rounded to eight bits; one pixel after another.

    Pillow begins with the axis along which there is less to do.
    """
    level = max((i for i, factor in enumerate(FACTORS) if factor <= side / size_px * (1 + 1e-6)), default=0)
    pixels, factor = levels[level].astype(int), FACTORS[level]
    columns = taps((x - side / 2) / factor, (x + side / 2) / factor, size_px)
    rows = taps((y - side / 2) / factor, (y + side / 2) / factor, size_px)
    return [one_axis_first(pixels, rows, columns), one_axis_first(pixels.swapaxes(0, 1), columns, rows).swapaxes(0, 1)]


def one_axis_first(
    pixels: np.ndarray, rows: list[tuple[int, list[int]]], columns: list[tuple[int, list[int]]]
) -> np.ndarray:
    height, width = pixels.shape[:2]
    lines: dict[int, np.ndarray] = {}

    def at(row: int, column: int) -> np.ndarray:
        inside = 0 <= row < height and 0 <= column < width
        return pixels[row, column] if inside else np.full(3, GLASS)

    def line(row: int) -> np.ndarray:
        if row not in lines:
            sums = [sum(w * at(row, first + k) for k, w in enumerate(weights)) for first, weights in columns]
            lines[row] = np.array([(total + 2**21) >> 22 for total in sums])
        return lines[row]

    sums = [sum(w * line(first + k) for k, w in enumerate(weights)) for first, weights in rows]
    return np.array([(total + 2**21) >> 22 for total in sums])


def affine(matrix: np.ndarray) -> Affine:
    return Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))


def slide(levels: list[np.ndarray], pixels: np.ndarray, to_system: np.ndarray, of_shapes: np.ndarray) -> SpatialData:
    """Spots at these pixels, whatever lies between shapes and image."""
    homogeneous = np.column_stack([pixels, np.ones(len(pixels))])
    xy = (np.linalg.inv(of_shapes) @ to_system @ homogeneous.T).T[:, :2]
    element: Any = Image2DModel.parse(
        np.moveaxis(levels[0], -1, 0), dims=("c", "y", "x"), scale_factors=[2, 2], chunks=(3, 64, 64),
        transformations={"scan": affine(to_system)},
    )  # fmt: skip
    for i, level in enumerate(levels[1:], start=1):
        element[f"scale{i}"]["image"].data = da.from_array(np.moveaxis(level, -1, 0), chunks=(3, 64, 64))
    table = ad.AnnData(
        obs=pd.DataFrame({"region": pd.Categorical(["spots"] * len(xy)), "spot": np.arange(len(xy))}).set_index(
            pd.Index([f"s{i}" for i in range(len(xy))])
        )
    )
    return SpatialData(
        images={"he": element},
        shapes={"spots": ShapesModel.parse(xy, geometry=0, radius=1.0, transformations={"scan": affine(of_shapes)})},
        tables={"table": TableModel.parse(table, region=["spots"], region_key="region", instance_key="spot")},
    )


@given(
    centers=st.lists(st.tuples(st.floats(-60, 284), st.floats(-60, 220)), min_size=1, max_size=3),
    side=st.floats(0.5, 120.0),
    size_px=st.integers(1, 9),
    seed=st.integers(0, 3),
)
@settings(deadline=None, max_examples=60)
def test_every_pixel_is_that_of_the_plain_computation(centers, side, size_px, seed) -> None:
    levels = pyramid(seed)
    lazy = tuple(da.from_array(np.moveaxis(level, -1, 0), chunks=(3, 64, 64)) for level in levels)
    image = SlideImage("he", lazy, tuple(float(factor) for factor in FACTORS))
    for i, crop in iter_crops(image, np.array(centers), side=side, size_px=size_px):
        expected = slow_crops(levels, centers[i][0], centers[i][1], side, size_px)
        assert any((crop == one).all() for one in expected)


turn, shift = st.floats(0, 2 * np.pi), st.floats(-500, 500)
scale = st.floats(0.2, 5)


@given(
    image=st.tuples(turn, scale, st.booleans(), shift, shift),
    shapes=st.tuples(turn, scale, scale, st.floats(-0.5, 0.5), shift, shift),
    centers=st.lists(st.tuples(st.floats(1, 223), st.floats(1, 159)), min_size=1, max_size=3),
    side=st.floats(2.0, 60.0),
    size_px=st.integers(1, 9),
    seed=st.integers(0, 3),
)
@settings(deadline=None, max_examples=60)
def test_any_affine_any_level_any_border(image, shapes, centers, side, size_px, seed) -> None:
    angle, zoom, mirrored, dx, dy = image
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    flip = -1.0 if mirrored else 1.0
    to_system = np.array([[cos, -sin * flip, dx], [sin, cos * flip, dy], [0, 0, 1]])
    angle, along, across, shear, dx, dy = shapes
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    of_shapes = np.eye(3)
    of_shapes[:2, :2] = turned @ np.array([[along, shear], [0, across]])
    of_shapes[:2, 2] = dx, dy
    # quarters of a pixel outlast the way there and back through two matrices
    pixels = np.round(np.array(centers) * 4) / 4
    levels = pyramid(seed)
    sdata = slide(levels, pixels, to_system, of_shapes)
    found = stc.pp.crops(sdata, field_um=round(side * 4) / 8, size_px=size_px, um_per_px=0.5)
    for (x, y), crop in zip(pixels, found, strict=True):
        expected = slow_crops(levels, x, y, round(side * 4) / 4, size_px)
        # a centre that has been through two matrices is 1e-12 pixels astray: a sum between two bytes may tip over
        astray = min((np.abs(crop.astype(int) - one) for one in expected), key=np.sum)
        assert astray.max() <= 1
        assert (astray == 0).mean() > 0.97

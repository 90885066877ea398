from __future__ import annotations

from dataclasses import replace
from typing import Any

import dask.array as da
import matplotlib.pyplot as plt
import numpy as np
import pytest

from stcontrast._reading import Slide, SlideImage
from stcontrast.pl._slide import draw_picture, draw_scale_bar, draw_spots, read_picture, scale_bar_um

XY = np.stack(np.meshgrid(np.arange(6), np.arange(5)), axis=-1).reshape(-1, 2) * np.float64(100) + 150


def slide(image: SlideImage | None = None, *, diameter: float = 50.0) -> Slide:
    return Slide("s", np.arange(len(XY)), XY, diameter, image, 2.0)


def image_of(pixels: np.ndarray, *, n_levels: int = 1) -> SlideImage:
    levels = [da.from_array(pixels[:, :: 2**i, :: 2**i], chunks=(3, 100, 100)) for i in range(n_levels)]
    return SlideImage("he", tuple(levels), tuple(2.0**i for i in range(n_levels)))


def test_picture_is_cut_around_the_spots():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1000, 1200), dtype=np.uint8)
    picture = read_picture(slide(image_of(pixels)))
    left, right, bottom, top = (int(edge) for edge in picture.extent)
    # centres 150 to 650 and 150 to 550, radius 25, margin one diameter
    assert (left, right, top, bottom) == (75, 725, 75, 625)
    np.testing.assert_array_equal(picture.pixels, np.moveaxis(pixels[:, top:bottom, left:right], 0, -1))


def test_large_picture_without_pyramid_is_averaged():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 800, 900), dtype=np.uint8)
    picture = read_picture(slide(image_of(pixels)), max_px=200)
    assert picture.pixels is not None
    assert max(picture.pixels.shape) <= 200
    left, right, bottom, top = picture.extent
    assert (right - left) / picture.pixels.shape[1] == (bottom - top) / picture.pixels.shape[0] == 4
    corner = pixels[:, int(top) : int(top) + 4, int(left) : int(left) + 4].mean(axis=(1, 2))
    assert np.abs(picture.pixels[0, 0] - corner).max() <= 0.5


def test_pyramid_level_is_taken():
    pixels = np.zeros((3, 800, 900), dtype=np.uint8)
    image = image_of(pixels, n_levels=3)
    untouched = replace(image, levels=(da.full_like(image.levels[0], 255), image.levels[1], image.levels[2]))
    picture = read_picture(slide(untouched), max_px=300)
    assert picture.pixels is not None
    assert picture.pixels.max() == 0
    assert picture.extent[:2] == (74, 726)


def test_slide_without_image_or_scale():
    bare = replace(slide(), um_per_px=None)
    ax = plt.figure().add_subplot()
    picture = read_picture(bare)
    draw_picture(ax, picture)
    draw_spots(ax, bare, np.ones(30, dtype=bool), array=np.arange(30.0))
    draw_scale_bar(ax, bare)
    assert picture.aspect == pytest.approx(550 / 650)
    assert not ax.images
    assert not ax.artists
    assert ax.yaxis_inverted()


@pytest.mark.parametrize(("diameter", "corners"), [(50.0, 36), (100.0, 4), (float("nan"), 36)])
def test_bins_are_squares(diameter: float, corners: int):
    ax = plt.figure().add_subplot()
    drawn = draw_spots(ax, slide(diameter=diameter), np.ones(30, dtype=bool), array=np.arange(30.0))
    outline: Any = drawn.get_paths()[7].vertices
    assert len(outline) == corners + 1
    width = {50.0: 50.0, 100.0: 100.0}.get(diameter, 55.0)
    np.testing.assert_allclose(np.ptp(outline, axis=0), width, rtol=0.01)


@pytest.mark.parametrize(("width", "length"), [(1500, 500), (1499, 200), (6200, 2000), (30, 10), (3.1, 1)])
def test_scale_bar_is_round(width: float, length: float):
    assert scale_bar_um(width) == pytest.approx(length)

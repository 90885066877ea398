"""Levels that are computed once, and levels that are made while tiles are read."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from spatialdata import SpatialData
from spatialdata.transformations import Identity

import stcontrast as stc
from stcontrast._reading import SlideImage
from stcontrast.pp._crops import iter_batches, iter_crops
from stcontrast.pp._crops import levels as _levels
from stcontrast.pp._crops.levels import computed_once, with_coarse_levels
from tests.synthetic import circles, image, points, table

if TYPE_CHECKING:
    from pathlib import Path


def waves(height: int, width: int) -> np.ndarray:
    """Waves of 60 to 250 pixels, (3, height, width)."""
    y, x = np.mgrid[:height, :width]
    return (
        np.stack([127 + 60 * (np.sin(x / a) + np.cos(y / b)) for a, b in ((10, 14), (25, 9), (40, 31))])
        .clip(0, 255)
        .astype(np.uint8)
    )


PIXELS = waves(1100, 1300)


class Counted:
    """Pixels that count how often they are made."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> np.ndarray:
        self.times += 1
        return PIXELS


def one_task(made: Counted, then: str = "as it is") -> da.Array:
    """As `spatialdata_io.visium` has a full-resolution tif: all pixels are made by one task."""
    pixels = da.from_delayed(dask.delayed(made)(), PIXELS.shape, np.uint8)
    return {
        "as it is": pixels,
        "in chunks": pixels.rechunk((3, 256, 256)),
        "turned": pixels.rechunk((3, 300, 300))[:, ::-1],
    }[then]


def cut(image: SlideImage, centers: np.ndarray, *, side: float, size_px: int) -> np.ndarray:
    found = dict(iter_crops(image, centers, side=side, size_px=size_px))
    return np.stack([found[i] for i in range(len(centers))]).astype(int)


@pytest.mark.parametrize("then", ["as it is", "in chunks", "turned"])
def test_an_image_of_one_task_is_computed_once(then: str) -> None:
    made = Counted()
    lazy = SlideImage("he", (one_task(made, then),), (1.0,))
    centers = points(40, 1100, 1300)[:, ::1]
    expected = lazy.levels[0].compute()
    made.times = 0
    for _ in range(2):
        found = cut(lazy, centers, side=60, size_px=30)
    assert made.times == 1
    held = SlideImage("he", (da.from_array(expected, chunks=(3, 256, 256)),), (1.0,))
    np.testing.assert_array_equal(found, cut(held, centers, side=60, size_px=30))


def test_features_of_an_image_of_one_task_read_it_once() -> None:
    made, here = Counted(), {"s1": Identity()}
    element = image(np.zeros((1100, 1300, 3), np.uint8), here)
    element.data = one_task(made)
    xy = points(12, 1100, 1300)
    sdata = SpatialData(
        images={"he": element}, shapes={"s1": circles(xy, here)}, tables={"table": table({"s1": np.arange(12)})}
    )
    stc.pp.image_features(sdata, encoder="color", field_um=(50, 600))
    assert made.times == 1


def test_what_is_held_goes_with_the_image() -> None:
    before = len(_levels._held)
    pixels = one_task(Counted())
    assert isinstance(computed_once(pixels), np.ndarray)
    assert len(_levels._held) == before + 1
    del pixels
    gc.collect()
    assert len(_levels._held) == before


def test_the_image_that_was_used_last_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_levels, "HELD_BYTES", int(2.5 * PIXELS.nbytes))
    made = [Counted() for _ in range(3)]
    images = [one_task(item) for item in made]
    for i in (0, 1, 0, 2, 0, 1):
        computed_once(images[i])
    assert [item.times for item in made] == [1, 2, 1]


def test_an_image_too_large_to_hold_says_what_helps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_levels, "HELD_BYTES", PIXELS.nbytes - 1)
    pixels = one_task(Counted())
    assert computed_once(pixels) is pixels
    assert computed_once(pixels) is pixels
    assert caplog.text.count("Write the object to zarr first") == 1


@pytest.mark.parametrize("source", ["store", "memory", "one chunk", "recipe"])
def test_what_is_read_tile_by_tile_is_not_computed_as_a_whole(source: str, tmp_path: Path) -> None:
    lazy: dict[str, Any] = {
        "store": lambda: da.from_zarr(zarr.create_array(tmp_path / "he.zarr", data=PIXELS, chunks=(3, 256, 256))),
        "memory": lambda: da.from_array(PIXELS, chunks=(3, 256, 256)),
        "one chunk": lambda: da.from_array(PIXELS, chunks=-1).rechunk((3, 256, 256)),
        "recipe": lambda: 255 - da.from_array(PIXELS, chunks=(3, 256, 256)),
    }
    pixels = lazy[source]()
    if source != "one chunk":
        assert computed_once(pixels) is pixels
    expected = 255 - PIXELS if source == "recipe" else PIXELS
    np.testing.assert_array_equal(np.asarray(computed_once(pixels)[:, :300, :300]), expected[:, :300, :300])


@pytest.mark.parametrize("chunks", [(3, 1100, 1300), (3, 256, 256), (3, 250, 333), (1, 512, 512)], ids=str)
@pytest.mark.parametrize(("side", "size_px", "factor"), [(600.0, 64, 4), (1000.0, 32, 16), (560.0, 100, 2)])
def test_wide_windows_are_cut_from_a_level_made_for_them(
    chunks: tuple[int, int, int], side: float, size_px: int, factor: int
) -> None:
    whole = SlideImage("he", (da.from_array(PIXELS, chunks=chunks),), (1.0,))
    pyramid, (level,) = with_coarse_levels(whole, [side], size_px)
    assert pyramid.downsampling[level] == factor
    made = pyramid.levels[level].compute()
    height, width = 1100 // factor, 1300 // factor
    inner = PIXELS[:, : height * factor, : width * factor].reshape(3, height, factor, width, factor)
    assert np.abs(made[:, :height, :width] - inner.mean(axis=(2, 4))).max() <= 0.51
    centers = points(6, 1100, 1300)
    # triangle over all pixels, as Pillow has it
    from PIL import Image

    picture = Image.fromarray(np.moveaxis(PIXELS, 0, -1))
    inside = centers[((centers > side / 2) & (centers < np.array([1300, 1100]) - side / 2)).all(axis=1)]
    inside = np.vstack([inside, [[650.0, 550.0]]])
    for (x, y), crop in zip(inside, cut(whole, inside, side=side, size_px=size_px), strict=True):
        box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
        direct = np.asarray(picture.resize((size_px, size_px), Image.Resampling.BILINEAR, box=box)).astype(int)
        # at the border of the window the direct filter does not look beyond; waves are two to eight pixels long
        assert np.abs(crop - direct)[2:-2, 2:-2].mean() < 2.5


@pytest.mark.parametrize(("side", "size_px"), [(500.0, 32), (600.0, 224), (40.0, 8)], ids=["narrow", "fine", "small"])
def test_other_windows_are_cut_as_before(side: float, size_px: int) -> None:
    whole = SlideImage("he", (da.from_array(PIXELS, chunks=(3, 256, 256)),), (1.0,))
    pyramid, chosen = with_coarse_levels(whole, [side], size_px)
    assert chosen == [0]
    assert len(pyramid.levels) == 1


def test_a_field_does_not_depend_on_the_others() -> None:
    whole = SlideImage("he", (da.from_array(PIXELS, chunks=(3, 256, 256)),), (1.0,))
    centers, sides = points(5, 1100, 1300), (40.0, 600.0, 1000.0)
    alone = [cut(whole, centers, side=side, size_px=32) for side in sides]
    for rows, crops in iter_batches(whole, centers, sides=sides, size_px=32, batch=5):
        for field, of_field in enumerate(alone):
            np.testing.assert_array_equal(crops[:, field], of_field[rows])


def test_wide_fields_are_the_same_in_memory_and_on_disk(tmp_path: Path) -> None:
    stored = zarr.create_array(tmp_path / "he.zarr", data=PIXELS, chunks=(3, 190, 210))
    centers = points(5, 1100, 1300)
    found = [
        cut(SlideImage("he", (lazy,), (1.0,)), centers, side=800, size_px=32)
        for lazy in (da.from_zarr(stored), da.from_array(PIXELS, chunks=(3, 512, 512)), one_task(Counted()))
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])

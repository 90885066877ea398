"""Levels that are computed once, and levels that are made while tiles are read."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

import stcontrast as stc
from stcontrast._reading import SlideImage
from stcontrast.pp._crops import Tiles, iter_batches, iter_crops, pick_level
from stcontrast.pp._crops import levels as _levels
from stcontrast.pp._crops import reader as _reader
from stcontrast.pp._crops import tiles as _tiles
from stcontrast.pp._crops.levels import computed_once, level_and_factor
from stcontrast.pp._crops.tiles import Averaged
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


def averaged(pixels: Any, factor: int) -> np.ndarray:
    """A level made, as the reader makes it: (3, height, width)."""
    made, image = Averaged(Tiles(pixels), factor), SlideImage("he", (pixels,), (1.0,))
    height, width = made.shape
    tiles = {(0, 1): made.source, (0, factor): made}
    square = max(made.shape)
    field = _reader.Field.of(image, np.full((1, 2), square * factor / 2), square * factor, square, (0, factor))
    with ThreadPoolExecutor(2) as pool:
        canvas = _reader._Held(image, [field], tiles, pool).windows(0)[0].picture()
    left, top = field.start[0]
    return np.moveaxis(np.asarray(canvas), -1, 0)[:, -top : height - top, -left : width - left]


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


def test_all_levels_of_an_image_of_one_task_are_computed_together(tmp_path: Path) -> None:
    """As readers make a pyramid: every level is averaged from the one before."""
    made, here = Counted(), {"s1": Identity()}
    pyramid = Image2DModel.parse(
        one_task(made, "in chunks"), dims=("c", "y", "x"), c_coords=["r", "g", "b"], scale_factors=[2, 2, 2],
        transformations=here,
    )  # fmt: skip
    xy = points(12, 1100, 1300)
    sdata = SpatialData(
        images={"he": pyramid}, shapes={"s1": circles(xy, here)}, tables={"table": table({"s1": np.arange(12)})}
    )
    made.times = 0
    stc.pp.image_features(sdata, field_um=(50, 200, 600))
    assert made.times == 1
    found = np.asarray(sdata["table"].obsm.pop("X_image"))
    sdata.write(tmp_path / "slide.zarr")
    stored = read_zarr(tmp_path / "slide.zarr")
    stc.pp.image_features(stored, field_um=(50, 200, 600))
    np.testing.assert_allclose(found, stored["table"].obsm["X_image"], atol=1e-5)


# height and width: even all the way, odd at once, odd later
@pytest.mark.parametrize("size", [(512, 640), (513, 641), (514, 642)], ids=str)
@pytest.mark.parametrize("parsed", ["in memory", "in chunks", "one task"])
def test_coarse_levels_in_memory_are_those_of_the_graph(
    size: tuple[int, int], parsed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a side is odd: of such a pyramid spatialdata leaves out the first row or column."""
    monkeypatch.setattr(_levels, "SMALL_BYTES", 1)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    made = {
        "in memory": lambda: pixels,
        "in chunks": lambda: da.from_array(pixels, chunks=(3, 100, 150)),
        "one task": lambda: da.from_delayed(dask.delayed(lambda: pixels)(), pixels.shape, np.uint8).rechunk(
            (3, 99, 99)
        ),
    }[parsed]()
    pyramid = Image2DModel.parse(
        made, dims=("c", "y", "x"), scale_factors=[2, 2, 2], chunks=(3, 64, 64),
        transformations={"global": Identity()},
    )  # fmt: skip
    levels = [next(iter(pyramid[name].values())).data for name in pyramid]
    expected = [level.compute(scheduler="synchronous") for level in levels]
    averaged, halved = [], _levels._halved

    def counted(level: da.Array, finer: da.Array, pixels: np.ndarray) -> np.ndarray | None:
        averaged.append(halved(level, finer, pixels))
        return averaged[-1]

    monkeypatch.setattr(_levels, "_halved", counted)
    # the coarsest, which needs all others, is asked for first
    for i in (3, 2, 1, 0):
        found = computed_once(levels[i], levels)
        np.testing.assert_array_equal(np.asarray(found), expected[i])
        assert isinstance(found, np.ndarray) or (i == 0 and parsed != "one task")
    assert [level is not None for level in averaged] == [True, True, True]


def test_a_level_that_is_nearly_a_mean_is_left_to_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded, where spatialdata cuts off: some pixels are another by one, but not those of the glass."""
    monkeypatch.setattr(_levels, "TASKS_A_CHUNK", 0)
    pixels = np.full((3, 512, 512), 240, dtype=np.uint8)
    pixels[:, 140:250, 270:380] = np.random.default_rng(0).integers(0, 256, (3, 110, 110), dtype=np.uint8)
    finest = da.from_array(pixels, chunks=(3, 128, 128))
    level = da.coarsen(np.mean, finest, {1: 2, 2: 2}).round().astype(np.uint8)
    expected = level.compute(scheduler="synchronous")
    assert (expected != pixels.reshape(3, 256, 2, 256, 2).mean(axis=(2, 4)).astype(np.uint8)).any()
    np.testing.assert_array_equal(np.asarray(computed_once(level, (finest, level))), expected)


def test_what_is_held_goes_with_the_image() -> None:
    gc.collect()
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
@pytest.mark.parametrize(("side", "size_px", "factor"), [(600.0, 64, 8), (1000.0, 32, 16), (560.0, 100, 4)])
def test_wide_windows_are_cut_from_a_level_made_for_them(
    chunks: tuple[int, int, int], side: float, size_px: int, factor: int
) -> None:
    whole = SlideImage("he", (da.from_array(PIXELS, chunks=chunks),), (1.0,))
    assert level_and_factor(whole, side, size_px) == (0, factor)
    made = averaged(whole.levels[0], factor)
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


@pytest.mark.parametrize(
    ("levels", "side", "size_px", "expected"),
    [
        (1, 100.0, 8, (0, 1)),
        (1, 127.9, 8, (0, 1)),
        (1, 128.0, 8, (0, 16)),
        (1, 224.0, 224, (0, 1)),
        (1, 278.0, 224, (0, 1)),
        (1, 447.0, 224, (0, 1)),
        (1, 448.0, 224, (0, 2)),
        (1, 1600.0, 224, (0, 4)),
        (2, 1600.0, 224, (1, 2)),
        (3, 1600.0, 224, (2, 1)),
        (3, 6400.0, 224, (2, 4)),
    ],
    ids=lambda value: str(value),
)
def test_a_wide_window_has_one_to_two_pixels_for_one_of_the_output(
    levels: int, side: float, size_px: int, expected: tuple[int, int]
) -> None:
    factors = tuple(2.0**i for i in range(levels))
    image = SlideImage("he", (da.from_array(PIXELS),) * levels, factors)
    level, factor = level_and_factor(image, side, size_px)
    assert (level, factor) == expected
    assert level == pick_level(image, side / size_px)
    left = side / size_px / factors[level] / factor
    assert side / factors[level] < 128 or 1 <= left < 2 or factor == 1


@pytest.mark.parametrize("chunks", [(3, 1100, 1300), (3, 256, 256), (3, 250, 333), (1, 512, 512), (3, 3, 700)], ids=str)
@pytest.mark.parametrize("factor", [2, 4, 32])
def test_a_level_made_is_the_average_of_its_pixels(chunks: tuple[int, int, int], factor: int) -> None:
    made = averaged(da.from_array(PIXELS, chunks=chunks), factor)
    height, width = -(-1100 // factor), -(-1300 // factor)
    assert made.shape == (3, height, width)
    for y in (0, height // 2, height - 1):
        for x in (0, width // 2, width - 1):
            block = PIXELS[:, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            assert np.abs(made[:, y, x] - block.mean(axis=(1, 2))).max() <= 0.51


def test_chunks_are_read_once_for_the_levels_made_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "TILE_PX", 256)
    read: list[tuple[int, int]] = []

    class Counted(_tiles.Tiles):
        def read(self, row: int, column: int) -> np.ndarray:
            read.append((row, column))
            return super().read(row, column)

    monkeypatch.setattr(_reader, "Tiles", Counted)
    whole = SlideImage("he", (da.from_array(PIXELS, chunks=(3, 250, 256)),), (1.0,))
    list(iter_batches(whole, points(60, 1100, 1300), sides=(40.0, 150.0, 400.0), size_px=32, batch=16))
    assert len(read) == len(set(read)) == 5 * 6


@pytest.mark.parametrize("side", [300.0, 700.0])
def test_crops_are_those_of_a_stored_level(side: float) -> None:
    fine = SlideImage("he", (da.from_array(PIXELS, chunks=(3, 256, 256)),), (1.0,))
    _, factor = level_and_factor(fine, side, 64)
    stored = (fine.levels[0], da.from_array(averaged(fine.levels[0], factor), chunks=(3, 100, 100)))
    both = SlideImage("he", stored, (1.0, float(factor)))
    centers = points(9, 1100, 1300)
    # the background is that of the coarsest level: what lies within the image is compared
    inside = centers[((centers > side / 2) & (centers < np.array([1300, 1100]) - side / 2)).all(axis=1)]
    inside = np.vstack([inside, [[650.0, 550.0]]])
    np.testing.assert_array_equal(cut(fine, inside, side=side, size_px=64), cut(both, inside, side=side, size_px=64))


@pytest.mark.parametrize("place", [(0.0, 0.0), (0.5, 0.0), (0.25, 0.875), (0.1, 0.3), (0.999999, 1e-7)], ids=str)
@pytest.mark.parametrize("size_px", [30, 224])
def test_crops_at_the_levels_own_resolution_are_those_of_pillow(size_px: int, place: tuple[float, float]) -> None:
    from PIL import Image

    whole = SlideImage("he", (da.from_array(PIXELS, chunks=(3, 256, 256)),), (1.0,))
    centers = np.array([[500.0, 400.0], [700.0, 512.0]]) + place
    picture = Image.fromarray(np.moveaxis(PIXELS, 0, -1))
    for (x, y), crop in zip(centers, cut(whole, centers, side=size_px, size_px=size_px), strict=True):
        box = (x - size_px / 2, y - size_px / 2, x + size_px / 2, y + size_px / 2)
        direct = np.asarray(picture.resize((size_px, size_px), Image.Resampling.BILINEAR, box=box)).astype(int)
        assert np.abs(crop - direct).max() <= 1
        assert abs((crop - direct).mean()) < 0.02


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

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stcontrast._reading import SlideImage
from stcontrast.pp._crops import background_color, iter_batches, iter_crops, pick_level
from stcontrast.pp._crops import reader as _reader
from stcontrast.pp._crops import tiles as _tiles
from tests.synthetic import picture, points, smooth_picture

if TYPE_CHECKING:
    from pathlib import Path

PICTURE = picture()


def lazy(*pictures: np.ndarray) -> SlideImage:
    levels = tuple(da.from_array(np.moveaxis(p, -1, 0), chunks=(3, 32, 32)) for p in pictures)
    return SlideImage("he", levels, tuple(pictures[0].shape[1] / p.shape[1] for p in pictures))


def cut(image: SlideImage, centers: Any, *, side: float, size_px: int) -> np.ndarray:
    centers = np.asarray(centers, dtype=float)
    found = dict(iter_crops(image, centers, side=side, size_px=size_px))
    assert sorted(found) == list(range(len(centers)))
    return np.stack([found[i] for i in range(len(centers))])


def padded(pixels: np.ndarray, by: int) -> np.ndarray:
    board = np.tile(background_color(lazy(pixels)), (pixels.shape[0] + 2 * by, pixels.shape[1] + 2 * by, 1))
    board[by:-by, by:-by] = pixels
    return board


def weights(start: float, stop: float, size_px: int, n: int, shift: int) -> np.ndarray:
    """A triangle as wide as two output pixels (two source pixels where it enlarges), normalised."""
    scale = (stop - start) / size_px
    middle = start + (np.arange(size_px) + 0.5) * scale
    w = np.maximum(0, 1 - np.abs(np.arange(n) - shift + 0.5 - middle[:, None]) / max(scale, 1))
    return w / w.sum(axis=1, keepdims=True)


@given(st.lists(st.tuples(st.integers(-20, 150), st.integers(-20, 120)), min_size=1, max_size=5), st.integers(1, 20))
def test_whole_pixels_are_copied(centers: list[tuple[int, int]], half: int) -> None:
    board = padded(PICTURE, 50)
    found = cut(lazy(PICTURE), centers, side=2 * half, size_px=2 * half)
    for (x, y), crop in zip(centers, found, strict=True):
        np.testing.assert_array_equal(crop, board[y + 50 - half : y + 50 + half, x + 50 - half : x + 50 + half])


@given(
    st.tuples(st.floats(-10, 138), st.floats(-10, 106)), st.floats(3, 80), st.integers(1, 24)
)  # fmt: skip
def test_resampling_is_a_triangle_filter_around_the_true_centre(
    center: tuple[float, float], side: float, size_px: int
) -> None:
    pad = 150
    board = padded(PICTURE, pad).astype(float)
    x, y = center
    along_x = weights(x - side / 2, x + side / 2, size_px, board.shape[1], pad)
    along_y = weights(y - side / 2, y + side / 2, size_px, board.shape[0], pad)
    expected = np.einsum("iy,jx,yxc->ijc", along_y, along_x, board, optimize=True)
    found = cut(lazy(PICTURE), [center], side=side, size_px=size_px)[0]
    # 8 bits, twice rounded
    assert np.abs(found - expected).max() < 2.0


def test_it_equals_pillow_on_the_whole_image() -> None:
    board = Image.fromarray(padded(PICTURE, 64))
    for x, y in points(10):
        box = (x + 64 - 22.6, y + 64 - 22.6, x + 64 + 22.6, y + 64 + 22.6)
        expected = np.asarray(board.resize((16, 16), Image.Resampling.BILINEAR, box=box))
        found = cut(lazy(PICTURE), [[x, y]], side=45.2, size_px=16)[0].astype(int)
        assert np.abs(found - expected).max() <= 1


def test_a_fraction_of_a_pixel_counts() -> None:
    ramp = np.repeat(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))[..., None], 3, axis=2)
    xs = np.array([30.0, 30.25, 30.5, 30.75])
    means = cut(lazy(ramp), np.column_stack([xs, np.full(4, 32)]), side=20, size_px=10).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(np.diff(means), 1.0, atol=0.3)
    # the pixel that starts at x has its middle at x + 0.5
    np.testing.assert_allclose(means, 4 * (xs - 0.5), atol=0.6)


@pytest.mark.parametrize(("held", "planned"), [(1, 10**6), (2**28, 1), (2**28, 7), (60_000, 5)])
def test_bands_and_stretches_change_nothing(held: int, planned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    centers = points(30)
    expected = cut(lazy(PICTURE), centers, side=13.7, size_px=8)
    monkeypatch.setattr(_reader, "HELD_BYTES", held)
    monkeypatch.setattr(_reader, "PLANNED", planned)
    np.testing.assert_array_equal(cut(lazy(PICTURE), centers, side=13.7, size_px=8), expected)


@pytest.mark.parametrize("sides", [(8.0,), (8.0, 30.0), (8.0, 30.0, 64.0)])
def test_each_tile_is_read_once_for_all_fields(sides: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "TILE_PX", 32)
    read: list[tuple[int, int, int]] = []

    class Counted(_tiles.Tiles):
        def read(self, row: int, column: int) -> np.ndarray:
            read.append((self.shape[0], row, column))
            return super().read(row, column)

    monkeypatch.setattr(_reader, "Tiles", Counted)
    half = PICTURE[::2, ::2]
    list(iter_batches(lazy(PICTURE, half), 8 + 0.8 * points(200), sides=sides, size_px=8, batch=16))
    assert len(read) == len(set(read))
    assert {height for height, *_ in read} == ({96, 48} if len(sides) > 1 else {96})
    # twelve tiles of the finest level, not one of them left out
    assert sum(height == 96 for height, *_ in read) == 12


def test_fields_in_one_pass_are_those_of_single_passes() -> None:
    image, centers = lazy(PICTURE, PICTURE[::2, ::2]), points(21)
    sides = (5.5, 17.0, 64.0)
    rows, crops = zip(*iter_batches(image, centers, sides=sides, size_px=8, batch=4), strict=True)
    assert [len(part) for part in rows] == [4, 4, 4, 4, 4, 1]
    for field, side in enumerate(sides):
        expected = cut(image, centers, side=side, size_px=8)
        np.testing.assert_array_equal(np.concatenate(crops)[:, field], expected[np.concatenate(rows)])


def test_tiles_that_are_past_use_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "TILE_PX", 16)
    tall = picture(1600, 64)
    held: list[int] = []
    advance = _reader._Held._advance

    def counted(self: Any, step: int) -> None:
        advance(self, step)
        held.append(len(self._futures))

    monkeypatch.setattr(_reader._Held, "_advance", counted)
    centers = np.column_stack([np.tile([16.0, 48.0], 100), np.repeat(np.arange(8.0, 1600, 16), 2)])
    cut(lazy(tall), centers, side=8, size_px=4)
    # four hundred tiles in all; two rows in use, some on the way
    assert max(held) <= 2 * 4 + _reader.AHEAD


def test_an_iterator_that_is_left_early_leaves_no_thread() -> None:
    before = {thread.name for thread in threading.enumerate()}
    crops = iter_crops(lazy(PICTURE), points(50), side=8, size_px=8)
    next(crops)
    crops.close()
    assert {thread.name for thread in threading.enumerate()} <= before


def test_what_goes_wrong_in_a_store_is_told() -> None:
    def broken(block: np.ndarray) -> np.ndarray:
        msg = "the store is gone"
        raise OSError(msg)

    level = da.from_array(np.moveaxis(PICTURE, -1, 0), chunks=(3, 32, 32)).map_blocks(
        broken, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    with pytest.raises(OSError, match="the store is gone"):
        cut(SlideImage("he", (level,), (1.0,)), points(3), side=8, size_px=8)


FORK = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import dask.array as da
import numpy as np

from stcontrast._reading import SlideImage
from stcontrast.pp._crops import iter_crops

def cut(image):
    return [crop.tobytes() for _, crop in iter_crops(image, np.array([[40.0, 40.0], [90.0, 20.0]]), side=8, size_px=8)]

pixels = da.from_zarr(sys.argv[1]).map_blocks(np.copy, dtype=np.uint8)
pixels.compute(scheduler="threads")
image = SlideImage("he", (pixels,), (1.0,))
expected = cut(image)
with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
    assert pool.submit(cut, image).result() == expected
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
def test_a_forked_process_reads_after_its_parent_has_computed(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "he.zarr", data=np.moveaxis(PICTURE, -1, 0), chunks=(3, 32, 32))
    # a process of its own: others have threads that must not be forked
    subprocess.run([sys.executable, "-c", FORK, str(tmp_path / "he.zarr")], check=True, timeout=120)


def test_the_level_is_the_coarsest_that_needs_no_enlarging() -> None:
    image = lazy(picture(128, 128), picture(64, 64), picture(32, 32))
    assert [pick_level(image, ratio) for ratio in (0.5, 1.0, 1.99, 2.0, 3.9, 4.0, 100.0)] == [0, 0, 0, 1, 1, 2, 2]


def test_the_chosen_level_is_read() -> None:
    image = lazy(*(np.full((s, s, 3), v, dtype=np.uint8) for s, v in ((128, 10), (64, 20), (32, 30))))
    means = [cut(image, [[64, 64]], side=32, size_px=size_px).mean() for size_px in (64, 32, 16, 8, 2)]
    assert means == [10, 10, 20, 30, 30]


def test_levels_show_the_same_place() -> None:
    fine = smooth_picture(256)
    coarse = fine.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
    centers = 40 + 176 * points(20, 96, 96) / 96
    from_fine = cut(lazy(fine), centers, side=64, size_px=32).astype(int)
    from_both = cut(lazy(fine, coarse), centers, side=64, size_px=32).astype(int)
    assert 0 < np.abs(from_fine - from_both).mean() < 1.5
    assert np.abs(from_fine - from_both).max() <= 5  # a pixel astray is 10


def test_far_outside_is_background_and_costs_nothing() -> None:
    image = lazy(PICTURE)
    assert (cut(image, [[-1e6, 50], [50, 1e7]], side=20, size_px=4) == background_color(image)).all()


def test_no_spots_no_crops() -> None:
    assert list(iter_crops(lazy(PICTURE), np.empty((0, 2)), side=8, size_px=4)) == []

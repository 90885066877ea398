from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from stcontrast.pp._crops import Tiles
from stcontrast.pp._crops import tiles as _tiles
from tests.synthetic import picture

if TYPE_CHECKING:
    from pathlib import Path

PIXELS = np.moveaxis(picture(200, 300), -1, 0)


def whole(tiles: Tiles) -> np.ndarray:
    rows = [[tiles.read(row, column) for column in range(tiles.grid[1])] for row in range(tiles.grid[0])]
    return np.concatenate([np.concatenate(row, axis=2) for row in rows], axis=1)


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=8), st.lists(st.integers(1, 90), min_size=1, max_size=8),
    st.integers(1, 130),
)  # fmt: skip
def test_tiles_of_any_chunks_make_up_the_image(heights: list[int], widths: list[int], side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, sum(heights), sum(widths)), dtype=np.uint8)
    lazy = da.from_array(pixels, chunks=((3,), tuple(heights), tuple(widths))).map_blocks(np.copy, dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tiles, "TILE_PX", side)
        tiles = Tiles(lazy)
        np.testing.assert_array_equal(whole(tiles), pixels)
        for edges, sizes in zip(tiles.edges, (heights, widths), strict=True):
            # edges are edges of chunks, and chunks are joined where there is room
            assert set(edges) <= {0, *np.cumsum(sizes).tolist()}
            assert all(size <= max(side, max(sizes)) for size in np.diff(edges))


@given(st.lists(st.tuples(*[st.integers(-80, 380)] * 4), min_size=1, max_size=6))
def test_spans_are_the_tiles_that_a_rectangle_touches(corners: list[tuple[int, int, int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tiles, "TILE_PX", 64)
        tiles = Tiles(PIXELS)
    rectangles = np.sort(np.array(corners).reshape(-1, 2, 2), axis=1) + np.array([[0, 0], [1, 1]])
    first, last, touches = tiles.spans(rectangles[:, 0], rectangles[:, 1])
    for (start, stop), low, high, touched in zip(rectangles, first, last, touches, strict=True):
        found = {
            (row, column)
            for row in range(tiles.grid[0])
            for column in range(tiles.grid[1])
            if all(
                edges[i] < stop[1 - axis] and edges[i + 1] > start[1 - axis]
                for axis, (edges, i) in enumerate(zip(tiles.edges, (row, column), strict=True))
            )
        }
        assert touched == bool(found)
        if touched:
            rows, columns = (range(a, b + 1) for a, b in zip(low, high, strict=True))
            assert found == {(row, column) for row in rows for column in columns}


def test_a_store_is_read_without_dask(tmp_path: Path) -> None:
    stored = zarr.create_array(tmp_path / "he.zarr", data=PIXELS, chunks=(3, 64, 64))
    tiles = Tiles(da.from_zarr(stored))
    assert isinstance(tiles._pixels, zarr.Array)
    np.testing.assert_array_equal(whole(tiles), PIXELS)


RECIPES: dict[str, Any] = {
    "inverted": lambda lazy: 255 - lazy,
    "mirrored": lambda lazy: lazy[:, ::-1],
    "other colours": lambda lazy: lazy[::-1],
    "rechunked": lambda lazy: lazy.rechunk((3, 50, 77)),
    "as it is": lambda lazy: lazy,
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("source", ["store", "one chunk", "chunks"])
def test_what_is_computed_on_the_way_is_not_lost(source: str, coarse: bool, recipe: Any, tmp_path: Path) -> None:
    if source == "store":
        lazy = da.from_zarr(zarr.create_array(tmp_path / "he.zarr", data=PIXELS, chunks=(3, 64, 64)))
    else:
        lazy = da.from_array(PIXELS, chunks=-1 if source == "one chunk" else (3, 64, 64))
    level = recipe(lazy)
    tiles = Tiles(level, levels=(lazy, level) if coarse else ())
    np.testing.assert_array_equal(whole(tiles), recipe(PIXELS) if recipe is not RECIPES["rechunked"] else PIXELS)


def test_a_recipe_is_computed_once_only_where_that_is_wanted() -> None:
    # a pyramid in memory: each coarse pixel is a mean of fine ones
    lazy = da.from_array(PIXELS, chunks=(3, 20, 20))
    coarse = da.coarsen(np.mean, lazy, {1: 2, 2: 2}).rechunk((3, 64, 64)).astype(np.uint8)
    expected = coarse.compute(scheduler="synchronous")
    for levels, held in (((coarse,), False), ((lazy, coarse), True)):
        tiles = Tiles(coarse, levels=levels)
        assert isinstance(tiles._pixels, np.ndarray) == held
        np.testing.assert_array_equal(whole(tiles), expected)

"""Crops from an image pyramid: level by µm/px, each tile read once, sub-pixel and anti-aliased.

Pixels follow SpatialData: pixel (0, 0) covers the square [0, 1) × [0, 1), its middle lies at (0.5, 0.5). A crop of side
s around (x, y) covers [x − s/2, x + s/2) × [y − s/2, y + s/2), whole pixels or not.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from stcontrast.pp._crops.levels import with_coarse_levels
from stcontrast.pp._crops.tiles import Tiles, background_color

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from stcontrast._reading import SlideImage

__all__ = ["iter_batches", "iter_crops"]

# threads that read tiles; a remote store needs several reads at once
READERS: Final = 4
# tiles read ahead of the crop that is cut
AHEAD: Final = 8
# threads that resample, at most
CUTTERS: Final = 8
# spots whose crops are being cut
CUT_AHEAD: Final = 16
# bytes that all tiles in memory may take; a wider slide is read in vertical bands
HELD_BYTES: Final = 2**28
# spots whose tiles are planned at once; a row of tiles between two such groups is read twice
PLANNED: Final = 2**16


@dataclass(frozen=True, slots=True)
class Field:
    """Windows of one field of view in the level that it is cut from.

    Attributes
    ----------
    level
        Index of the level.
    low, high
        Corners of the windows (n_spots, 2), x and y, in pixels of the level.
    start, stop
        The whole pixels that the filter reaches (n_spots, 2).
    """

    level: int
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    start: NDArray[np.int_]
    stop: NDArray[np.int_]

    @classmethod
    def of(cls, image: SlideImage, centers: NDArray[np.float64], side: float, size_px: int, level: int) -> Field:
        """The windows around centres (n_spots, 2), x and y, in pixels of the finest level."""
        factor = image.downsampling[level]
        on_level = (centers - image.origin(level)) / factor
        low, high = on_level - side / 2 / factor, on_level + side / 2 / factor
        # the filter reaches one output pixel beyond the window, or one source pixel when it enlarges
        reach = int(np.ceil(max(1.0, side / factor / size_px))) + 1
        return cls(level, low, high, np.floor(low).astype(int) - reach, np.ceil(high).astype(int) + reach)


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of a level and the tiles that it lies on: y, x and pixels (3, height, width) of each."""

    start: list[int]
    stop: list[int]
    tiles: list[tuple[int, int, Future[NDArray[np.uint8]]]]
    background: NDArray[np.uint8] | None

    def pixels(self) -> NDArray[np.uint8]:
        """Its pixels (height, width, 3), the slide's background where it leaves the image."""
        (left, top), (right, bottom) = self.start, self.stop
        canvas = np.empty((bottom - top, right - left, 3), dtype=np.uint8)
        if self.background is not None:
            canvas[:] = self.background
        for y, x, future in self.tiles:
            tile = future.result()
            y0, x0 = max(y, top), max(x, left)
            y1, x1 = min(y + tile.shape[1], bottom), min(x + tile.shape[2], right)
            to, of = canvas[y0 - top : y1 - top, x0 - left : x1 - left], tile[:, y0 - y : y1 - y, x0 - x : x1 - x]
            for channel in range(3):
                # four times as fast as to turn the axes of the block
                to[..., channel] = of[channel]
        return canvas


def iter_crops(
    image: SlideImage, centers: NDArray[np.float64], *, side: float, size_px: int
) -> Generator[tuple[int, NDArray[np.uint8]]]:
    """Cut squares around points, in the order in which the image is stored.

    Parameters
    ----------
    image
        The pyramid.
    centers
        x, y in pixels of its finest level, shape (n_spots, 2).
    side
        Side of the square in pixels of the finest level.
    size_px
        Side of the crop that is returned.

    Yields
    ------
    Position of the spot in `centers` and its crop (size_px, size_px, 3), uint8 RGB. The window is placed to a
    fraction of a pixel and averaged down with a triangle filter; beyond the border lies the slide's background.
    """
    for i, (crop,) in _walk(image, centers, (side,), size_px):
        yield i, crop


def iter_batches(
    image: SlideImage, centers: NDArray[np.float64], *, sides: Sequence[float], size_px: int, batch: int
) -> Generator[tuple[NDArray[np.intp], NDArray[np.uint8]]]:
    """Cut squares of several sides around points in one pass, many at a time.

    Parameters
    ----------
    image, centers, size_px
        As in :func:`iter_crops`.
    sides
        Sides of the squares in pixels of the finest level.
    batch
        Spots of a batch; the last one may have fewer.

    Yields
    ------
    Positions of the spots (n,) and their crops (n, n_sides, size_px, size_px, 3).
    """
    shape = (min(batch, len(centers)), len(sides), size_px, size_px, 3)
    rows, crops = np.empty(shape[0], dtype=np.intp), np.empty(shape, dtype=np.uint8)
    filled = 0
    for i, of_spot in _walk(image, centers, sides, size_px):
        rows[filled] = i
        for field, crop in enumerate(of_spot):
            crops[filled, field] = crop
        filled += 1
        if filled == shape[0]:
            yield rows, crops
            # the last batch may still be in use
            rows, crops, filled = np.empty_like(rows), np.empty_like(crops), 0
    if filled:
        yield rows[:filled], crops[:filled]


def _walk(
    image: SlideImage, centers: NDArray[np.float64], sides: Sequence[float], size_px: int
) -> Iterator[tuple[int, list[NDArray[np.uint8]]]]:
    """Position of a spot and its crops, one for each side, spots in the order of the tiles."""
    if len(centers) == 0:
        return
    pyramid, levels = with_coarse_levels(image, sides, size_px)
    tiles = {level: Tiles(pyramid.levels[level], computed=level > 0) for level in set(levels)}
    with (
        ThreadPoolExecutor(READERS, thread_name_prefix="stcontrast-tiles") as readers,
        ThreadPoolExecutor(min(os.cpu_count() or 1, CUTTERS), thread_name_prefix="stcontrast-crops") as cutters,
    ):
        for order in _stretches(pyramid, centers, max(sides), tiles):
            fields = [
                Field.of(pyramid, centers[order], side, size_px, level)
                for side, level in zip(sides, levels, strict=True)
            ]
            with closing(_Held(image, fields, tiles, readers)) as held:
                cuts: deque[tuple[int, Future[list[NDArray[np.uint8]]]]] = deque()
                for step, i in enumerate(order.tolist()):
                    windows = held.windows(step)
                    cuts.append((i, cutters.submit(_cut, fields, step, windows, size_px)))
                    if len(cuts) > CUT_AHEAD:
                        position, cut = cuts.popleft()
                        yield position, cut.result()
                for position, cut in cuts:
                    yield position, cut.result()


def _cut(fields: Sequence[Field], step: int, windows: Sequence[Window], size_px: int) -> list[NDArray[np.uint8]]:
    crops = []
    for field, window in zip(fields, windows, strict=True):
        box = (*(field.low[step] - field.start[step]), *(field.high[step] - field.start[step]))
        picture = Image.fromarray(window.pixels())
        crops.append(np.asarray(picture.resize((size_px, size_px), Image.Resampling.BILINEAR, box=box)))
    return crops


def _stretches(
    image: SlideImage, centers: NDArray[np.float64], side: float, tiles: dict[int, Tiles]
) -> Iterator[NDArray[np.intp]]:
    """Positions of the spots in the order in which they are cut, as many as are planned at once.

    A row of tiles after another; where the tiles under such a row are too many to hold, in vertical bands.
    """
    left, width = centers[:, 0].min(), np.ptp(centers[:, 0])
    front = sum(
        3 * ((width + side) / image.downsampling[level] + of.side) * (side / image.downsampling[level] + 2 * of.side)
        for level, of in tiles.items()
    )
    n_bands = int(np.ceil(front / HELD_BYTES))
    band = np.minimum((centers[:, 0] - left) / max(width, 1e-9) * n_bands, n_bands - 1).astype(int)
    finest = min(tiles, key=lambda level: image.downsampling[level])
    row = np.floor(centers[:, 1] / image.downsampling[finest] / tiles[finest].side)
    for code in range(n_bands):
        members = np.flatnonzero(band == code)
        order = members[np.lexsort((centers[members, 0], row[members]))]
        for start in range(0, len(order), PLANNED):
            yield order[start : start + PLANNED]


class _Held:
    """Tiles of a walk: read ahead in the order of use, dropped after their last use."""

    def __init__(
        self, image: SlideImage, fields: Sequence[Field], tiles: dict[int, Tiles], pool: ThreadPoolExecutor
    ) -> None:
        self._image, self._fields, self._tiles, self._pool = image, fields, tiles, pool
        self._background: NDArray[np.uint8] | None = None
        self._futures: dict[tuple[int, int, int], Future[NDArray[np.uint8]]] = {}
        uses = [use for level, of in tiles.items() for use in _uses(fields, level, of)]
        self._coming = deque(sorted((first, key) for first, _, key in uses))
        self._going = deque(sorted((last, key) for _, last, key in uses))
        # first uses of the tiles that are read ahead
        self._early: deque[int] = deque()

    def _advance(self, step: int) -> None:
        """Drop tiles that are no longer needed; read the tiles of this step, and some ahead."""
        while self._going and self._going[0][0] < step:
            del self._futures[self._going.popleft()[1]]
        while self._early and self._early[0] <= step:
            self._early.popleft()
        while self._coming and (self._coming[0][0] <= step or len(self._early) < AHEAD):
            first, key = self._coming.popleft()
            level, row, column = key
            self._futures[key] = self._pool.submit(self._tiles[level].read, row, column)
            if first > step:
                self._early.append(first)

    def windows(self, step: int) -> list[Window]:
        """What the crops of a step are cut from, one for each field."""
        self._advance(step)
        return [self._window(field, step) for field in self._fields]

    def _window(self, field: Field, step: int) -> Window:
        tiles = self._tiles[field.level]
        start, stop = field.start[step], field.stop[step]
        background = None
        if (start < 0).any() or (stop > tiles.shape[::-1]).any():
            if self._background is None:
                self._background = background_color(self._image)
            background = self._background
        first, last, touches = tiles.spans(start[None], stop[None])
        (top, left), (bottom, right) = first[0].tolist(), (last[0] + touches[0]).tolist()
        parts = [
            (*tiles.corner(row, column), self._futures[field.level, row, column])
            for row in range(top, bottom)
            for column in range(left, right)
        ]
        return Window(start.tolist(), stop.tolist(), parts, background)

    def close(self) -> None:
        """Read nothing more."""
        for future in self._futures.values():
            future.cancel()
        self._futures.clear()


def _uses(fields: Sequence[Field], level: int, tiles: Tiles) -> Iterator[tuple[int, int, tuple[int, int, int]]]:
    """First step, last step and place (level, row, column) of every tile of a level that windows touch."""
    codes, steps = [], []
    for field in fields:
        if field.level != level:
            continue
        first, last, touches = tiles.spans(field.start, field.stop)
        step = np.flatnonzero(touches)
        first, n = first[step], (last - first)[step] + 1
        n_tiles = n.prod(axis=1)
        window = np.repeat(np.arange(len(step)), n_tiles)
        # position of the tile within its window
        place = np.arange(len(window)) - np.repeat(n_tiles.cumsum() - n_tiles, n_tiles)
        row, column = np.divmod(place, n[window, 1])
        codes.append((first[window, 0] + row) * tiles.grid[1] + first[window, 1] + column)
        steps.append(step[window])
    code, step = np.concatenate(codes), np.concatenate(steps)
    order = np.lexsort((step, code))
    code, step = code[order], step[order]
    begins = np.flatnonzero(np.diff(code, prepend=-1))
    ends = np.append(begins, len(code))[1:] - 1
    for of_tile, begin, end in zip(code[begins].tolist(), begins, ends, strict=True):
        yield int(step[begin]), int(step[end]), (level, *divmod(of_tile, tiles.grid[1]))

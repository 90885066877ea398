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
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from stcontrast.pp._crops.levels import level_and_factor
from stcontrast.pp._crops.tiles import Averaged, Tiles, background_color

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
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
# spots that a thread takes at once, and groups of them whose crops are being cut
CUT_TOGETHER: Final = 8
CUT_AHEAD: Final = 3
# bytes that all tiles in memory may take (four a pixel); a wider slide is read in vertical bands
HELD_BYTES: Final = 3 * 2**27
PIXEL_BYTES: Final = 4
# spots whose tiles are planned at once; a row of tiles between two such groups is read twice
PLANNED: Final = 2**16
# Pillow's weights have so many bits
WEIGHT_BITS: Final = 22
# windows of one pixel for one of the output, up to this share
SAME: Final = 1e-6

# a level of the pyramid, and the factor by which it is averaged on the way
type Level = tuple[int, int]
# a tile: its level, row and column
type Place = tuple[Level, int, int]


@dataclass(frozen=True, slots=True)
class Field:
    """Windows of one field of view in the level that it is cut from.

    Attributes
    ----------
    level
        The level, and the factor by which it is averaged.
    low, high
        Corners of the windows (n_spots, 2), x and y, in pixels of the level.
    start, stop
        The whole pixels that the filter reaches (n_spots, 2).
    shifted
        Whether crops have the level's own resolution, so that they need no more than a shift.
    """

    level: Level
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    start: NDArray[np.int_]
    stop: NDArray[np.int_]
    shifted: bool

    @classmethod
    def of(cls, image: SlideImage, centers: NDArray[np.float64], side: float, size_px: int, level: Level) -> Field:
        """The windows around centres (n_spots, 2), x and y, in pixels of the finest level."""
        factor = _downsampling(image, level)
        on_level = (centers - image.origin(level[0])) / factor
        width = side / factor
        low, high = on_level - width / 2, on_level + width / 2
        # the filter reaches one output pixel beyond the window, or one source pixel when it enlarges
        reach = int(np.ceil(max(1.0, width / size_px))) + 1
        start, stop = np.floor(low).astype(int) - reach, np.ceil(high).astype(int) + reach
        return cls(level, low, high, start, stop, abs(width / size_px - 1) < SAME)


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of a level and the tiles that it lies on: y, x and picture of each."""

    start: list[int]
    stop: list[int]
    tiles: list[tuple[int, int, Future[Image.Image]]]
    background: NDArray[np.uint8] | None

    def picture(self) -> Image.Image:
        """Its pixels, the slide's background where it leaves the image."""
        (left, top), (right, bottom) = self.start, self.stop
        if len(self.tiles) == 1 and self.background is None:
            ((y, x, future),) = self.tiles
            return future.result().crop((left - x, top - y, right - x, bottom - y))
        color = 0 if self.background is None else tuple(self.background.tolist())
        canvas = Image.new("RGB", (right - left, bottom - top), color)
        for y, x, future in self.tiles:
            tile = future.result()
            y0, x0 = max(y, top), max(x, left)
            y1, x1 = min(y + tile.height, bottom), min(x + tile.width, right)
            canvas.paste(tile.crop((x0 - x, y0 - y, x1 - x, y1 - y)), (x0 - left, y0 - top))
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
    levels = [level_and_factor(image, side, size_px) for side in sides]
    tiles = _tiles(image, levels)
    with (
        ThreadPoolExecutor(READERS, thread_name_prefix="stcontrast-tiles") as readers,
        ThreadPoolExecutor(min(os.cpu_count() or 1, CUTTERS), thread_name_prefix="stcontrast-crops") as cutters,
    ):
        for order in _stretches(image, centers, max(sides), levels, tiles):
            fields = [
                Field.of(image, centers[order], side, size_px, level) for side, level in zip(sides, levels, strict=True)
            ]
            with closing(_Held(image, fields, tiles, readers)) as held:
                cuts: deque[tuple[list[int], Future[list[list[NDArray[np.uint8]]]]]] = deque()
                for start in range(0, len(order), CUT_TOGETHER):
                    positions = order[start : start + CUT_TOGETHER].tolist()
                    windows = [held.windows(start + k) for k in range(len(positions))]
                    cuts.append((positions, cutters.submit(_cut, fields, start, windows, size_px)))
                    if len(cuts) > CUT_AHEAD:
                        positions, cut = cuts.popleft()
                        yield from zip(positions, cut.result(), strict=True)
                for positions, cut in cuts:
                    yield from zip(positions, cut.result(), strict=True)


def _downsampling(image: SlideImage, level: Level) -> float:
    index, factor = level
    return image.downsampling[index] * factor


def _tiles(image: SlideImage, levels: Sequence[Level]) -> dict[Level, Tiles]:
    """The tiles of every level that is cut from, or that another one is averaged from."""
    tiles: dict[Level, Tiles] = {
        (index, 1): Tiles(image.levels[index], levels=image.levels) for index, _ in set(levels)
    }
    for index, factor in levels:
        if factor > 1:
            tiles[index, factor] = Averaged(tiles[index, 1], factor)
    return tiles


def _cut(
    fields: Sequence[Field], start: int, windows: Sequence[Sequence[Window]], size_px: int
) -> list[list[NDArray[np.uint8]]]:
    """The crops of the steps from `start` on, of each one for every field."""
    return [
        [_crop(field, start + k, window, size_px) for field, window in zip(fields, of_step, strict=True)]
        for k, of_step in enumerate(windows)
    ]


def _crop(field: Field, step: int, window: Window, size_px: int) -> NDArray[np.uint8]:
    low, high = field.low[step] - field.start[step], field.high[step] - field.start[step]
    picture = window.picture()
    if field.shifted:
        return _shifted(picture, float(low[0]), float(low[1]), size_px)
    return np.asarray(picture.resize((size_px, size_px), Image.Resampling.BILINEAR, box=(*low, *high)))


def _shifted(picture: Image.Image, x: float, y: float, size_px: int) -> NDArray[np.uint8]:
    """A square from x, y on, at the picture's own resolution: Pillow's bilinear filter in half its time."""
    # Pillow has boxes in single precision
    x, y = float(np.float32(x)), float(np.float32(y))
    left, top = int(x), int(y)
    picture = picture.crop((left, top, left + size_px + 1, top + size_px + 1))
    pixels = np.frombuffer(picture.tobytes(), dtype=np.uint8).reshape(size_px + 1, 3 * (size_px + 1))
    along_x = _between(pixels[:, :-3], pixels[:, 3:], x - left)
    return _between(along_x[:-1], along_x[1:], y - top).astype(np.uint8).reshape(size_px, size_px, 3)


def _between(this: NDArray[Any], following: NDArray[Any], fraction: float) -> NDArray[Any]:
    """Pixels a fraction of the way to the ones that follow, rounded."""
    weight = int(0.5 + fraction * 2**WEIGHT_BITS)
    if weight == 0:
        return this
    # one array, changed in place: half the time
    mixed = np.subtract(following, this, dtype=np.int32)
    mixed *= weight
    mixed += 2 ** (WEIGHT_BITS - 1)
    mixed >>= WEIGHT_BITS
    mixed += this
    return mixed


def _stretches(
    image: SlideImage,
    centers: NDArray[np.float64],
    side: float,
    levels: Sequence[Level],
    tiles: Mapping[Level, Tiles],
) -> Iterator[NDArray[np.intp]]:
    """Positions of the spots in the order in which they are cut, as many as are planned at once.

    A row of tiles after another; where the tiles under such a row are too many to hold, in vertical bands.
    """
    left, width = centers[:, 0].min(), np.ptp(centers[:, 0])
    front = 0.0
    for level, of in tiles.items():
        factor = _downsampling(image, level)
        # what is only averaged is soon dropped
        height = side / factor if level in levels else 0.0
        front += PIXEL_BYTES * ((width + side) / factor + of.side) * (height + 2 * of.side)
    n_bands = int(np.ceil(front / HELD_BYTES))
    band = np.minimum((centers[:, 0] - left) / max(width, 1e-9) * n_bands, n_bands - 1).astype(int)
    finest = min(tiles, key=lambda level: _downsampling(image, level))
    row = np.floor(centers[:, 1] / _downsampling(image, finest) / tiles[finest].side)
    for code in range(n_bands):
        members = np.flatnonzero(band == code)
        order = members[np.lexsort((centers[members, 0], row[members]))]
        for start in range(0, len(order), PLANNED):
            yield order[start : start + PLANNED]


class _Held:
    """Tiles of a walk: read ahead in the order of use, dropped after their last use."""

    def __init__(
        self, image: SlideImage, fields: Sequence[Field], tiles: Mapping[Level, Tiles], pool: ThreadPoolExecutor
    ) -> None:
        self._image, self._fields, self._tiles, self._pool = image, fields, tiles, pool
        self._background: NDArray[np.uint8] | None = None
        self._futures: dict[Place, Future[Image.Image]] = {}
        # for every field and step: the tiles (first and last row and column), and whether the window leaves the image
        self._spans: list[NDArray[np.intp]] = []
        self._leaves: list[NDArray[np.bool_]] = []
        uses: dict[Place, tuple[int, int]] = {}
        for field in fields:
            of = tiles[field.level]
            first, last, touches = of.spans(field.start, field.stop)
            self._spans.append(np.hstack([first, last + 1]) * touches[:, None])
            self._leaves.append(((field.start < 0) | (field.stop > of.shape[::-1])).any(axis=1))
            _add_uses(uses, field.level, of, (first[touches], last[touches]), np.flatnonzero(touches))
        # a tile that is averaged is needed when the coarser one is made
        for (level, row, column), (begin, _) in list(uses.items()):
            of = tiles[level]
            if isinstance(of, Averaged):
                first, last, _ = of.source.spans(*(np.array([corner]) for corner in of.rectangle(row, column)))
                _add_uses(uses, (level[0], 1), of.source, (first, last), np.array([begin]))
        # at the same step, tiles that are averaged come before those made of them: a thread waits for what has begun
        self._coming = deque(sorted((first, place) for place, (first, _) in uses.items()))
        self._going = deque(sorted((last, place) for place, (_, last) in uses.items()))
        # first uses of the tiles that are read ahead
        self._early: deque[int] = deque()

    def _advance(self, step: int) -> None:
        """Drop tiles that are no longer needed; read the tiles of this step, and some ahead."""
        while self._going and self._going[0][0] < step:
            del self._futures[self._going.popleft()[1]]
        while self._early and self._early[0] <= step:
            self._early.popleft()
        while self._coming and (self._coming[0][0] <= step or len(self._early) < AHEAD):
            first, place = self._coming.popleft()
            self._futures[place] = self._started(*place)
            if first > step:
                self._early.append(first)

    def _started(self, level: Level, row: int, column: int) -> Future[Image.Image]:
        tiles = self._tiles[level]
        if not isinstance(tiles, Averaged):
            return self._pool.submit(_picture, tiles, row, column)
        start, stop = tiles.rectangle(row, column)
        first, last, _ = tiles.source.spans(np.array([start]), np.array([stop]))
        parts = self._parts((level[0], 1), [*first[0].tolist(), *(last[0] + 1).tolist()])
        return self._pool.submit(_averaged, Window(start, stop, parts, None), tiles.factor)

    def windows(self, step: int) -> list[Window]:
        """What the crops of a step are cut from, one for each field."""
        self._advance(step)
        return [self._window(number, step) for number in range(len(self._fields))]

    def _window(self, number: int, step: int) -> Window:
        field = self._fields[number]
        background = None
        if self._leaves[number][step]:
            if self._background is None:
                self._background = background_color(self._image)
            background = self._background
        parts = self._parts(field.level, self._spans[number][step].tolist())
        return Window(field.start[step].tolist(), field.stop[step].tolist(), parts, background)

    def _parts(self, level: Level, span: list[int]) -> list[tuple[int, int, Future[Image.Image]]]:
        tiles = self._tiles[level]
        top, left, bottom, right = span
        return [
            (*tiles.corner(row, column), self._futures[level, row, column])
            for row in range(top, bottom)
            for column in range(left, right)
        ]

    def close(self) -> None:
        """Read nothing more."""
        for future in self._futures.values():
            future.cancel()
        self._futures.clear()


def _picture(tiles: Tiles, row: int, column: int) -> Image.Image:
    return Image.merge("RGB", [Image.fromarray(channel) for channel in tiles.read(row, column)])


def _averaged(window: Window, factor: int) -> Image.Image:
    return window.picture().reduce(factor)


def _add_uses(
    uses: dict[Place, tuple[int, int]],
    level: Level,
    tiles: Tiles,
    span: tuple[NDArray[np.intp], NDArray[np.intp]],
    steps: NDArray[np.intp],
) -> None:
    """Add the first and last step at which a tile is needed: `span` has first and last tile (n, 2) for the steps (n,)."""
    first, last = span
    n = (last - first) + 1
    n_tiles = n.prod(axis=1)
    window = np.repeat(np.arange(len(steps)), n_tiles)
    # position of the tile within its window
    place = np.arange(len(window)) - np.repeat(n_tiles.cumsum() - n_tiles, n_tiles)
    row, column = np.divmod(place, n[window, 1])
    code = (first[window, 0] + row) * tiles.grid[1] + first[window, 1] + column
    # steps rise: the first entry of a tile is its first step
    found, begin = np.unique(code, return_index=True)
    _, end = np.unique(code[::-1], return_index=True)
    step = steps[window]
    for of_tile, low, high in zip(found.tolist(), step[begin].tolist(), step[::-1][end].tolist(), strict=True):
        key = (level, *divmod(of_tile, tiles.grid[1]))
        begins, ends = uses.get(key, (low, high))
        uses[key] = min(begins, low), max(ends, high)

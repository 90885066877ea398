"""Tiles of one level of a pyramid, read a chunk at a time on threads; and the colour of the slide without tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast.pp._crops.levels import HERE, computed_once, stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from stcontrast._reading import SlideImage

__all__ = ["Averaged", "Tiles", "background_color"]

# several smaller chunks are read together: every read has a cost
TILE_PX: Final = 1024

# of the image's frame, which is read and no more
THICKNESS_PX: Final = 8
# a frame of one colour is empty glass, or a mask
SPREAD: Final = 12
LIGHTEST: Final = 0.1


class Tiles:
    """A level (3, height, width) in rectangles that follow its chunks.

    Parameters
    ----------
    pixels
        Lazy array (3, height, width), uint8.
    levels
        The pyramid that it belongs to.

    Attributes
    ----------
    edges
        Where tiles begin and end along y and along x.
    """

    def __init__(self, pixels: Any, *, levels: Sequence[Any] = ()) -> None:
        self._pixels = stored(pixels)
        if self._pixels is pixels:
            self._pixels = computed_once(pixels, levels)
        self.shape: tuple[int, int] = (int(pixels.shape[1]), int(pixels.shape[2]))
        chunks: Any = [(size,) for size in self.shape]
        if isinstance(self._pixels, np.ndarray):
            chunks = [_evenly(size) for size in self.shape]
        elif hasattr(pixels, "chunks"):
            chunks = pixels.chunks[1:]
        self.edges = tuple(_merged(sizes) for sizes in chunks)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of tiles along y and along x."""
        return len(self.edges[0]) - 1, len(self.edges[1]) - 1

    @property
    def side(self) -> int:
        """Side of the largest tile."""
        return max(int(np.diff(edges).max()) for edges in self.edges)

    def spans(
        self, start: NDArray[np.int_], stop: NDArray[np.int_]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
        """Which tiles rectangles touch.

        Parameters
        ----------
        start, stop
            Corners (n, 2), x and y; they may lie beyond the border.

        Returns
        -------
        First and last tile (n, 2), y and x; and whether a rectangle touches the image at all.
        """
        first, last = np.empty((len(start), 2), dtype=np.intp), np.empty((len(start), 2), dtype=np.intp)
        touches = np.ones(len(start), dtype=bool)
        for axis, edges in enumerate(self.edges):
            low, high = start[:, 1 - axis], stop[:, 1 - axis]
            touches &= (high > 0) & (low < edges[-1])
            first[:, axis] = np.searchsorted(edges, np.clip(low, 0, edges[-1] - 1), side="right") - 1
            last[:, axis] = np.searchsorted(edges, np.clip(high - 1, 0, edges[-1] - 1), side="right") - 1
        return first, last, touches

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Where a tile begins: y, x."""
        return int(self.edges[0][row]), int(self.edges[1][column])

    def read(self, row: int, column: int) -> NDArray[np.uint8]:
        """Pixels (3, height, width) of a tile."""
        (y0, y1), (x0, x1) = self.edges[0][row : row + 2], self.edges[1][column : column + 2]
        return self.window(slice(int(y0), int(y1)), slice(int(x0), int(x1)))

    def window(self, y: slice, x: slice) -> NDArray[np.uint8]:
        """Pixels (3, height, width) of any rectangle within the image."""
        block = self._pixels[:, y, x]
        if hasattr(block, "compute"):
            block = block.compute(scheduler=HERE)
        return np.asarray(block)


class Averaged(Tiles):
    """A level averaged by a whole factor: its tiles lie on those of the level, which are averaged one by one.

    Parameters
    ----------
    source
        Tiles of the level.
    factor
        Pixels of the level, along y and along x, for one pixel; what is left over at the border is averaged alone.
    """

    def __init__(self, source: Tiles, factor: int) -> None:
        self.source, self.factor = source, factor
        height, width = source.shape
        self.shape = -(-height // factor), -(-width // factor)
        self.edges = tuple(
            np.unique([*(edges[:-1] // factor), size]) for edges, size in zip(source.edges, self.shape, strict=True)
        )

    def rectangle(self, row: int, column: int) -> tuple[list[int], list[int]]:
        """Corners, x and y, of what a tile is averaged from, in pixels of the level."""
        (y0, y1), (x0, x1) = self.edges[0][row : row + 2], self.edges[1][column : column + 2]
        height, width = self.source.shape
        stop = [min(int(x1) * self.factor, width), min(int(y1) * self.factor, height)]
        return [int(x0) * self.factor, int(y0) * self.factor], stop


def _evenly(size: int) -> tuple[int, ...]:
    return tuple(min(TILE_PX, size - start) for start in range(0, size, TILE_PX))


def _merged(sizes: Any) -> NDArray[np.intp]:
    """Edges of chunks, neighbours joined up to the side of a tile."""
    edges = [0]
    stop = 0
    for size in sizes:
        if stop > edges[-1] and stop + size - edges[-1] > TILE_PX:
            edges.append(stop)
        stop += int(size)
    return np.array([*edges, stop], dtype=np.intp)


def background_color(image: SlideImage) -> NDArray[np.uint8]:
    """Colour of the slide where there is no tissue.

    It is looked for in the frame of the coarsest level, eight pixels wide: the median, where most of the frame has that
    colour (glass, or the black of a masked image); else, where tissue is cut off, the median of its lightest tenth.

    Parameters
    ----------
    image
        The pyramid.

    Returns
    -------
    Red, green and blue (3,).
    """
    level = int(np.argmax(image.downsampling))
    coarsest = Tiles(image.levels[level], levels=image.levels)
    frame = np.concatenate([coarsest.window(y, x).reshape(3, -1) for y, x in _pieces(*coarsest.shape)], axis=1)
    median = np.median(frame, axis=1)
    if (np.abs(frame - median[:, None]).max(axis=0) <= SPREAD).mean() <= 0.5:
        lightness = frame.sum(axis=0, dtype=np.int64)
        median = np.median(frame[:, lightness >= np.quantile(lightness, 1 - LIGHTEST)], axis=1)
    return np.rint(median).astype(np.uint8)


def _pieces(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """The frame in pieces no longer than a tile: y and x."""
    thick_y, thick_x = min(THICKNESS_PX, height), min(THICKNESS_PX, width)
    for start in range(0, width, TILE_PX):
        along = slice(start, min(start + TILE_PX, width))
        yield slice(0, thick_y), along
        yield slice(height - thick_y, height), along
    for start in range(0, height, TILE_PX):
        along = slice(start, min(start + TILE_PX, height))
        yield along, slice(0, thick_x)
        yield along, slice(width - thick_x, width)

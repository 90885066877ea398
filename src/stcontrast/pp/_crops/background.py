"""The colour of a slide where there is no tissue: what crops show beyond the border of the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast.pp._crops.tiles import TILE_PX, Tiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from stcontrast._reading import SlideImage

__all__ = ["background_color"]

# of the image's frame, which is read and no more
THICKNESS_PX: Final = 8
# a frame of one colour is empty glass, or a mask
SPREAD: Final = 12
LIGHTEST: Final = 0.1


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
    coarsest = Tiles(image.levels[level], computed=level > 0)
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

"""Crops from an image pyramid: level by µm/px, blocks in chunk order, sub-pixel and anti-aliased."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from stcontrast._elements import SlideImage

__all__ = ["BACKGROUND", "iter_crops", "pick_level"]

# empty glass; what lies beyond the image's border looks the same
BACKGROUND: Final = 255
# side of the blocks that are read at once: a few chunks, some 12 MiB of RGB
BLOCK_PX: Final = 2048
TASKS_A_CHUNK: Final = 8
# a larger level stays lazy: slow to read, but bounded in memory
COMPUTED_BYTES: Final = 2**30


def pick_level(image: SlideImage, pixels_per_output: float) -> int:
    """The coarsest level of the pyramid that still has one pixel or more for every pixel of the output."""
    fitting = [i for i, factor in enumerate(image.downsampling) if factor <= pixels_per_output * (1 + 1e-6)]
    return max(fitting, default=0, key=lambda i: image.downsampling[i])


def iter_crops(
    image: SlideImage, centers: NDArray[np.float64], *, side: float, size_px: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
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
    fraction of a pixel and averaged down with a triangle filter; beyond the border lies white.
    """
    level = pick_level(image, side / size_px)
    pixels, factor = image.levels[level], image.downsampling[level]
    if level > 0:
        pixels = _computed_once(pixels)
    low = (centers - side / 2) / factor
    high = (centers + side / 2) / factor
    # the filter reaches one output pixel beyond the window, or one source pixel when it enlarges
    reach = int(np.ceil(max(1.0, side / factor / size_px))) + 1
    starts, stops = np.floor(low).astype(int) - reach, np.ceil(high).astype(int) + reach
    blocks = np.floor(centers / factor / BLOCK_PX).astype(int)
    for block in np.unique(blocks[:, ::-1], axis=0)[:, ::-1]:
        members = np.flatnonzero((blocks == block).all(axis=1))
        start, stop = starts[members].min(axis=0), stops[members].max(axis=0)
        canvas = _read(pixels, start, stop)
        for i in members:
            (x0, y0), (x1, y1) = starts[i] - start, stops[i] - start
            window = Image.fromarray(canvas[y0:y1, x0:x1])
            box = (*(low[i] - starts[i]), *(high[i] - starts[i]))
            yield int(i), np.asarray(window.resize((size_px, size_px), Image.Resampling.BILINEAR, box=box))


def _computed_once(pixels: Any) -> Any:
    """A coarse level that is a recipe, computed; one that is stored, as it is.

    Coarse levels of an image that was parsed in memory are averaged from the finest anew at every read, which takes
    seconds a block. They must be used all the same: the image has to give the same crops before and after it has been
    written to disk. What is read from a store takes a few tasks a chunk, a recipe dozens.
    """
    is_recipe = len(pixels.__dask_graph__()) > TASKS_A_CHUNK * pixels.npartitions
    return pixels.persist() if is_recipe and pixels.nbytes <= COMPUTED_BYTES else pixels


def _read(pixels: Any, start: NDArray[np.int_], stop: NDArray[np.int_]) -> NDArray[np.uint8]:
    """Read a rectangle (x, y) of an array (3, height, width), white where it leaves the image."""
    height, width = pixels.shape[1:]
    inner_start, inner_stop = np.clip(start, 0, (width, height)), np.clip(stop, 0, (width, height))
    canvas = np.full((stop[1] - start[1], stop[0] - start[0], 3), BACKGROUND, dtype=np.uint8)
    (x0, y0), (x1, y1) = inner_start, inner_stop
    if x1 > x0 and y1 > y0:
        block = _as_uint8(np.asarray(pixels[:, y0:y1, x0:x1]))
        canvas[y0 - start[1] : y1 - start[1], x0 - start[0] : x1 - start[0]] = np.moveaxis(block, 0, -1)
    return canvas


def _as_uint8(block: NDArray[Any]) -> NDArray[np.uint8]:
    if block.dtype == np.uint8:
        return block
    if block.dtype == np.uint16:
        return (block // 257).astype(np.uint8)
    if np.issubdtype(block.dtype, np.floating):
        # scanpy keeps images as fractions of 1; interpolation may overshoot a little
        if np.nanmax(block, initial=0.0) > 2.0:
            msg = f"A floating RGB image must lie between 0 and 1, found {np.nanmax(block):g}: convert it to uint8."
            raise ValueError(msg)
        return np.clip(np.rint(np.nan_to_num(block, nan=1.0) * 255.0), 0, 255).astype(np.uint8)
    msg = f"An RGB image must be uint8, uint16 or floating (0 to 1), found {block.dtype}."
    raise ValueError(msg)

"""Levels of a pyramid as they are best read: computed once where every read would repeat work, and made where none is there."""

from __future__ import annotations

import logging
import threading
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import dask.array as da
import numpy as np
from dask.core import flatten
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stcontrast._reading import SlideImage

__all__ = ["computed_once", "pick_level", "with_coarse_levels"]

logger = logging.getLogger(__name__)

# bytes of the levels that are held in memory, all together; and of one that is worth it
HELD_BYTES: Final = 4 * 2**30
SMALL_BYTES: Final = 2**20

# a window that is at least so wide (pixels) is cut from a level made for it, if it has so many pixels for one of the output
WIDE_PX: Final = 512
SPARE: Final = 3.0
# pixels for one of the output that are left in a level made: the filter still blends them
LEFT: Final = 1.5
TILE_PX: Final = 1024

# by the id of the lazy array, the one used last at the end; `None` for one that is too large
_held: dict[int, NDArray[Any] | None] = {}
_holding = threading.Lock()


def pick_level(image: SlideImage, pixels_per_output: float) -> int:
    """The coarsest level of the pyramid that still has one pixel or more for every pixel of the output."""
    fitting = [i for i, factor in enumerate(image.downsampling) if factor <= pixels_per_output * (1 + 1e-6)]
    return max(fitting, default=0, key=lambda i: image.downsampling[i])


def computed_once(pixels: Any) -> Any:
    """A lazy array in memory, if parts of it that lie apart share work, so that every read would repeat it.

    A scan that a reader opens as one task is of that kind: each tile would decode all of it. It is held while the lazy
    array lives, at most 4 GiB of such arrays, those used last. One that is larger is returned as it is, with a warning.
    """
    if not hasattr(pixels, "__dask_graph__"):
        return pixels
    if pixels.nbytes < SMALL_BYTES:
        return pixels
    key = id(pixels)
    with _holding:
        if key not in _held:
            if not _shares_work(pixels):
                return pixels
            _held[key] = _in_memory(pixels)
            weakref.finalize(pixels, _held.pop, key, None)
        held = _held[key] = _held.pop(key)
        while sum(0 if item is None else item.nbytes for item in _held.values()) > HELD_BYTES:
            del _held[next(other for other, item in _held.items() if item is not None)]
    return pixels if held is None else held


def _in_memory(pixels: da.Array) -> NDArray[Any] | None:
    if pixels.nbytes <= HELD_BYTES:
        return np.asarray(pixels.compute())
    logger.warning(
        "An image of %.1f GB is computed as a whole for every tile that is read, and is too large to hold in memory. Write "
        "the object to zarr first and read it back (`sdata.write(path)`, `spatialdata.read_zarr(path)`): crops are then cut "
        "many times faster.", pixels.nbytes / 1e9,
    )  # fmt: skip
    return None


def _shares_work(pixels: da.Array) -> bool:
    corners = []
    for place in (0, -1):
        corner = pixels.blocks[:, place, place]
        graph = corner.__dask_graph__().cull(set(flatten(corner.__dask_keys__())))
        corners.append({key for key, node in dict(graph).items() if _is_work(node)})
    return bool(corners[0] & corners[1])


def _is_work(node: Any) -> bool:
    """Whether a node of a graph is computed; others hold data, or refer to another node."""
    return callable(getattr(node, "func", None)) or (isinstance(node, tuple) and bool(node) and callable(node[0]))


def with_coarse_levels(image: SlideImage, sides: Sequence[float], size_px: int) -> tuple[SlideImage, list[int]]:
    """A pyramid with the levels that wide windows are best cut from, and the level of each window.

    Parameters
    ----------
    image
        The pyramid; perhaps one level.
    sides
        Sides of the windows in pixels of the finest level.
    size_px
        Side of the crops.

    Returns
    -------
    The pyramid: where a window of 512 pixels or more has 3 or more for one of the output, one more level, averaged by a
    power of two tile by tile as they are read. And the index of the level for every side, which does not depend on the
    other sides.
    """
    levels, downsampling = list(image.levels), list(image.downsampling)
    origins = [image.origin(level) for level in range(len(levels))]
    made: dict[tuple[int, int], int] = {}
    chosen = []
    for side in sides:
        level = pick_level(image, side / size_px)
        spare = side / size_px / image.downsampling[level]
        if side / image.downsampling[level] < WIDE_PX or spare < SPARE:
            chosen.append(level)
            continue
        factor = 2 ** int(np.log2(spare / LEFT))
        if (level, factor) not in made:
            made[level, factor] = len(levels)
            levels.append(_averaged(computed_once(image.levels[level]), factor))
            downsampling.append(image.downsampling[level] * factor)
            origins.append(image.origin(level))
        chosen.append(made[level, factor])
    return replace(image, levels=tuple(levels), downsampling=tuple(downsampling), origins=tuple(origins)), chosen


def _averaged(pixels: Any, factor: int) -> da.Array:
    """A level (3, height, width), lazily averaged by a whole factor; what is left over at the border is averaged alone."""
    lazy = da.from_array(pixels, chunks=(3, TILE_PX, TILE_PX), name=False) if isinstance(pixels, np.ndarray) else pixels
    uneven = [any(size % factor for size in sizes[:-1]) for sizes in lazy.chunks[1:]]
    whole = max(factor, TILE_PX // factor * factor)
    lazy = lazy.rechunk({0: -1} | {axis + 1: whole for axis, odd in enumerate(uneven) if odd})
    chunks = (lazy.chunks[0], *(tuple(-(-size // factor) for size in sizes) for sizes in lazy.chunks[1:]))
    return lazy.map_blocks(
        _averaged_block, factor=factor, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), dtype=np.uint8)
    )


def _averaged_block(block: NDArray[np.uint8], *, factor: int) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.fromarray(channel).reduce(factor)) for channel in block])

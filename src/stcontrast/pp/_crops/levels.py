"""Levels of a pyramid as they are best read: which one a crop is cut from, and what is computed once for all reads."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

import dask
import numpy as np
from dask.core import flatten

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dask.array as da
    from numpy.typing import NDArray

    from stcontrast._reading import SlideImage

__all__ = ["HERE", "computed_once", "level_and_factor", "pick_level"]

logger = logging.getLogger(__name__)

# bytes of the levels that are held in memory, all together; and of one that is worth it
HELD_BYTES: Final = 4 * 2**30
SMALL_BYTES: Final = 2**20

# in this thread: a worker of a cluster would hand the work to the cluster and wait for it, a forked process for its pool
HERE: Final = "synchronous"

# a narrower window (pixels) is not worth a level of its own
WIDE_PX: Final = 128

# by the id of the lazy array, the one used last at the end; `None` for one that is too large
_held: dict[int, NDArray[Any] | None] = {}
_holding = threading.Lock()


def pick_level(image: SlideImage, pixels_per_output: float) -> int:
    """The coarsest level of the pyramid that still has one pixel or more for every pixel of the output."""
    fitting = [i for i, factor in enumerate(image.downsampling) if factor <= pixels_per_output * (1 + 1e-6)]
    return max(fitting, default=0, key=lambda i: image.downsampling[i])


def level_and_factor(image: SlideImage, side: float, size_px: int) -> tuple[int, int]:
    """What a window is best cut from: a level, and a power of two by which it is averaged before.

    Parameters
    ----------
    image
        The pyramid; perhaps one level.
    side
        Side of the window in pixels of the finest level.
    size_px
        Side of the crop.

    Returns
    -------
    The level of :func:`pick_level` and 1; or, where a window of 128 pixels or more on that level would have 2 or more for
    one of the output, the factor that leaves 1 to 2: the level that a full pyramid would have.
    """
    level = pick_level(image, side / size_px)
    width = side / image.downsampling[level]
    if width < WIDE_PX:
        return level, 1
    return level, 2 ** max(0, int(np.log2(width / size_px * (1 + 1e-6))))


def computed_once(pixels: Any, levels: Sequence[Any] = ()) -> Any:
    """A lazy array in memory, if parts of it that lie apart share work, so that every read would repeat it.

    A scan that a reader opens as one task is of that kind: each tile would decode all of it. It is held while the lazy
    array lives, at most 4 GiB of such arrays, those used last. One that is larger is returned as it is, with a warning.

    Parameters
    ----------
    pixels
        Any array.
    levels
        The pyramid that it belongs to. Levels of that kind are computed together: each of them needs the finest one.
    """
    if not hasattr(pixels, "__dask_graph__"):
        return pixels
    if max(level.nbytes for level in (pixels, *levels)) < SMALL_BYTES:
        return pixels
    key = id(pixels)
    with _holding:
        if key not in _held:
            if not _shares_work(pixels):
                return pixels
            together = [
                level for level in levels if level is pixels or (id(level) not in _held and _shares_work(level))
            ]
            if len(together) > 1 and sum(level.nbytes for level in together) <= HELD_BYTES:
                for level, found in zip(together, dask.compute(*together, scheduler=HERE), strict=True):
                    _hold(level, np.asarray(found))
            else:
                _hold(pixels, _in_memory(pixels))
        held = _held[key] = _held.pop(key)
        while sum(0 if item is None else item.nbytes for item in _held.values()) > HELD_BYTES:
            del _held[next(other for other, item in _held.items() if item is not None)]
    return pixels if held is None else held


def _hold(pixels: da.Array, found: NDArray[Any] | None) -> None:
    _held[id(pixels)] = found
    weakref.finalize(pixels, _held.pop, id(pixels), None)


def _in_memory(pixels: da.Array) -> NDArray[Any] | None:
    if pixels.nbytes <= HELD_BYTES:
        return np.asarray(pixels.compute(scheduler=HERE))
    logger.warning(
        "An image of %.1f GB is computed as a whole for every tile that is read, and is too large to hold in memory. Write "
        "the object to zarr first and read it back (`sdata.write(path)`, `spatialdata.read_zarr(path)`): crops are then cut "
        "many times faster.", pixels.nbytes / 1e9,
    )  # fmt: skip
    return None


def _shares_work(pixels: Any) -> bool:
    if not hasattr(pixels, "__dask_graph__"):
        return False
    corners = []
    for place in (0, -1):
        corner = pixels.blocks[:, place, place]
        graph = corner.__dask_graph__().cull(set(flatten(corner.__dask_keys__())))
        corners.append({key for key, node in dict(graph).items() if _is_work(node)})
    return bool(corners[0] & corners[1])


def _is_work(node: Any) -> bool:
    """Whether a node of a graph is computed; others hold data, or refer to another node."""
    return callable(getattr(node, "func", None)) or (isinstance(node, tuple) and bool(node) and callable(node[0]))

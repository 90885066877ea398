"""Levels of a pyramid as they are best read: which one a crop is cut from, and what is computed once for all reads."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

import dask
import numpy as np
from dask.array.core import slices_from_chunks
from dask.core import flatten
from dask.optimization import cull

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import dask.array as da
    from numpy.typing import NDArray

    from stcontrast._reading import SlideImage

__all__ = ["HERE", "computed_once", "level_and_factor", "pick_level", "stored"]

logger = logging.getLogger(__name__)

# bytes of the levels that are held in memory, all together; and of one that is worth it
HELD_BYTES: Final = 4 * 2**30
SMALL_BYTES: Final = 2**20
# a coarse level of more steps for a chunk is computed as a whole; a larger one stays lazy: slow to read, but bounded in memory
TASKS_A_CHUNK: Final = 8
COMPUTED_BYTES: Final = 2**30
# blocks by which it is seen how a level is made
LOOKED_AT: Final = 3

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
    """A lazy array in memory, if a read of a part of it would repeat the work for the other parts.

    There are two kinds. A scan that a reader opens as one task: each tile would decode all of it. And the coarse levels of
    an image that was parsed in memory, at most 1 GiB each: they are averaged from the finest at every read. (They are used
    nevertheless: an image must give the same crops before and after it is written to disk.) They are held while the lazy
    array lives, at most 4 GiB of such arrays, those used last. A scan that is larger is returned as it is, with a warning.

    Parameters
    ----------
    pixels
        Any array.
    levels
        The pyramid that it belongs to, the finest first. What must be computed of it is computed together.
    """
    if not hasattr(pixels, "__dask_graph__"):
        return pixels
    key = id(pixels)
    with _holding:
        if key not in _held:
            wanted = _wanted(pixels, levels)
            if not wanted:
                return pixels
            if pixels.nbytes > HELD_BYTES:
                logger.warning(
                    "An image of %.1f GB is computed as a whole for every tile that is read, and is too large to hold in "
                    "memory. Write the object to zarr first and read it back (`sdata.write(path)`, "
                    "`spatialdata.read_zarr(path)`): crops are then cut many times faster.", pixels.nbytes / 1e9,
                )  # fmt: skip
                _hold(pixels, None)
            else:
                for level, found in zip(wanted, _computed(wanted, levels[0] if levels else pixels), strict=True):
                    _hold(level, found)
        held = _held[key] = _held.pop(key)
        while sum(0 if item is None else item.nbytes for item in _held.values()) > HELD_BYTES:
            del _held[next(other for other, item in _held.items() if item is not None)]
    return pixels if held is None else held


def _wanted(pixels: da.Array, levels: Sequence[Any]) -> list[da.Array]:
    """What of a pyramid is computed together with one of its levels; nothing where that is best read piece by piece."""
    coarse = any(level is pixels for level in levels[1:])
    if coarse and _is_long(pixels) and not _shares_work(levels[0]):
        found = [level for level in levels[1:] if _is_long(level)]
    elif max(level.nbytes for level in (pixels, *levels)) >= SMALL_BYTES and _shares_work(pixels):
        found = [level for level in levels if _shares_work(level)]
    else:
        return []
    found = [level for level in found if id(level) not in _held]
    together = any(level is pixels for level in found) and sum(level.nbytes for level in found) <= HELD_BYTES
    return found if together else [pixels]


def stored(pixels: Any) -> Any:
    """The stored array behind a lazy array if nothing is computed in between, else the lazy array.

    The graph of every window costs more than to read it.
    """
    if not hasattr(pixels, "__dask_graph__"):
        return pixels
    graph = pixels.__dask_graph__()
    if len(graph.layers) == 2:
        (first, tasks), (last, _) = graph.layers.items()
        # read from a store, or parsed from an array and cut into chunks: nothing is computed in between
        as_it_is = first == f"original-{last}" or (first.startswith("array-") and last.startswith("rechunk-"))
        held = next(iter(tasks.values()))
        if as_it_is and len(tasks) == 1 and getattr(held, "shape", None) == pixels.shape:
            return held
    return pixels


def _computed(levels: Sequence[da.Array], finest: da.Array) -> Iterator[NDArray[Any]]:
    """Levels of a pyramid, finer ones first: each from the one before if it is that one's mean, else by their graphs."""
    before, pixels = finest, _held.get(id(finest))
    if (
        pixels is None
        and _is_made_from(levels[0], finest)
        and finest.nbytes <= COMPUTED_BYTES
        and not _shares_work(finest)
    ):
        pixels = stored(finest)
        pixels = _in_memory(finest) if pixels is finest else np.asarray(pixels)
    for i, level in enumerate(levels):
        found = None if pixels is None else _halved(level, before, pixels)
        if found is None and i:
            yield from map(np.asarray, dask.compute(*levels[i:], scheduler=HERE))
            return
        before, pixels = level, _in_memory(level) if found is None else found
        yield pixels


def _in_memory(level: da.Array) -> NDArray[Any]:
    # nothing can be left out, and to look for it takes longer than to compute the level
    return np.asarray(level.compute(scheduler=HERE, optimize_graph=False))


def _halved(level: da.Array, finer: da.Array, pixels: NDArray[Any]) -> NDArray[Any] | None:
    """A lazy level as means of 2 x 2 pixels of the finer one, as spatialdata makes it: in a tenth of the time of its graph.

    Parameters
    ----------
    level, finer
        Two lazy levels (3, height, width) of a pyramid.
    pixels
        The finer one in memory.

    Returns
    -------
    The level in memory; `None`, if it is something else: the blocks that vary most are compared.
    """
    if not _is_made_from(level, finer):
        return None
    # what the level is made from is there already
    graph = {**dict(level.__dask_graph__()), **{key: pixels[window] for key, window in _blocks(finer)}}
    height, width = level.shape[1:]
    found = np.empty(level.shape, dtype=np.uint8)
    # of an odd number of rows or columns it leaves out the first
    for plane, mean in zip(pixels[:, -2 * height :, -2 * width :], found, strict=True):
        rows = np.add(plane[::2], plane[1::2], dtype=np.uint16)
        mean[:] = (rows[:, ::2] + rows[:, 1::2]) // 4
    # on empty glass all ways to make a level are equal
    telling = sorted(_blocks(level), key=lambda block: float(found[block[1]][..., ::8, ::8].std()))[-LOOKED_AT:]
    for key, window in telling:
        if not np.array_equal(dask.get(cull(graph, key)[0], key), found[window]):
            return None
    return found


def _is_made_from(level: da.Array, finer: Any) -> bool:
    """Whether a lazy level can be the mean of 2 x 2 pixels of a finer one, which is a part of its graph."""
    if level is finer or not hasattr(finer, "__dask_graph__") or not level.dtype == finer.dtype == np.uint8:
        return False
    height, width = finer.shape[1:]
    return (
        level.shape[1:] == (height // 2, width // 2) and next(flatten(finer.__dask_keys__())) in level.__dask_graph__()
    )


def _blocks(level: da.Array) -> list[tuple[Any, tuple[slice, ...]]]:
    """Keys of the blocks of an array, and where they lie."""
    return list(zip(flatten(level.__dask_keys__()), slices_from_chunks(level.chunks), strict=True))


def _hold(pixels: da.Array, found: NDArray[Any] | None) -> None:
    _held[id(pixels)] = found
    weakref.finalize(pixels, _held.pop, id(pixels), None)


def _is_long(pixels: Any) -> bool:
    """Whether a lazy array is made in many steps, and is small enough to be computed at once."""
    if not hasattr(pixels, "__dask_graph__") or pixels.nbytes > COMPUTED_BYTES:
        return False
    return len(pixels.__dask_graph__()) > TASKS_A_CHUNK * int(pixels.npartitions)


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

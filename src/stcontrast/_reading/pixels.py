"""Which channels of an image are red, green and blue; and its pixels as bytes, whatever they were stored as."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final

import dask
import dask.array as da
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["as_bytes", "rgb_channels"]

logger = logging.getLogger(__name__)

COLORS: Final = {"r": "r", "red": "r", "g": "g", "green": "g", "b": "b", "blue": "b", "a": "a", "alpha": "a"}
# names that say nothing: 0, "c1", "Channel:0:0"
NUMBERED: Final = re.compile(r"(?:c|ch|chan|channel|band|sample|image)?[\s_:.-]*\d+(?:[:._-]\d+)*")

# windows of the coarsest level that are looked at, along a side, and their side
WINDOWS_ALONG: Final = 6
WINDOW_PX: Final = 64
# a mask of transparency is clear or opaque nearly everywhere
CLEAR_OR_OPAQUE: Final = 0.9

# glass is bright: the largest value of H&E is in the upper half of the range that its camera used
BITS: Final = (8, 10, 12, 14, 16)
BRIGHT: Final = 0.5
# interpolation overshoots a little
OVERSHOOT: Final = 0.05


def rgb_channels(names: Sequence[Any], pixels: da.Array) -> tuple[int, int, int] | None:
    """Positions of red, green and blue among the channels of an image; `None` if it is no RGB image.

    Parameters
    ----------
    names
        Names of the channels. Those of stains (DAPI, 18S) are no colours; numbers say nothing.
    pixels
        Lazy array (n_channels, height, width), of which some windows are looked at if there are four channels without a
        name: transparency has two values, a fourth stain many.
    """
    known = [str(name).strip().lower() for name in names]
    colors = [COLORS.get(name) for name in known]
    if all(colors.count(color) == 1 for color in "rgb"):
        rest = [name for name, color in zip(known, colors, strict=True) if color not in ("r", "g", "b")]
        if len(rest) > 1 or not all(COLORS.get(name) == "a" or NUMBERED.fullmatch(name) for name in rest):
            return None
        return colors.index("r"), colors.index("g"), colors.index("b")
    if len(known) not in (3, 4) or not all(NUMBERED.fullmatch(name) for name in known):
        return None
    if len(known) == 4 and not _is_transparency(_sample(pixels[3:])):
        return None
    return 0, 1, 2


def _is_transparency(values: NDArray[Any]) -> bool:
    if (values == values[:1]).all():  # none, or written without care
        return True
    full = (
        1.0 if np.issubdtype(values.dtype, np.floating) and values.max(initial=0) <= 1 else float(values.max(initial=0))
    )
    if np.issubdtype(values.dtype, np.integer) and full not in (255, np.iinfo(values.dtype).max):
        return False
    return bool((values == full).any() and ((values == full) | (values == 0)).mean() >= CLEAR_OR_OPAQUE)


def as_bytes(levels: Sequence[da.Array], name: str) -> tuple[da.Array, ...]:
    """Levels of an image as uint8, black 0 and white 255.

    Parameters
    ----------
    levels
        Lazy arrays (3, height, width), the finest first. If they are no bytes, the range of their values is looked for in
        windows of the coarsest: uint16 may hold 8, 10, 12, 14 or 16 bits, floating numbers 0 to 1 or 0 to 255.
    name
        Name of the image, for messages.

    Raises
    ------
    ValueError
        If values are negative, no range fits, or they are no numbers of pixels.
    """
    dtype = levels[0].dtype
    if dtype == np.uint8:
        return tuple(levels)
    white = _white(_sample(levels[-1]), name)
    if np.issubdtype(dtype, np.integer) and white < np.iinfo(dtype).max:
        logger.warning("Image %r: %s that holds values up to %g: white is taken to be %g.", name, dtype, white, white)
    return tuple(
        da.map_blocks(
            _block_as_bytes, level, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8), white=white, image=name
        )
        for level in levels
    )


def _white(values: NDArray[Any], name: str) -> float:
    """The value of white: that of the smallest range that holds all values."""
    hint = "Convert it to uint8 RGB, black 0 and white 255, before it is put into the object."
    if values.dtype.kind not in "uif":
        msg = f"Image {name!r} has pixels of type {values.dtype}; RGB needs whole or floating numbers. {hint}"
        raise ValueError(msg)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    ranges = [1.0, 255.0] if values.dtype.kind == "f" else [2.0**bits - 1 for bits in BITS]
    reached = [
        white for white in ranges if BRIGHT * white <= high <= (1 + OVERSHOOT * (values.dtype.kind == "f")) * white
    ]
    if not reached or low < -OVERSHOOT * reached[0]:
        what = "Negative values are no brightness." if low < 0 else (
            f"H&E has bright glass, so that its largest value is near {ranges[0]:g} or "
            f"{' or '.join(f'{white:g}' for white in ranges[1:])}."
        )  # fmt: skip
        msg = f"Image {name!r} ({values.dtype}) holds values from {low:g} to {high:g}: what is white? {what} {hint}"
        raise ValueError(msg)
    return reached[0]


def _block_as_bytes(block: NDArray[Any], *, white: float, image: str) -> NDArray[np.uint8]:
    if block.dtype.kind == "f":
        # what was not filled in is white
        block = np.nan_to_num(block, nan=white)
    high = block.max(initial=0)
    if high > (1 + OVERSHOOT) * white and (block > white).mean() > OVERSHOOT:
        msg = f"Image {image!r} holds {high:g}, more than {white:g}, which was white in its overview: convert it to uint8."
        raise ValueError(msg)
    return np.clip(np.rint(block * (255.0 / white)), 0, 255).astype(np.uint8)


def _sample(pixels: da.Array) -> NDArray[Any]:
    """Values in windows all over an image, which is read once."""
    along = [
        [slice(start, start + WINDOW_PX) for start in np.unique(np.linspace(0, max(0, side - WINDOW_PX), WINDOWS_ALONG).astype(int)).tolist()]
        for side in pixels.shape[1:]
    ]  # fmt: skip
    windows = [pixels[:, y, x].reshape(-1) for y in along[0] for x in along[1]]
    return np.concatenate(dask.compute(*windows, scheduler="synchronous"))

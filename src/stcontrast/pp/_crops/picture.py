"""A part of an image, averaged down to the size at which it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dask.array as da
import numpy as np

from stcontrast.pp._crops.levels import computed_once, pick_level

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._reading import SlideImage

__all__ = ["shrunk_image"]


def shrunk_image(
    image: SlideImage, low: NDArray[np.float64], high: NDArray[np.float64], *, max_px: int
) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
    """Read a rectangle of an image, `max_px` pixels wide and high at most.

    Parameters
    ----------
    image
        The image.
    low, high
        Corners of the rectangle, x and y, in pixels of the finest level. What lies outside the image is left out.
    max_px
        The most pixels of a side.

    Returns
    -------
    Pixels (height, width, 3), uint8, and where they lie: left, right, bottom, top.
    """
    level = pick_level(image, float((high - low).max()) / max_px)
    factor, pixels = image.downsampling[level], computed_once(image.levels[level], image.levels)
    origin = np.array(image.origin(level))
    limit = np.array(pixels.shape[:0:-1])
    x0, y0 = np.clip(np.floor((low - origin) / factor).astype(int), 0, limit)
    x1, y1 = np.clip(np.ceil((high - origin) / factor).astype(int), 0, limit)
    block = da.asarray(pixels[:, y0:y1, x0:x1])
    step = int(np.ceil(max(block.shape[1:]) / max_px))
    # chunk by chunk: a scan of gigabytes is never in memory as a whole
    coarse = da.coarsen(np.mean, block, {1: step, 2: step}, trim_excess=True) if step > 1 else block
    shown = np.moveaxis(np.rint(coarse.compute(scheduler="threads")).astype(np.uint8), 0, -1)
    height, width = shown.shape[:2]
    left, top = origin + factor * np.array([x0, y0])
    return shown, (left, left + width * step * factor, top + height * step * factor, top)

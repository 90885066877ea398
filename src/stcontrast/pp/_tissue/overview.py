"""A whole slide at low resolution, tile by tile: never more than one tile of full resolution in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast.pp._crops.reader import iter_crops

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._reading import SlideImage

__all__ = ["overview"]

# pixels of the finest level along the side of a tile
TILE_PX: Final = 4096


def overview(image: SlideImage, downsampling: int) -> NDArray[np.uint8]:
    """Average an image down by a whole factor.

    Parameters
    ----------
    image
        The pyramid. The coarsest level that is fine enough is read; without one, the whole image is read once, in
        tiles.
    downsampling
        Pixels of the finest level along the side of a pixel of the result, at least 1.

    Returns
    -------
    uint8 RGB (height, width, 3), its first pixel over the first pixels of the image; what leaves the image is white.
    """
    height, width = image.levels[0].shape[1:]
    shape = -(-height // downsampling), -(-width // downsampling)
    size_px = min(max(1, TILE_PX // downsampling), max(shape))
    rows, columns = (-(-n // size_px) for n in shape)
    corners = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2) * size_px
    centers = (corners + size_px / 2) * downsampling
    picture = np.empty((rows * size_px, columns * size_px, 3), dtype=np.uint8)
    for i, tile in iter_crops(image, centers, side=float(size_px * downsampling), size_px=size_px):
        x, y = corners[i]
        picture[y : y + size_px, x : x + size_px] = tile
    return picture[: shape[0], : shape[1]]

"""A sample of a slide's tissue, and of its glass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast.pp._crops.tiles import Tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._reading import SlideImage

__all__ = ["TISSUE_DENSITY", "as_uint8", "is_black", "on_white", "tissue_sample"]

# tissue has at least this optical density (natural logarithm, mean of the channels), as in Macenko et al.
TISSUE_DENSITY: Final = 0.15
# no dye is that dark in all three colours: a masked corner, which stays black
BLACK: Final = 30
# a slide's sample: windows on a regular grid, and a denser one where the first finds little tissue
WINDOW_PX: Final = 128
WINDOWS_ALONG: Final = (12, 36)
ENOUGH_PX: Final = 20_000
FEWEST_PX: Final = 1_000
MOST_PX: Final = 200_000
GLASS_PERCENTILE: Final = 99.0
DARKEST_GLASS: Final = 180.0


def tissue_sample(image: SlideImage) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Pixels of tissue from windows all over a slide: always the same, never the whole slide.

    Parameters
    ----------
    image
        The slide; of its finest level, 12 × 12 windows of 128 pixels are read, and 36 × 36 more where these hold little
        tissue.

    Returns
    -------
    Colours (n, 3) as they are where the glass is white, at most 200 000; and the colour of the glass (3,).

    Raises
    ------
    ValueError
        If there is next to no tissue in the windows.
    """
    finest = Tiles(image.levels[0])
    height, width = finest.shape
    found, n_windows, sampled = 0, 0, np.empty((0, 3), dtype=np.uint8)
    for n in WINDOWS_ALONG:
        # one window at a time: what lies between them is not read
        windows = [finest.window(y, x).reshape(3, -1).T for y in _along(height, n) for x in _along(width, n)]
        sampled = np.concatenate([sampled, *windows])
        n_windows += len(windows)
        glass = _glass(sampled)
        pixels = _tissue_pixels(sampled, glass)
        found = len(pixels)
        if found >= ENOUGH_PX or max(height, width) <= n * WINDOW_PX:
            break
    if found < FEWEST_PX:
        msg = (
            f"Image {image.name!r} holds next to no tissue ({found} pixels in {n_windows} windows all over it): its "
            "stain cannot be estimated. Drop the slide, or leave out `stain`."
        )
        raise ValueError(msg)
    return as_uint8(on_white(pixels[:: -(-found // MOST_PX)], glass)), glass


def _along(side: int, n: int) -> list[slice]:
    """Windows along a side: as many as have room, at most n."""
    n = min(n, -(-side // WINDOW_PX))
    starts = np.rint(np.clip((np.arange(n) + 0.5) / n * side - WINDOW_PX / 2, 0, max(side - WINDOW_PX, 0))).astype(int)
    return [slice(start, min(start + WINDOW_PX, side)) for start in starts.tolist()]


def _glass(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Colour of the glass: the brightest that there is, unless tissue fills the slide; then white."""
    glass = np.percentile(pixels[::7], GLASS_PERCENTILE, axis=0)
    return glass if glass.min() >= DARKEST_GLASS else np.full(3, 255.0)


def on_white(rgb: NDArray[np.uint8], glass: NDArray[np.float64]) -> NDArray[np.float32]:
    """Colours as they are where the glass is white."""
    return np.minimum(rgb * (255.0 / glass).astype(np.float32), np.float32(255))


def _tissue_pixels(pixels: NDArray[np.uint8], glass: NDArray[np.float64]) -> NDArray[np.uint8]:
    density = -np.log((on_white(pixels, glass) + 1) / 256).mean(axis=-1)
    return pixels[(density > TISSUE_DENSITY) & ~is_black(pixels)]


def is_black(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a scanner saw nothing, or what was masked."""
    return (rgb < BLACK).all(axis=-1)


def as_uint8(rgb: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Rounded and clipped."""
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)

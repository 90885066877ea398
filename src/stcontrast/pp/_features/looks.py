"""Whether the image under the spots looks like H&E, and whether the spots lie on its tissue."""

from __future__ import annotations

import logging
from itertools import product
from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast.pp._crops import Tiles
from stcontrast.pp._features.evidence import pixels_around, window_places

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from stcontrast._reading import Slide, SlideImage

__all__ = ["warn_of_looks"]

logger = logging.getLogger(__name__)

# darkest of the three colours under the spots, median: at least 120 on 20 real slides, near 0 in fluorescence
DARK: Final = 50
# largest level that is looked at for tissue, and pixels along the side of what is left of it
MOST_PX: Final = 2**24
SIDE_PX: Final = 1000
# glass is bright and nearly grey; tissue has a colour against it, of which this is the least; corners may be masked black
GLASS: Final = (180, 40)
MIN_COLOR: Final = 0.05
BLACK: Final = 30
# spots that a share means something of
FEWEST_SPOTS: Final = 50
# share of the spots on tissue: too few; and, with axes swapped or mirrored, how many and how many more (pale tissue passes
# for glass: with the right axes, up to 0.16 more lie on the rest of it on the synthetic slides)
FEW_ON_TISSUE: Final = 0.1
MOST_ON_TISSUE: Final = 0.9
MORE_ON_TISSUE: Final = 0.2


def warn_of_looks(slide: Slide) -> None:
    """Say at WARNING where an image is dark as no H&E is, and where spots miss its tissue, as with swapped axes."""
    if slide.image is None or len(slide.centers) == 0:
        return
    windows = pixels_around(slide.image, window_places(slide.centers))
    darkest = float(np.median(np.concatenate([window.min(axis=0).ravel() for window in windows])))
    if darkest < DARK:
        logger.warning(
            "Slide %r: image %r is dark under the spots (%.0f of 255 in the darkest colour). H&E is bright, because light "
            "passes through it. Is the image fluorescence, inverted or CMYK? Then features do not mean what they do on H&E. "
            "Give the H&E with `image_key`.", slide.name, slide.image.name, darkest,
        )  # fmt: skip
        return
    if len(slide.centers) < FEWEST_SPOTS or (found := _tissue(slide.image)) is None:
        return
    tissue, size = found
    share = {changed: _share_on(tissue, xy / size) for changed, xy in _arranged(slide.centers, size)}
    given = share.pop("")
    better = max(share, key=lambda changed: share[changed])
    if share[better] >= max(MOST_ON_TISSUE, given + MORE_ON_TISSUE):
        logger.warning(
            "Slide %r: %.0f %% of the spots lie on tissue in image %r, and %.0f %% would if %s. Check the positions of the spots "
            "(x to the right, y down, in pixels of the image) or the transformation between spots and image.",
            slide.name, 100 * given, slide.image.name, 100 * share[better], better,
        )  # fmt: skip
    elif given < FEW_ON_TISSUE:
        logger.warning(
            "Slide %r: only %.0f %% of the spots lie on tissue in image %r, the others on glass. Is it the right image, and do "
            "the positions of the spots refer to its pixels?", slide.name, 100 * given, slide.image.name,
        )  # fmt: skip


def _tissue(image: SlideImage) -> tuple[NDArray[np.bool_], NDArray[np.float64]] | None:
    """Mask of what has a colour against the glass, and width and height of the image; `None` where no glass is seen."""
    level = image.levels[-1]
    if level.shape[1] * level.shape[2] > MOST_PX:
        return None
    pixels = np.moveaxis(Tiles(level, levels=image.levels).window(slice(None), slice(None)), 0, -1)
    step = -(-max(pixels.shape[:2]) // SIDE_PX)
    rows, columns = (side // step for side in pixels.shape[:2])
    blocks = pixels[: rows * step, : columns * step].reshape(rows, step, columns, step, 3)
    small = blocks.mean(axis=(1, 3), dtype=np.float32)
    black = (small < BLACK).all(axis=-1)
    if black.all():
        return None
    lightness = small.mean(axis=-1)
    glass = np.median(small[lightness >= np.percentile(lightness[~black], 75)], axis=0)
    if glass.min() < GLASS[0] or np.ptp(glass) > GLASS[1]:
        return None
    # the last rows and columns, less than a step, are left out
    size = np.array([columns, rows]) * step * image.downsampling[-1]
    return ~black & (np.ptp(small / glass, axis=-1) >= MIN_COLOR), size


def _arranged(centers: NDArray[np.float64], size: NDArray[np.float64]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Centres (n_spots, 2) as they are, and with axes swapped and mirrored in all ways; and what was done, in words."""
    for swapped, *mirrored in product((False, True), repeat=3):
        done = ["x and y were swapped"] * swapped
        done += [f"{axis} was mirrored" for axis, turned in zip("xy", mirrored, strict=True) if turned]
        xy = centers[:, ::-1] if swapped else centers
        yield " and ".join(done), np.where(mirrored, size - xy, xy)


def _share_on(mask: NDArray[np.bool_], places: NDArray[np.float64]) -> float:
    """Share of places (n, 2), x and y from 0 to 1, on a mask (height, width)."""
    x, y = np.floor(places * mask.shape[::-1]).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    return float(mask[y[inside], x[inside]].sum() / len(places))

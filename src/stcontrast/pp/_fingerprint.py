"""Whether the features of a slide are still what they were made as."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._files import content_hash
from stcontrast.pp._crops.tiles import Tiles
from stcontrast.pp._encoders.resolve import identity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from stcontrast._reading import Slide, SlideImage
    from stcontrast.pp._encoding import FeatureRecipe

__all__ = ["slide_fingerprint"]

N_WINDOWS: Final = 8
WINDOW_PX: Final = 32
# an encoder that is known by its name alone may have changed
UNKNOWN: Final = ("callable",)


def slide_fingerprint(slide: Slide, recipe: FeatureRecipe) -> str:
    """Hash of all that a slide's features depend on; empty for an encoder that is known by its name alone.

    That is: the encoder (weights by content, not by path), fields, stain normalisation, µm per pixel, the centres of the
    spots in the table's order (to a thousandth of a pixel), size and levels of the image, and its pixels around eight of
    the spots.
    """
    if slide.image is None or recipe.encoder.spec["kind"] in UNKNOWN:
        return ""
    image = slide.image
    facts = {
        "recipe": recipe.record | {"encoder": identity(recipe.encoder.spec)},
        "um_per_px": slide.um_per_px,
        "levels": [[int(size) for size in level.shape] for level in image.levels],
        "downsampling": list(image.downsampling),
    }
    return content_hash([facts, np.round(slide.centers, 3), *_windows(image, slide.centers)])[:32]


def _windows(image: SlideImage, centers: NDArray[np.float64]) -> Iterator[NDArray[Any]]:
    finest = Tiles(image.levels[0])
    for x, y in centers[np.unique(np.linspace(0, len(centers) - 1, N_WINDOWS).astype(int))]:
        along_x, along_y = (_around(middle, side) for middle, side in ((x, finest.shape[1]), (y, finest.shape[0])))
        yield finest.window(along_y, along_x)


def _around(middle: float, side: int) -> slice:
    start = int(np.clip(np.rint(middle) - WINDOW_PX // 2, 0, max(side - WINDOW_PX, 0)))
    return slice(start, min(start + WINDOW_PX, side))

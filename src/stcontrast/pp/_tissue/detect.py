"""Where the tissue of a slide lies, at low resolution: detected, or from a given element."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import dask
import dask.array as da
import numpy as np

from stcontrast._reading import affine_matrix
from stcontrast.pp._crops import iter_crops

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import SlideImage


__all__ = ["detect_tissue", "is_black", "overview", "tissue_of_element", "to_image_pixels"]

# pixels of the finest level along the side of a tile
TILE_PX: Final = 4096

# no dye is that dark in all three colours: it is where a scanner saw nothing, or what was masked
BLACK: Final = 30
# spread of red, green and blue, as shares of the glass: what has less is a shadow, ink or a mask, for both dyes have colour
MIN_COLOR: Final = 0.05
# lightness between tissue and glass, of 255: less is noise
MIN_CONTRAST: Final = 12.0
# tissue is searched for in pieces, of which the smallest is ten spots of the lattice
PIECE_SPOTS: Final = 10


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


def detect_tissue(image: SlideImage, *, downsampling: int, pitch: float) -> NDArray[np.bool_]:
    """Find tissue by its darkness (Otsu's threshold, :func:`squidpy.experimental.im.detect_tissue`).

    Parameters
    ----------
    image
        The pyramid.
    downsampling
        Pixels of the image along the side of a pixel of the mask.
    pitch
        Distance between spots in pixels of the image. Holes of less than a spot's share are closed, pieces of less
        than ten left out.

    Returns
    -------
    Mask (height, width). What has no colour against the glass is no tissue: shadows, marks in black ink, corners that a
    scanner never saw or that were masked.

    Raises
    ------
    ValueError
        If nothing stands out from the glass.
    """
    import squidpy as sq
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    picture = overview(image, downsampling)
    glass = _glass(picture)
    black = is_black(picture)
    picture[np.ptp(picture / glass.astype(np.float32), axis=-1) < MIN_COLOR] = glass
    picture[black] = 255
    spot = (pitch / downsampling) ** 2 / picture[..., 0].size
    mask = np.zeros(picture.shape[:2], dtype=np.bool_)
    lightness = picture.mean(axis=-1, dtype=np.float32)
    # a separate small image: squidpy scales its mask up to the size of the image, too large for a whole slide
    alone = SpatialData(images={"he": Image2DModel.parse(np.moveaxis(picture, -1, 0), dims=("c", "y", "x"))})
    if lightness.max() - lightness.min() > MIN_CONTRAST:
        with warnings.catch_warnings(), _quiet(), dask.config.set(scheduler="threads"):
            # squidpy calls scikit-image by an older name of a parameter
            warnings.filterwarnings("ignore", "Parameter `area_threshold`", FutureWarning)
            labels = sq.experimental.im.detect_tissue(
                alone,
                "he",
                # glass is bright, whatever fills the corners
                corners_are_background=False,
                min_specimen_area_frac=min(0.01, PIECE_SPOTS * spot),
                # without a number, only the larger ones of the pieces would be kept
                n_samples=mask.size,
                close_holes_smaller_than_frac=min(1.0, spot),
                inplace=False,
            )
        mask = labels > 0
    if not mask.any() or mask.all() or lightness[~mask].mean() - lightness[mask].mean() < MIN_CONTRAST:
        msg = (
            f"No tissue stands out from the glass in image {image.name!r}. If tissue fills the image, give "
            "`tissue=None`. Otherwise outline the tissue as shapes or labels, and give the name of the element: `tissue=name`."
        )
        raise ValueError(msg)
    return mask


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress messages of squidpy on the standard output."""
    steps = logging.getLogger("spatialdata._logging")
    level = steps.level
    steps.setLevel(logging.WARNING)
    try:
        yield
    finally:
        steps.setLevel(level)


def is_black(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a scanner saw nothing, or what was masked."""
    return (rgb < BLACK).all(axis=-1)


def _glass(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The common colour of the brightest quarter of what is not black."""
    seen = picture[~is_black(picture)]
    if len(seen) == 0:
        return np.full(3, 255, dtype=np.uint8)
    lightness = seen.mean(axis=-1, dtype=np.float32)
    return np.median(seen[lightness >= np.percentile(lightness, 75)], axis=0).astype(np.uint8)


def to_image_pixels(
    sdata: SpatialData, name: str, image_key: str, *, coordinate_system: str | None
) -> NDArray[np.float64]:
    """Matrix (3, 3) from the intrinsic coordinates of an element to the pixels of an image.

    Raises
    ------
    ValueError
        If they share no coordinate system, or several in which the element lies at different places.
    """
    from spatialdata.transformations import get_transformation

    of_image = get_transformation(sdata.images[image_key], get_all=True)
    of_element = get_transformation(sdata[name], get_all=True)
    shared = [system for system in of_element if system in of_image and coordinate_system in (None, system)]
    if not shared:
        msg = (
            f"Element {name!r} (coordinate systems {sorted(of_element)}) and image {image_key!r} ({sorted(of_image)}) "
            f"share no coordinate system{f' {coordinate_system!r}' if coordinate_system else ''}. Use "
            "`spatialdata.transformations.set_transformation`."
        )
        raise ValueError(msg)
    matrices = [np.linalg.inv(affine_matrix(of_image[s])) @ affine_matrix(of_element[s]) for s in shared]
    if not all(np.allclose(matrix, matrices[0], rtol=1e-6, atol=1e-6) for matrix in matrices):
        msg = (
            f"Element {name!r} lies at different places on image {image_key!r} in the coordinate systems {shared}: "
            "give `coordinate_system`."
        )
        raise ValueError(msg)
    return matrices[0]


def tissue_of_element(
    element: Any, matrix: NDArray[np.float64], *, shape: tuple[int, int], downsampling: int
) -> NDArray[np.bool_]:
    """Shapes or labels as a mask over an image.

    Parameters
    ----------
    element
        Shapes, or labels of which 0 is no tissue. Not changed.
    matrix
        From its intrinsic coordinates to pixels of the image, shape (3, 3).
    shape
        Height and width of the mask.
    downsampling
        Pixels of the image along the side of a pixel of the mask.
    """
    from geopandas import GeoDataFrame
    from spatialdata import rasterize
    from spatialdata.transformations import Affine, set_transformation

    placed = element.copy()
    to_mask = np.diag([1 / downsampling, 1 / downsampling, 1.0]) @ matrix
    if not isinstance(element, GeoDataFrame):
        # labels are looked up as if a pixel stood for its upper left corner, here and there; its centre is meant
        to_mask[:2, 2] += to_mask[:2, :2].sum(axis=1) / 2 - 0.5
    set_transformation(placed, {"mask": Affine(to_mask, ("x", "y"), ("x", "y"))}, set_all=True)
    height, width = shape
    labels = rasterize(
        placed, ("x", "y"), [0, 0], [width, height], "mask", target_width=width, return_regions_as_labels=True
    )
    mask: NDArray[np.bool_] = da.asarray(labels.transpose("y", "x").data).compute(scheduler="threads") > 0
    return mask

"""`crops`: cut crops as an array, to look at them or to encode them elsewhere; and a part of an image to show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import dask.array as da
import numpy as np

from stcontrast._arguments import POSITIVE, checked
from stcontrast._progress import stage
from stcontrast._reading import require_images, resolve_slides
from stcontrast.pp._crops.levels import computed_once, pick_level
from stcontrast.pp._crops.reader import iter_crops

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import SlideImage

__all__ = ["crops", "shrunk_image"]

# side of a returned crop
LARGEST_PX: Final = 8192


@checked(field_um=POSITIVE)
def crops(
    data: SpatialData | AnnData,
    *,
    field_um: float,
    size_px: int,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_diameter_um: float | None = None,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_key: str | None = None,
) -> NDArray[np.uint8]:
    """Cut a square of H&E around every spot.

    The side of a crop is exact in µm for any scan resolution, and its centre is exact to a fraction of a pixel. The
    crop is cut from the coarsest pyramid level that needs no enlarging, and averaged down. It is never resized and
    centre-cropped, which would change the field of view. If the image lacks this level and the window has 128 pixels
    or more, the level is computed while the image is read: a crop is the same with and without a stored pyramid.
    Outside the image, crops have the colour of empty glass. Crops keep the axes of the image: a transformation that
    rotates the slide moves the centres, but does not rotate the crops.

    Parameters
    ----------
    data
        SpatialData whose table annotates circles, squares or polygons; or AnnData with scanpy's images in
        ``uns["spatial"]``.
    field_um
        Side of the square in µm.
    size_px
        Side of the returned crop in pixels.
    um_per_px
        µm per pixel of the image's finest level, a number or a mapping from slide to number. By default it is taken
        from ``uns["stcontrast"]["um_per_px"]`` of the table, else from the files (a WSIData; the bins of Visium HD),
        else derived from the lattice of the spots (Visium, legacy ST) and logged. A warning is logged if a given value
        differs from these by more than 5 %.
    spot_diameter_um
        Diameter (or side) of a spot in µm, to derive µm per pixel from the width of the shapes: 65 for Visium as Space
        Ranger writes it, 100 for legacy ST. Not needed for a known lattice.
    table_key
        Table that holds the spots; the only one by default.
    image_key
        Image to cut from, or a mapping from slide to image. By default the finest RGB image under the spots.
        AnnData: a key of its images, such as ``"hires"``.
    library_key
        AnnData only: column of `obs` that names the slide of a spot.

    Returns
    -------
    Crops (n_spots, size_px, size_px, 3), uint8 RGB, in the order of the table.

    Raises
    ------
    KeyError
        If a table, image or column is absent.
    ValueError
        If a slide has no image, an image does not lie under its spots, µm per pixel is unknown, or the field has less than
        2 pixels or is more than twice as wide as the image.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=1, n_spots=30)
    >>> stc.pp.crops(sdata, field_um=100, size_px=64).shape
    (30, 64, 64, 3)
    """
    if not 1 <= size_px <= LARGEST_PX:
        msg = f"`size_px` must be at most {LARGEST_PX}, found {size_px!r}."
        raise ValueError(msg)
    spots = resolve_slides(
        data,
        table_key=table_key,
        image_key=image_key,
        um_per_px=um_per_px,
        spot_diameter_um=spot_diameter_um,
        library_key=library_key,
    )
    require_images(spots, [field_um])
    cut = np.empty((spots.table.n_obs, size_px, size_px, 3), dtype=np.uint8)
    with stage("crops", total=spots.table.n_obs, unit="spots") as bar:
        for slide in spots.slides:
            if slide.image is None or slide.um_per_px is None:  # require_images has refused these
                continue
            for i, crop in iter_crops(slide.image, slide.centers, side=field_um / slide.um_per_px, size_px=size_px):
                cut[slide.rows[i]] = crop
                bar.update()
    return cut


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

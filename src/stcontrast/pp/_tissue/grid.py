"""`tissue_grid`: spots for a slide that has H&E only."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from stcontrast._arguments import checked
from stcontrast._keys import UNS
from stcontrast._progress import stage
from stcontrast._reading import (
    affine_matrix,
    check_square_pixels,
    image_of_element,
    positive_number,
    rgb_size,
    slide_element,
    slide_um_per_px,
)
from stcontrast._records import read_record
from stcontrast.pp._tissue.detect import detect_tissue, tissue_of_element, to_image_pixels
from stcontrast.pp._tissue.lattice import (
    Geometry,
    Grid,
    Lattice,
    grid_shapes,
    grid_table,
    lattice_points,
    tissue_fraction,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import SlideImage

__all__ = ["tissue_grid"]

logger = logging.getLogger(__name__)

type PerImage[T] = T | Mapping[str, T]

# pixels of the tissue mask: along a spot, and in all
MASK_PER_SPOT: Final = 8
MASK_PX: Final = 4_000_000
# fewest pixels between neighbouring spots
FEWEST_PX: Final = 2.0


@checked()
@stage("tissue", whole=True)
def tissue_grid(  # noqa: PLR0913
    sdata: SpatialData,
    *,
    image_key: str | Sequence[str] | None = None,
    um_per_px: PerImage[float] | None = None,
    pitch_um: float = 100.0,
    spot_diameter_um: float = 55.0,
    geometry: Geometry = "visium",
    tissue: PerImage[str | None] = "detect",
    min_tissue: float = 0.5,
    coordinate_system: str | None = None,
    shapes_key: PerImage[str] | None = None,
    table_key: str = "table",
    overwrite: bool = False,
) -> None:
    """Lay spots over the tissue of slides that have H&E only.

    Adds spots, and a table without genes that annotates them. This is all that :func:`image_features`,
    :func:`stcontrast.tl.predict_expression` and :func:`stcontrast.tl.classify` need for a new slide.

    Parameters
    ----------
    sdata
        The slides. Of a WSIData, only the slide file is used. Existing elements are not changed; new elements are
        added in memory.
    image_key
        One or several RGB images, each of them a slide. By default all RGB images.
    um_per_px
        µm per pixel of the image's finest level, a number or a mapping from image to number. Required, except for a
        WSIData whose file states it.
    pitch_um
        Distance between neighbouring spots in µm.
    spot_diameter_um
        Diameter of the circles, or side of the squares, in µm. Predictions do not depend on it, because the width of
        the crops is that of the model's fields.
    geometry
        ``"visium"``: circles on Visium's hexagonal lattice. ``"square"``: squares on a square lattice, which touch if
        `spot_diameter_um` is `pitch_um`.
    tissue
        Where to lay spots. ``"detect"``: on tissue, which Otsu's threshold separates from the glass
        (:func:`squidpy.experimental.im.detect_tissue`, on a coarse copy of the image). The name of a shapes or labels
        element: on these shapes, or on labels other than 0. `None`: everywhere. A mapping gives each image one of
        these.
    min_tissue
        A spot is kept if at least this share of its area lies on tissue (above 0, at most 1). The share is measured at
        64 points of the spot, on a mask with about 8 pixels along a spot and at most 4 million pixels per slide.
    coordinate_system
        Coordinate system in which `tissue` lies over the image, if they share several. Without `image_key`, images
        that are not in this system are left out.
    shapes_key
        Name of the shapes: for one image a name, for several a mapping from image to name. By default
        ``"<image>_spots"``, for a file without its ending.
    table_key
        Name of the table. One table annotates the spots of all images.
    overwrite
        Replace a table and shapes that stcontrast did not write. An earlier grid is always replaced. Elements of other
        types, such as images, are never replaced.

    Returns
    -------
    `None`. Adds for each image shapes, in the image's pixels and with its transformations to all coordinate systems;
    and the table: `X` (n_spots, 0); ``obs``: ``region``, ``spot_id``, ``array_row``, ``array_col``,
    ``tissue_fraction``; ``obsm["spatial"]`` in pixels; ``uns["stcontrast"]``: ``um_per_px`` and ``image_key`` of each
    slide, and how the grid was made (``tissue_grid``).

    Raises
    ------
    KeyError
        If a named image or element is absent.
    ValueError
        If a number is out of range, a name is already used, an image is not RGB or its pixels are not square, no
        tissue is found, or no spot lies on it.

    Notes
    -----
    An image without a pyramid is read once in full, in tiles. Areas without colour (shadows, black ink, masked
    corners) and pieces smaller than ten spots are not counted as tissue. Holes that are smaller than the lattice cell
    of a spot are closed.

    Examples
    --------
    >>> import stcontrast as stc
    >>> from spatialdata import SpatialData
    >>> slide = stc.datasets.toy(n_donors=1, n_spots=60)["donor1_a_he"]
    >>> sdata = SpatialData(images={"new": slide})
    >>> stc.pp.tissue_grid(sdata, um_per_px=1.0)
    >>> sdata["table"].n_vars, "new_spots" in sdata.shapes
    (0, True)
    """
    from anndata import AnnData
    from spatialdata import SpatialData

    if not isinstance(sdata, SpatialData):
        hint = " It has positions already." if isinstance(sdata, AnnData) else ""
        msg = f"Expected a SpatialData object, found {type(sdata).__name__}.{hint}"
        raise TypeError(msg)
    if geometry not in get_args(Geometry.__value__):
        msg = f'`geometry` must be "visium" or "square", found {geometry!r}.'
        raise ValueError(msg)
    pitch_um, spot_diameter_um = (
        positive_number(pitch_um, "`pitch_um`"),
        positive_number(spot_diameter_um, "`spot_diameter_um`"),
    )
    if positive_number(min_tissue, "`min_tissue`") > 1:
        msg = f"`min_tissue` is a share: above 0, at most 1, found {min_tissue!r}."
        raise ValueError(msg)
    seen = _seen(sdata)
    images = _images(seen, image_key, coordinate_system)
    um_per_px = slide_um_per_px(sdata) if um_per_px is None else um_per_px
    if um_per_px is None:
        msg = f"`um_per_px` is needed: µm per pixel of the finest level of {images}, a number or a mapping."
        raise ValueError(msg)
    for given, name in ((um_per_px, "um_per_px"), (tissue, "tissue"), (shapes_key, "shapes_key")):
        _check_mapping(given, images, name)
    if isinstance(shapes_key, str) and len(images) > 1:
        msg = f"`shapes_key` names one element for {len(images)} images {images}: give a mapping from image to name."
        raise ValueError(msg)
    scales = {image: positive_number(_of(um_per_px, image), f"`um_per_px` of {image!r}") for image in images}
    for image, scale in scales.items():
        if pitch_um / scale < FEWEST_PX:
            msg = (
                f"Image {image!r}: at {scale:.4g} µm per pixel `pitch_um={pitch_um:g}` is {pitch_um / scale:.3g} pixels, less "
                f"than {FEWEST_PX:g}. Check `um_per_px` (µm for one pixel of the image's finest level)."
            )
            raise ValueError(msg)
    stems = {image: image if seen is sdata else image.rsplit(".", 1)[0] for image in images}
    names = {image: f"{stems[image]}_spots" if shapes_key is None else _of(shapes_key, image) for image in images}
    _check_free(sdata, list(names.values()), table_key, overwrite=overwrite)
    masks = {image: _of(tissue, image) for image in images}
    for image, element in masks.items():
        _check_tissue(seen, image, element, coordinate_system)

    grids = []
    for image in images:
        slide = image_of_element(seen.images[image], image)
        pitch, diameter = pitch_um / scales[image], spot_diameter_um / scales[image]
        height, width = slide.levels[0].shape[1:]
        lattice = lattice_points(width, height, pitch=pitch, geometry=geometry)
        downsampling = _mask_downsampling(slide, diameter)
        if masks[image] == "detect":
            mask = detect_tissue(slide, downsampling=downsampling, pitch=pitch)
        else:
            mask = _given_mask(seen, slide, masks[image], downsampling, coordinate_system)
        fraction = tissue_fraction(
            lattice.centers, mask, downsampling=downsampling, diameter=diameter, geometry=geometry
        )
        # a sum of 64 equal shares is exact
        kept = fraction >= min_tissue
        if not kept.any():
            msg = (
                f"No spot of {spot_diameter_um:g} µm lies on tissue in image {image!r}: at {scales[image]:g} µm per pixel "
                f"it is {width * scales[image]:.0f} × {height * scales[image]:.0f} µm, {mask.mean():.1%} of it tissue. Check "
                "`um_per_px`, or lower `min_tissue` or `pitch_um`."
            )
            raise ValueError(msg)
        lattice = Lattice(lattice.centers[kept], lattice.array[kept])
        grids.append(Grid(image, names[image], scales[image], lattice, fraction[kept]))
        logger.info("Image %r: %d spots on tissue.", image, int(kept.sum()))

    record = {
        "pitch_um": pitch_um,
        "spot_diameter_um": spot_diameter_um,
        "geometry": geometry,
        "min_tissue": float(min_tissue),
        # "" for `None`, which zarr cannot keep
        "tissue": {names[image]: element or "" for image, element in masks.items()},
    }
    shapes = {grid.shapes_key: grid_shapes(seen, grid, spot_diameter_um / grid.um_per_px, geometry) for grid in grids}
    table = grid_table(grids, record)
    if seen is not sdata:
        # the slide of a WSIData is found without a name, which may be no name of an element
        del table.uns[UNS]["image_key"]
    _drop(sdata, [name for name in (*shapes, table_key) if name in sdata])
    for name, element in shapes.items():
        sdata.shapes[name] = element
    sdata.tables[table_key] = table


def _seen(sdata: SpatialData) -> SpatialData:
    """What images, shapes and labels are looked for in: the object, or a WSIData's slide file as an image."""
    from spatialdata import SpatialData as Container

    of_file = slide_element(sdata)
    if not of_file:
        return sdata
    images = {re.sub(r"[^\w.-]", "_", name): element for name, element in of_file.items()}
    return Container(images=images, shapes=dict(sdata.shapes), labels=dict(sdata.labels))


def _images(sdata: SpatialData, image_key: str | Sequence[str] | None, coordinate_system: str | None) -> list[str]:
    from spatialdata.transformations import get_transformation

    given = [image_key] if isinstance(image_key, str) else image_key
    names = list(sdata.images) if given is None else list(dict.fromkeys(given))
    absent = [name for name in names if name not in sdata.images]
    if absent:
        msg = f"No image {absent} in the SpatialData object; its images are {sorted(sdata.images)}."
        raise KeyError(msg)
    systems = {name: get_transformation(sdata.images[name], get_all=True) for name in names}
    fitting = [
        name
        for name in names
        if rgb_size(sdata.images[name]) is not None and coordinate_system in (None, *systems[name])
    ]
    lost = [name for name in names if name not in fitting] if given is not None else []
    if lost or not fitting:
        where = f" in coordinate system {coordinate_system!r}" if coordinate_system else ""
        msg = (
            f"{f'Images {lost} are' if lost else 'No image is'} RGB (3 or 4 channels){where}; images: "
            f"{ {name: list(systems[name]) for name in names} }."
        )
        if lost:
            msg = msg.replace(" are RGB", " are not RGB")
        raise ValueError(msg)
    for name in fitting:
        for system, transformation in systems[name].items():
            check_square_pixels(affine_matrix(transformation), name, system)
    return fitting


def _of[T](given: PerImage[T], image: str) -> T:
    return given[image] if isinstance(given, Mapping) else given


def _check_mapping(given: Any, images: list[str], name: str) -> None:
    if isinstance(given, Mapping) and set(given) != set(images):
        msg = f"`{name}` must name each image once: it names {sorted(given)}, the images are {sorted(images)}."
        raise KeyError(msg)


def _check_free(sdata: SpatialData, shapes: list[str], table_key: str, *, overwrite: bool) -> None:
    wanted = [*shapes, table_key]
    if len(set(wanted)) < len(wanted):
        msg = f"Shapes and table need different names, found {wanted}."
        raise ValueError(msg)
    record = read_record(sdata.tables[table_key], "tissue_grid") if table_key in sdata.tables else None
    free = set() if record is None else {table_key, *record["tissue"]}
    if overwrite:
        free |= {table_key} & set(sdata.tables) | set(shapes) & set(sdata.shapes)
    taken = [name for name in wanted if name in sdata and name not in free]
    if taken:
        replace = " or `overwrite=True` to replace shapes and tables" * (not overwrite)
        msg = (
            f"The names {taken} are used by elements that are not a grid of stcontrast: give another `table_key` or "
            f"`shapes_key`{',' * bool(replace)}{replace}."
        )
        raise ValueError(msg)


def _check_tissue(sdata: SpatialData, image: str, element: str | None, coordinate_system: str | None) -> None:
    if element is None or element == "detect":
        return
    if element not in sdata.shapes and element not in sdata.labels:
        msg = (
            f'`tissue` must be "detect", None or the name of shapes or labels, found {element!r}; there are shapes '
            f"{sorted(sdata.shapes)} and labels {sorted(sdata.labels)}."
        )
        raise KeyError(msg)
    to_image_pixels(sdata, element, image, coordinate_system=coordinate_system)


def _mask_downsampling(image: SlideImage, diameter: float) -> int:
    height, width = image.levels[0].shape[1:]
    return max(1, int(diameter / MASK_PER_SPOT), int(np.ceil(np.sqrt(height * width / MASK_PX))))


def _given_mask(
    sdata: SpatialData, image: SlideImage, element: str | None, downsampling: int, coordinate_system: str | None
) -> NDArray[np.bool_]:
    height, width = image.levels[0].shape[1:]
    shape = -(-height // downsampling), -(-width // downsampling)
    if element is None:
        return np.ones(shape, dtype=np.bool_)
    matrix = to_image_pixels(sdata, element, image.name, coordinate_system=coordinate_system)
    return tissue_of_element(sdata[element], matrix, shape=shape, downsampling=downsampling)


def _drop(sdata: SpatialData, names: list[str]) -> None:
    for name in names:
        del sdata[name]

"""What a slide is, and how one is read from the libraries of an AnnData or the elements of a SpatialData.

Pixels follow SpatialData: x to the right, y down, pixel (0, 0) covers the square [0, 1) × [0, 1).
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast._keys import IMAGE_FEATURES
from stcontrast._reading.columns import names_of, obs_column, obsm_array
from stcontrast._reading.elements import (
    COVERAGE,
    affine_matrix,
    image_from_array,
    image_of_element,
    images_over,
    is_rgb_array,
    shape_centers,
    share_inside,
    why_no_image,
)
from stcontrast._reading.scale import Scale, bin_side_um, positive_number
from stcontrast._reading.wsi import slide_name, slide_um_per_px

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData

from stcontrast._reading.elements import SlideImage

__all__ = [
    "Sections",
    "Slide",
    "circle",
    "column_of_libraries",
    "element_slide",
    "library_rows",
    "library_slide",
    "no_positions",
    "slide_outlines",
    "table_region_keys",
]

logger = logging.getLogger(__name__)

# what `spatialdata.rasterize_bins` puts before the name of the column when it numbers bins anew
RELABELED: Final = "relabeled_"
# shapes of the reader of Xenium, also after `spatialdata.concatenate`; and the pixels of its stains
XENIUM_SHAPES: Final = re.compile(r"(?:cell|nucleus)_(?:circles|boundaries)(?![^\W_])")
XENIUM_UM_PER_PX: Final = 0.2125
# spots of a platform have one size; of these cells do not
SAME_SIZE: Final = 0.03
# of a circle that is drawn
CORNERS: Final = 24


@dataclass(frozen=True, slots=True)
class Slide:
    """One section as plain arrays.

    Attributes
    ----------
    name
        Name of the shapes element (SpatialData) or of the library (AnnData).
    rows
        Its rows in the table, shape (n_spots,).
    centers
        Centres of the spots, shape (n_spots, 2): x, y in pixels of the image's finest level, or in the units
        of the shapes where the slide has no image.
    diameter
        Median diameter (or side) of the spots, in the units of `centers`; NaN if unknown.
    image
        The H&E, lazily; `None` if the slide has none.
    um_per_px
        µm per unit of `centers`; `None` if unknown.
    coordinate_system
        Coordinate system that spots and image share.
    stated
        µm per unit of `centers` as the files of the slide say it; `None` if they do not.
    one_size
        Whether all spots have the same diameter.
    no_image
        Why the images of the object are not its H&E, where it has none.
    scale_derived
        Whether `um_per_px` was derived from the spots, not given.
    """

    name: str
    rows: NDArray[np.intp]
    centers: NDArray[np.float64]
    diameter: float
    image: SlideImage | None
    um_per_px: float | None
    coordinate_system: str | None = None
    stated: Scale | None = None
    one_size: bool = True
    no_image: str = ""
    scale_derived: bool = False


@dataclass(frozen=True, slots=True)
class Sections:
    """One of the user's objects: its table and the slides that the table annotates.

    Attributes
    ----------
    data
        The user's object itself.
    table
        Its table, not a copy.
    slides
        The slides, in order of appearance.
    region_key, instance_key
        Columns of `obs` that name the shapes element of a row and its shape; `None` for an AnnData.
    slide_key
        Column of `obs` that names the slides of an AnnData; `None` if it is one slide.
    """

    data: SpatialData | AnnData
    table: AnnData
    slides: list[Slide]
    region_key: str | None = None
    instance_key: str | None = None
    slide_key: str | None = None

    @property
    def is_spatialdata(self) -> bool:
        """Whether the object is a SpatialData, to which a table can be added."""
        return self.region_key is not None

    def slide_and_xy(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Slide (n_spots,) and centre (n_spots, 2) of every spot."""
        slide = np.full(self.table.n_obs, -1, dtype=np.int64)
        xy = np.zeros((self.table.n_obs, 2))
        for code, item in enumerate(self.slides):
            slide[item.rows], xy[item.rows] = code, item.centers
        return slide, xy

    def write_table(self, key: str, table: AnnData) -> None:
        """Add a table that annotates the same shapes, in memory."""
        from spatialdata.models import TableModel

        regions = [slide.name for slide in self.slides]
        self.data.tables[key] = TableModel.parse(
            table, region=regions, region_key=self.region_key, instance_key=self.instance_key
        )


def table_region_keys(table: AnnData) -> tuple[list[str], str, str]:
    """Regions that a table annotates, its region column and its instance column."""
    from spatialdata.models import TableModel, get_table_keys

    if TableModel.ATTRS_KEY not in table.uns:
        msg = (
            "The table annotates no shapes: `uns['spatialdata_attrs']` is absent. "
            "Parse it with `spatialdata.models.TableModel.parse(adata, region=..., region_key=..., instance_key=...)`."
        )
        raise ValueError(msg)
    _, region_key, instance_key = get_table_keys(table)
    for key in (region_key, instance_key):
        if key not in table.obs:
            msg = f"The table's attributes name the column {key!r}, which `obs` lacks; its columns are {sorted(table.obs.columns)}."
            raise KeyError(msg)
    # the regions that have rows: a subset table may still name slides that it no longer holds
    return list(dict.fromkeys(obs_column(table, region_key).astype(str))), region_key, instance_key


def column_of_libraries(table: AnnData, library_key: str | None) -> str | None:
    """Column of `obs` that names the slide of a spot: the one that is named, else "library_id" if it is there."""
    return "library_id" if library_key is None and "library_id" in table.obs else library_key


def library_rows(table: AnnData, *, library_key: str | None) -> dict[str, NDArray[np.intp]]:
    """Rows of every slide, by name.

    Raises
    ------
    KeyError
        If the column that names the slides is absent.
    ValueError
        If there are images of several slides and nothing says which belongs to which spots.
    """
    library_key = column_of_libraries(table, library_key)
    libraries = list(table.uns.get("spatial", {}))
    if library_key is None:
        if len(libraries) > 1:
            msg = f"`uns['spatial']` holds the images of {libraries}: give `library_key`, the column of `obs` that names the slide of a spot."
            raise ValueError(msg)
        return {(libraries or ["slide"])[0]: np.arange(table.n_obs)}
    if library_key not in table.obs:
        msg = f"No column {library_key!r} in `obs`; its columns are {sorted(table.obs.columns)}."
        raise KeyError(msg)
    names = names_of(obs_column(table, library_key))
    return {str(name): np.flatnonzero(names == name) for name in dict.fromkeys(names)}


def library_slide(table: AnnData, name: str, rows: NDArray[np.intp], image_key: str | None) -> Slide:
    """One slide, its centres in pixels of the image that scanpy kept.

    Raises
    ------
    KeyError
        If positions or the named image are absent.
    ValueError
        If the image does not lie under the spots.
    """
    if "spatial" not in table.obsm:
        if IMAGE_FEATURES in table.obsm or table.uns.get("spatial", {}).get(name, {}).get("images"):
            raise KeyError(no_positions(table))
        # counts alone: enough for the gene side of a model
        return Slide(name, rows, np.zeros((len(rows), 2)), np.nan, None, None)
    centers = np.asarray(obsm_array(table, "spatial"), dtype=np.float64)[rows, :2]
    _check_finite(centers, name)
    library = table.uns.get("spatial", {}).get(name, {})
    factors = library.get("scalefactors", {})
    diameter = float(factors.get("spot_diameter_fullres", np.nan))
    # anything else than RGB(A) is no H&E
    images = {
        resolution: pixels
        for resolution, pixels in library.get("images", {}).items()
        if f"tissue_{resolution}_scalef" in factors and is_rgb_array(pixels)
    }
    if image_key is not None and image_key not in images:
        msg = f"No image {image_key!r} with a scale factor in `uns['spatial'][{name!r}]`; its images are {sorted(images)}."
        raise KeyError(msg)
    chosen = image_key or next((resolution for resolution in ("hires", "lowres") if resolution in images), None)
    if chosen is None:
        return Slide(name, rows, centers, diameter, None, None)
    factor = float(factors[f"tissue_{chosen}_scalef"])
    height, width = np.shape(images[chosen])[:2]
    inside = share_inside(centers * factor, (width, height))
    if inside < COVERAGE:
        msg = (
            f"Image {chosen!r} of {name!r} ({width} × {height} pixels) lies elsewhere than the spots: {inside:.0%} of them "
            f"fall on it. `obsm['spatial']` must be in pixels of the full-resolution image (scale factor {factor:g})."
        )
        raise ValueError(msg)
    image = image_from_array(images[chosen], f"{name}/{chosen}")
    stated = _stated_for_library(factors, name, factor)
    return Slide(name, rows, centers * factor, diameter * factor, image, None, stated=stated)


def _shapes_of_region(
    sdata: SpatialData, table: AnnData, region: str, rows: NDArray[np.intp], instance_key: str
) -> tuple[str, str]:
    """Shapes of a region and the column of `obs` that names them.

    They are the region itself; or, for a labels element (as readers of Xenium and Visium HD have it), circles or polygons
    of the same ids in a coordinate system of the labels.

    Raises
    ------
    ValueError
        If the region is a labels element without such shapes.
    """
    if region in sdata.shapes:
        return region, instance_key
    from spatialdata.transformations import get_transformation

    systems = set(get_transformation(sdata.labels[region], get_all=True))
    # `rasterize_bins` numbers the labels anew, and keeps the ids of the bins; Xenium's cells have text ids, labels numbers
    columns = [key for key in (instance_key.removeprefix(RELABELED), "cell_id") if key in table.obs]
    fitting = [
        (name, column)
        for name, shapes in sdata.shapes.items()
        if systems & set(get_transformation(shapes, get_all=True))
        for column in dict.fromkeys(columns)
        if shapes.index.isin(ids := table.obs[column].to_numpy()[rows]).sum() == len(np.unique(ids.astype(str)))
    ]
    if not fitting:
        msg = (
            f"The table annotates {region!r}, which is a labels element: spots need circles or polygons, and no shapes in the "
            f"object ({sorted(sdata.shapes)}) have the ids in {columns}. Read Xenium with `cells_as_circles=True` and Visium "
            "HD with `annotate_table_by_labels=False`; or make circles, `sdata['circles'] = spatialdata.to_circles("
            f"sdata[{region!r}])`, and annotate them, `sdata.set_table_annotates_spatialelement(table_name, "
            f"region='circles', region_key=..., instance_key={instance_key!r})`."
        )
        raise ValueError(msg)
    # of cells rather than of nuclei; circles rather than polygons, whose centres are the same and cost nothing
    best = max(fitting, key=lambda found: (_alike(found[0], region), "radius" in sdata.shapes[found[0]]))
    logger.info("Slide %s is a labels element: the centres of shapes %r of the same ids are taken.", region, best[0])
    return best


def _alike(one: str, other: str) -> int:
    """Length of what two names begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _stated_for_library(factors: Mapping[str, Any], name: str, factor: float) -> Scale | None:
    """What Space Ranger's JSON says of Visium HD, for an image that is `factor` as large as the full resolution."""
    value = factors.get("microns_per_pixel")
    if value is None:
        return None
    return Scale(
        positive_number(value, f"`microns_per_pixel` of {name!r}") / factor, "`microns_per_pixel` of Space Ranger"
    )


def _stated_by_bins(table: AnnData, names: Sequence[str], width: float) -> Scale | None:
    """What the names of the bins of Visium HD say, `width` wide in pixels."""
    side = bin_side_um([*names, table.obs_names[0]])
    if side is None or not width > 0:
        return None
    return Scale(side / width, f"bins of {side:g} µm (their names say so), {width:.1f} px wide")


def no_positions(table: AnnData) -> str:
    """What to say where an AnnData object lacks the positions of its spots."""
    return (
        f"No `obsm['spatial']` in the AnnData object; its obsm holds {sorted(table.obsm)}. Put the centres of the spots there: x "
        "and y in pixels of the full-resolution image."
    )


def element_slide(
    sdata: SpatialData,
    table: AnnData,
    name: str,
    rows: NDArray[np.intp],
    instance_key: str,
    *,
    image_key: str | None,
    in_file: Mapping[str, Any],
) -> Slide:
    """One slide, its centres in pixels of the image that lies under its shapes.

    Raises
    ------
    KeyError
        If the named image is absent.
    ValueError
        If rows and shapes do not match, or the image does not lie under the spots.
    """
    shapes_name, instance_key = _shapes_of_region(sdata, table, name, rows, instance_key)
    shapes = sdata.shapes[shapes_name]
    if not shapes.index.is_unique:
        repeated = [str(i) for i in shapes.index[shapes.index.duplicated()].unique()[:5]]
        msg = f"The index of shapes {name!r} holds some names more than once ({repeated}, ...): rows of the table cannot be matched. Give every shape a name of its own."
        raise ValueError(msg)
    positions = _positions_of(obs_column(table, instance_key).to_numpy()[rows], shapes.index, name, instance_key)
    centers, diameter = shape_centers(shapes)
    centers, diameters = centers[positions], diameter[positions]
    _check_finite(centers, name)
    width = float(np.median(diameters))
    one_size = bool((np.abs(diameters - width) <= SAME_SIZE * width).mean() >= COVERAGE)
    names = (name, shapes_name, *(key for key, item in sdata.tables.items() if item is table))
    images = {**sdata.images, **in_file}
    if image_key is not None and image_key not in images:
        msg = f"No image {image_key!r} in the SpatialData object; its images are {sorted(images)}."
        raise KeyError(msg)
    if image_key is not None:
        found = images_over(shapes, name, centers, images={image_key: images[image_key]})
    else:
        # the slide's file before what wsidata attaches of it as elements: a thumbnail, or all of its pixels
        found = images_over(shapes, name, centers, images=in_file) or images_over(
            shapes, name, centers, images=sdata.images
        )
    if image_key is not None and found is None:
        msg = (
            f"Image {image_key!r} lies elsewhere than the spots of {name!r}, or is not RGB: "
            f"{why_no_image(shapes, centers, images={image_key: images[image_key]})}. The channels of H&E are red, green and "
            "blue (`c_coords=['r', 'g', 'b']`). Where an image lies is said by "
            "`spatialdata.transformations.get_transformation(element, get_all=True)`."
        )
        raise ValueError(msg)
    if found is None:
        from spatialdata.transformations import get_transformation

        first = next(iter(get_transformation(shapes, get_all=True)), None)
        why = why_no_image(shapes, centers, images=images)
        return Slide(name, rows, centers, width, None, None, first, _stated_by_bins(table, names, width), one_size, why)
    width *= found.pixels_per_unit
    of_file = slide_um_per_px(sdata) if found.name == slide_name(sdata) else None
    if of_file is not None:
        stated: Scale | None = Scale(of_file, "the slide's file")
    elif _is_xenium(sdata, shapes, shapes_name, found.coordinate_system):
        stated = Scale(1.0 / found.pixels_per_unit, f"shapes of Xenium ({shapes_name!r}), which are in µm")
    else:
        stated = _stated_by_bins(table, names, width)
    return Slide(
        name,
        rows,
        found.to_pixels(centers),
        width,
        image_of_element(images[found.name], found.name),
        None,
        found.coordinate_system,
        stated,
        one_size,
    )


def _is_xenium(sdata: SpatialData, shapes: GeoDataFrame, name: str, system: str) -> bool:
    """Whether shapes are cells or nuclei as the reader of Xenium brings them: in µm, scaled to pixels of its stains."""
    from spatialdata.transformations import get_transformation

    if not XENIUM_SHAPES.match(name):
        return False
    if sdata.attrs.get("spatialdata_io_reader") == "xenium":
        return True
    # `spatialdata.concatenate` drops the name of the reader
    matrix = affine_matrix(get_transformation(shapes, to_coordinate_system=system))[:2, :2]
    return bool(np.allclose(matrix, np.eye(2) / XENIUM_UM_PER_PX, rtol=1e-3))


def slide_outlines(sections: Sections, slide: Slide) -> list[NDArray[np.float64]] | None:
    """Outline of every spot of a slide, corners (n, 2) in the units of its centres.

    Parameters
    ----------
    sections, slide
        The object, and one of its slides.

    Returns
    -------
    The outlines of polygons, or of circles of several sizes, in the order of ``slide.rows``; of several parts the
    largest. `None` where `diameter` says all: for circles of one size, and for an AnnData.
    """
    if not sections.is_spatialdata:
        return None
    shapes_name, instance_key = _shapes_of_region(
        sections.data, sections.table, slide.name, slide.rows, str(sections.instance_key)
    )
    shapes = sections.data.shapes[shapes_name]
    circles = "radius" in shapes and (shapes.geom_type == "Point").all()
    if circles and slide.one_size:
        return None
    instances = obs_column(sections.table, instance_key).to_numpy()[slide.rows]
    positions = _positions_of(instances, shapes.index, slide.name, instance_key)
    centers, diameters = (values[positions] for values in shape_centers(shapes))
    if circles:
        own = [circle(center, diameter) for center, diameter in zip(centers, diameters, strict=True)]
    else:
        own = [_outer_ring(geometry) for geometry in shapes.geometry.iloc[positions]]
    matrix, shift = _affine_between(centers, slide.centers, scale=slide.diameter / float(np.median(diameters)))
    return [corners @ matrix + shift for corners in own]


def circle(center: NDArray[np.float64], diameter: float) -> NDArray[np.float64]:
    """Corners (n, 2) of a polygon that stands for a circle."""
    angle = 2 * np.pi * np.arange(CORNERS) / CORNERS
    return center + np.column_stack([np.cos(angle), np.sin(angle)]) * diameter / 2


def _outer_ring(geometry: Any) -> NDArray[np.float64]:
    """Corners of a polygon's outline, of the largest part where there are several."""
    largest = max(getattr(geometry, "geoms", [geometry]), key=lambda part: part.area)
    return np.asarray(largest.exterior.coords, dtype=np.float64)[:-1, :2]


def _affine_between(
    before: NDArray[np.float64], after: NDArray[np.float64], *, scale: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The affine map that takes points to points: ``before @ matrix + shift``; spots on one line fix only a scale."""
    middle = before.mean(axis=0)
    solution, _, rank, _ = np.linalg.lstsq(before - middle, after - after.mean(axis=0), rcond=1e-6)
    matrix = solution if rank == 2 else scale * np.eye(2)
    return matrix, after.mean(axis=0) - middle @ matrix


def _positions_of(instances: NDArray[Any], index: pd.Index, name: str, instance_key: str) -> NDArray[np.intp]:
    """Position in the index of a shapes element of every instance; ids of two types are compared as names.

    Raises
    ------
    ValueError
        If an instance is not there.
    """
    positions = index.get_indexer(pd.Index(instances))
    lost = positions < 0
    if lost.all():
        # how an id is kept (1, 1.0 or "1") depends on the file that it was read from
        known = pd.Index(names_of(index))
        found = known.get_indexer(pd.Index(names_of(instances))) if known.is_unique else positions
        if (found >= 0).all():
            return found
    if lost.any():
        msg = (
            f"{int(lost.sum())} rows of the table have no shape in {name!r} (`{instance_key}`: "
            f"{instances[lost][:5].tolist()}, ...); the shapes are indexed {index[:5].tolist()}, .... The ids of the "
            f"table are of type {pd.Index(instances).inferred_type}, those of the shapes of type {index.inferred_type}. "
            "Give both the same ids, or remove these rows."
        )
        raise ValueError(msg)
    return positions


def _check_finite(centers: NDArray[np.float64], name: str) -> None:
    """Raise where a spot has no position."""
    lost = int((~np.isfinite(centers)).any(axis=1).sum())
    if lost:
        msg = f"{lost} spots of {name!r} have no finite position (an empty geometry, or NaN): remove them."
        raise ValueError(msg)

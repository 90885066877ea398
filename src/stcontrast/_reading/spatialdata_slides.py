"""Slides of a SpatialData: shapes, image and scale of a region of its table."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast._reading.columns import names_of, obs_column
from stcontrast._reading.elements import (
    COVERAGE,
    affine_matrix,
    image_of_element,
    images_over,
    shape_centers,
    why_no_image,
)
from stcontrast._reading.scale import Scale, bin_side_um
from stcontrast._reading.sections import SAME_SIZE, Slide, check_finite
from stcontrast._reading.wsi import slide_name, slide_um_per_px

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = ["element_slide", "positions_of", "shapes_of_region"]

logger = logging.getLogger(__name__)

# what `spatialdata.rasterize_bins` puts before the name of the column when it numbers bins anew
RELABELED: Final = "relabeled_"
# shapes of the reader of Xenium, also after `spatialdata.concatenate`; and the pixels of its stains
XENIUM_SHAPES: Final = re.compile(r"(?:cell|nucleus)_(?:circles|boundaries)(?![^\W_])")
XENIUM_UM_PER_PX: Final = 0.2125


def shapes_of_region(
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
    logger.info("Slide %s is a labels element: the centres of shapes %r with the same ids are used.", region, best[0])
    return best


def _alike(one: str, other: str) -> int:
    """Length of what two names begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _stated_by_bins(table: AnnData, names: Sequence[str], width: float) -> Scale | None:
    """What the names of the bins of Visium HD say, `width` wide in pixels."""
    side = bin_side_um([*names, table.obs_names[0]])
    if side is None or not width > 0:
        return None
    return Scale(side / width, f"bins of {side:g} µm (their names say so), {width:.1f} px wide")


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
    shapes_name, instance_key = shapes_of_region(sdata, table, name, rows, instance_key)
    shapes = sdata.shapes[shapes_name]
    if not shapes.index.is_unique:
        repeated = [str(i) for i in shapes.index[shapes.index.duplicated()].unique()[:5]]
        msg = f"The index of shapes {name!r} holds some names more than once ({repeated}, ...): rows of the table cannot be matched. Give every shape a name of its own."
        raise ValueError(msg)
    positions = positions_of(obs_column(table, instance_key).to_numpy()[rows], shapes.index, name, instance_key)
    centers, diameter = shape_centers(shapes)
    centers, diameters = centers[positions], diameter[positions]
    check_finite(centers, name)
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
            f"Image {image_key!r} does not lie under the spots of {name!r}, or is not RGB: "
            f"{why_no_image(shapes, centers, images={image_key: images[image_key]})}. The channels of H&E are red, green and "
            "blue (`c_coords=['r', 'g', 'b']`). "
            "`spatialdata.transformations.get_transformation(element, get_all=True)` shows where an image lies."
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


def positions_of(instances: NDArray[Any], index: pd.Index, name: str, instance_key: str) -> NDArray[np.intp]:
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

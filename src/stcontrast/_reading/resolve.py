"""The boundary: SpatialData and AnnData in, plain arrays out. No other file knows SpatialData's elements.

Pixels follow SpatialData: x to the right, y down, pixel (0, 0) covers the square [0, 1) × [0, 1).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from stcontrast._keys import UNS
from stcontrast._progress import stage
from stcontrast._reading.anndata_slides import column_of_libraries, library_rows, library_slide
from stcontrast._reading.columns import obs_column
from stcontrast._reading.scale import (
    positive_number,
)
from stcontrast._reading.sections import PerSlide, Sections, of_slide, table_region_keys
from stcontrast._reading.slide_images import compare_slides, report_images, with_scale
from stcontrast._reading.spatialdata_slides import element_slide
from stcontrast._reading.wsi import slide_element
from stcontrast._records import read_record

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading.sections import Slide

__all__ = [
    "Keys",
    "as_list",
    "resolve_all",
    "resolve_slides",
    "resolve_table",
    "slide_names",
    "slide_of_row",
    "split_gene_side",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Keys:
    """Where things lie in the user's objects; see the parameters of :func:`stcontrast.tl.fit`."""

    batch_key: str | None = None
    donor_key: str | None = None
    label_key: str | None = None
    layer: str | None = None
    table_key: str | None = None
    image_key: PerSlide[str] = None
    slide_key: str | None = None
    um_per_px: PerSlide[float] = None
    spot_diameter_um: float | None = None


def as_list(data: SpatialData | AnnData | Sequence[SpatialData | AnnData]) -> list[SpatialData | AnnData]:
    """One object or a sequence of them, as a list."""
    objects = list(data) if isinstance(data, Sequence) else [data]
    if not objects:
        msg = "No data: an empty list was given."
        raise ValueError(msg)
    return objects


def resolve_table(data: SpatialData | AnnData, *, table_key: str | None = None) -> AnnData:
    """The table that holds the spots: `table_key`, or the only one, or the one called "table".

    Raises
    ------
    KeyError
        If there is no such table, or several and none is named; the message lists what is there.
    """
    from anndata import AnnData
    from spatialdata import SpatialData

    if isinstance(data, AnnData):
        return data
    if not isinstance(data, SpatialData):
        msg = f"Expected a SpatialData or an AnnData object, found {type(data).__name__}.{_how_to_give(data)}"
        raise TypeError(msg)
    names = [name for name, table in data.tables.items() if read_record(table, "prediction") is None]
    if table_key is None and len(names) == 1:
        return data.tables[names[0]]
    if table_key is None and len(names) > 1 and "table" not in names:
        msg = f"The SpatialData object has several tables, {sorted(names)}: name the one that holds the spots with `table_key`."
        raise KeyError(msg)
    if (table_key or "table") not in data.tables:
        msg = (
            f"No table {table_key or 'table'!r} in the SpatialData object; its tables are {sorted(data.tables)}. Name the one "
            "that holds the spots with `table_key`."
        )
        raise KeyError(msg)
    return data.tables[table_key or "table"]


def _how_to_give(data: object) -> str:
    if isinstance(data, str | PathLike):
        return " Read the file first: `anndata.read_h5ad(path)` or `spatialdata.read_zarr(path)`."
    return " Several objects are given as a list." if isinstance(data, Iterable) else ""


def slide_names(
    data: SpatialData | AnnData, *, table_key: str | None = None, library_key: str | None = None
) -> list[str]:
    """Names of the slides of an object, without reading images or shapes; raises as :func:`resolve_slides` does."""
    table = resolve_table(data, table_key=table_key)
    return list(library_rows(table, library_key=library_key)) if table is data else table_region_keys(table)[0]


def slide_of_row(table: AnnData, *, library_key: str | None = None) -> NDArray[np.str_]:
    """Name of the slide of every row of a table (n_spots,), without reading images, shapes or positions.

    Raises
    ------
    KeyError
        If the column that names the slides is absent.
    ValueError
        If a table that annotates no shapes has the images of several slides and nothing says which belongs to which spots.
    """
    if "spatialdata_attrs" in table.uns:
        return obs_column(table, table_region_keys(table)[1]).astype(str).to_numpy(dtype=np.str_)
    rows = library_rows(table, library_key=library_key)
    names = np.empty(table.n_obs, dtype=object)
    for name, its_rows in rows.items():
        names[its_rows] = name
    return names.astype(np.str_)


def resolve_slides(
    data: SpatialData | AnnData,
    *,
    table_key: str | None = None,
    image_key: PerSlide[str] = None,
    um_per_px: PerSlide[float] = None,
    spot_diameter_um: float | None = None,
    library_key: str | None = None,
) -> Sections:
    """Resolve table, shapes, image and transformations of every slide into plain arrays.

    Parameters
    ----------
    data
        SpatialData whose table annotates one or more shapes elements; or AnnData with ``obsm["spatial"]`` in
        pixels of the full-resolution image (and, for images, scanpy's ``uns["spatial"]``).
    table_key
        Table to use; the only one by default.
    image_key
        Image of every slide, or a mapping from slide to image; by default ``uns["stcontrast"]["image_key"]`` (such a
        mapping), else the finest RGB image that lies under the spots in a coordinate system they share, of a WSIData
        its slide's file (which has the file's name). AnnData: a key of its images, such as ``"hires"``; the finest by default.
    um_per_px
        µm per pixel of the image's finest level, a number or a mapping from slide to number; by default
        ``uns["stcontrast"]["um_per_px"]`` (likewise), else
        what the files say (a WSIData; the bins of Visium HD), else derived from the spots (see
        :func:`~stcontrast._reading.scale.scale_from_spots`). A value that contradicts one of these by more than 5 % is
        logged at WARNING.
    spot_diameter_um
        Diameter (or side) of a spot in µm, to derive µm per pixel from.
    library_key
        AnnData: column of `obs` that names the slide of a spot; ``"library_id"`` by default if it is there.

    Returns
    -------
    The object, its table and its slides, in order of appearance.

    Raises
    ------
    KeyError
        If a named table, image, region or column is absent; the message lists what is there.
    FileNotFoundError
        If the slide's file of a WSIData is gone.
    ValueError
        If an image does not lie under the spots, rows and shapes do not match, or a scale is no positive number.
    """
    from anndata import AnnData

    table = resolve_table(data, table_key=table_key)
    if table.n_obs == 0:
        msg = "The table has no spots (0 rows)."
        raise ValueError(msg)
    if spot_diameter_um is not None:
        spot_diameter_um = positive_number(spot_diameter_um, "`spot_diameter_um`")
    stored = table.uns.get(UNS, {}).get("um_per_px")
    if isinstance(data, AnnData):
        slides = [
            library_slide(table, name, rows, of_slide(image_key, name))
            for name, rows in library_rows(table, library_key=library_key).items()
        ]
        keys: tuple[str | None, str | None] = (None, None)
    else:
        regions, region_key, instance_key = table_region_keys(table)
        absent = sorted(set(regions) - set(data.shapes) - set(data.labels))
        if absent:
            points = [name for name in absent if name in data.points]
            msg = (
                f"The table annotates shapes that are absent: {absent}. Shapes in the object: {sorted(data.shapes)}. "
                + (
                    f"{points} are points: make circles of them with `spatialdata.to_circles(sdata[name], radius=...)`."
                    if points
                    else "Add them, or remove their rows from the table."
                )
            )
            raise KeyError(msg)
        of_row = obs_column(table, region_key).astype(str).to_numpy()
        in_file = slide_element(data)
        # the image that a grid was laid on, to which its µm per pixel refer
        laid_on = {s: i for s, i in table.uns.get(UNS, {}).get("image_key", {}).items() if i in data.images}
        slides = [
            element_slide(
                data,
                table,
                name,
                np.flatnonzero(of_row == name),
                instance_key,
                image_key=of_slide(image_key, name) or laid_on.get(name),
                in_file=in_file,
            )
            for name in regions
        ]
        keys = (region_key, instance_key)
    _check_slides_exist([slide.name for slide in slides], um_per_px=um_per_px, image_key=image_key)
    scaled = [
        with_scale(slide, given=of_slide(um_per_px, slide.name), stored=stored, spot_diameter_um=spot_diameter_um)
        for slide in slides
    ]
    _report_overlap(scaled)
    report_images(scaled, chosen=image_key)
    compare_slides(scaled)
    return Sections(data, table, scaled, *keys, column_of_libraries(table, library_key) if table is data else None)


@stage("reading slides")
def resolve_all(
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData], keys: Keys | Sequence[Keys]
) -> list[Sections]:
    """Resolve table and slides of one object or of every object of a list; `keys` of all, or of each.

    Raises
    ------
    KeyError
        If something that is named is absent, slides in a mapping included; the message lists what is there.
    """
    objects = as_list(data)
    of_each = [keys] * len(objects) if isinstance(keys, Keys) else list(keys)
    names = [
        slide_names(item, table_key=own.table_key, library_key=own.slide_key)
        for item, own in zip(objects, of_each, strict=True)
    ]
    known = [name for of_one in names for name in of_one]
    _check_slides_exist(known, um_per_px=of_each[0].um_per_px, image_key=of_each[0].image_key)
    found = [
        resolve_slides(
            item,
            table_key=own.table_key,
            # a mapping may name slides of the other objects too
            image_key=_restricted(own.image_key, of_one),
            um_per_px=_restricted(own.um_per_px, of_one),
            spot_diameter_um=own.spot_diameter_um,
            library_key=own.slide_key,
        )
        for item, own, of_one in zip(objects, of_each, names, strict=True)
    ]
    if len(found) > 1:
        compare_slides([slide for sections in found for slide in sections.slides])
    return found


def split_gene_side(sources: Sequence[Sections], *, slots: Sequence[str]) -> tuple[list[Sections], list[Sections]]:
    """Objects with image features or images, and those that have counts and neither: their slides are named at WARNING.

    Where no object has either, all are returned as the first, for the usual error.
    """
    alone = [
        source
        for source in sources
        if not any(slot in source.table.obsm for slot in slots)
        and source.table.n_vars > 0
        and all(slide.image is None for slide in source.slides)
    ]
    seen = [source for source in sources if all(source is not other for other in alone)]
    if not seen or not alone:
        return list(sources), []
    logger.warning(
        "No image lies under the spots of %s: these slides contribute only to the gene space. If they have an "
        "image, see `image_key`.", [slide.name for source in alone for slide in source.slides],
    )  # fmt: skip
    return seen, alone


def _check_slides_exist(known: Sequence[str], **given: PerSlide[Any]) -> None:
    for argument, per_slide in given.items():
        absent = sorted(set(per_slide) - set(known)) if isinstance(per_slide, Mapping) else []
        if absent:
            msg = f"`{argument}` names slides that are absent: {absent}. Slides: {list(known)}."
            raise KeyError(msg)


def _restricted[T](given: PerSlide[T], names: Sequence[str]) -> PerSlide[T]:
    if not isinstance(given, Mapping):
        return given
    return {name: value for name, value in given.items() if name in names}


def _report_overlap(slides: list[Slide]) -> None:
    """Slides left at one origin may each take the image of another that lacks its own: say so."""
    for i, one in enumerate(slides):
        low, high = one.centers.min(axis=0), one.centers.max(axis=0)
        for other in slides[i + 1 :]:
            if one.image is None or other.image is None or one.image.name != other.image.name:
                continue
            if ((other.centers >= low) & (other.centers <= high)).all(axis=1).mean() > 0.5:
                logger.warning(
                    "Slides %r and %r lie on top of each other on image %r. If it is the image of only one of them, "
                    "give each slide a coordinate system of its own.", one.name, other.name, one.image.name,
                )  # fmt: skip

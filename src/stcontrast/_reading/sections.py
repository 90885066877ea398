"""What a slide is, whatever it was read from.

Pixels follow SpatialData: x to the right, y down, pixel (0, 0) covers the square [0, 1) × [0, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast._reading.columns import obs_column

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading.elements import SlideImage
    from stcontrast._reading.scale import Scale

__all__ = [
    "SAME_SIZE",
    "PerSlide",
    "Sections",
    "Slide",
    "check_finite",
    "no_positions",
    "of_slide",
    "table_region_keys",
]

# spots of a platform have one size; of these cells do not
SAME_SIZE: Final = 0.03


type PerSlide[T] = T | Mapping[str, T] | None


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


def no_positions(table: AnnData) -> str:
    """What to say where an AnnData object lacks the positions of its spots."""
    return (
        f"No `obsm['spatial']` in the AnnData object; its obsm holds {sorted(table.obsm)}. Put the centres of the spots there: x "
        "and y in pixels of the full-resolution image."
    )


def check_finite(centers: NDArray[np.float64], name: str) -> None:
    """Raise where a spot has no position."""
    lost = int((~np.isfinite(centers)).any(axis=1).sum())
    if lost:
        msg = f"{lost} spots of {name!r} have no finite position (an empty geometry, or NaN): remove them."
        raise ValueError(msg)


def of_slide[T](given: PerSlide[T], name: str) -> T | None:
    return given.get(name) if isinstance(given, Mapping) else given

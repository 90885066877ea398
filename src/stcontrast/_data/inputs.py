"""From one object or a list of them to arrays over all spots: the first step of every tool."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stcontrast._reading.resolve import require_images, resolve_slides, slide_names

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading.resolve import Spots

__all__ = [
    "Keys",
    "Source",
    "as_list",
    "check_images",
    "resolve_sources",
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
    image_key: str | Mapping[str, str] | None = None
    slide_key: str | None = None
    um_per_px: float | Mapping[str, float] | None = None
    spot_diameter_um: float | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One of the user's objects, resolved."""

    data: SpatialData | AnnData
    spots: Spots

    @property
    def table(self) -> AnnData:
        """Its table."""
        return self.spots.table

    @property
    def is_spatialdata(self) -> bool:
        """Whether it is a SpatialData, to which a table can be added."""
        return hasattr(self.data, "tables")

    def slide_and_xy(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Slide (n_spots,) and centre (n_spots, 2) of every spot."""
        slide = np.full(self.table.n_obs, -1, dtype=np.int64)
        xy = np.zeros((self.table.n_obs, 2))
        for code, item in enumerate(self.spots.slides):
            slide[item.rows], xy[item.rows] = code, item.centers
        return slide, xy

    def write_table(self, key: str, table: AnnData) -> None:
        """Add a table that annotates the same shapes, in memory."""
        from spatialdata.models import TableModel

        regions = [slide.name for slide in self.spots.slides]
        self.data.tables[key] = TableModel.parse(
            table, region=regions, region_key=self.spots.region_key, instance_key=self.spots.instance_key
        )


def as_list(data: SpatialData | AnnData | Sequence[SpatialData | AnnData]) -> list[SpatialData | AnnData]:
    """One object or a sequence of them, as a list."""
    objects = list(data) if isinstance(data, Sequence) else [data]
    if not objects:
        msg = "No data: an empty list was given."
        raise ValueError(msg)
    return objects


def resolve_sources(data: SpatialData | AnnData | Sequence[SpatialData | AnnData], keys: Keys) -> list[Source]:
    """Resolve table and slides of one object or of every object of a list.

    Raises
    ------
    KeyError
        If something that is named is absent, slides in a mapping included; the message lists what is there.
    """
    objects = as_list(data)
    names = [slide_names(item, table_key=keys.table_key, library_key=keys.slide_key) for item in objects]
    known = [name for of_one in names for name in of_one]
    for argument, given in (("um_per_px", keys.um_per_px), ("image_key", keys.image_key)):
        absent = sorted(set(given) - set(known)) if isinstance(given, Mapping) else []
        if absent:
            msg = f"`{argument}` names slides that are absent: {absent}. Slides: {known}."
            raise KeyError(msg)
    return [_resolve_source(item, keys, set(of_one)) for item, of_one in zip(objects, names, strict=True)]


def _resolve_source(data: SpatialData | AnnData, keys: Keys, names: set[str]) -> Source:
    # mappings may name slides of the other objects too
    spots = resolve_slides(
        data,
        table_key=keys.table_key,
        image_key=_restricted(keys.image_key, names),
        um_per_px=_restricted(keys.um_per_px, names),
        spot_diameter_um=keys.spot_diameter_um,
        library_key=keys.slide_key,
    )
    return Source(data, spots)


def check_images(sources: Sequence[Source], *, obsm_key: str) -> None:
    """Raise where image features are absent and cannot be made: no image, or µm per pixel unknown."""
    for source in sources:
        if obsm_key not in source.table.obsm:
            require_images(source.spots)


def _restricted[T](given: T | Mapping[str, T] | None, names: set[str]) -> T | dict[str, T] | None:
    if not isinstance(given, Mapping):
        return given
    return {name: value for name, value in given.items() if name in names}

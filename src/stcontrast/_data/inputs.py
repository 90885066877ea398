"""From one object or a list of them to arrays over all spots: the first step of every tool."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stcontrast._reading.counts import raw_counts, shared_genes
from stcontrast._reading.resolve import require_images, resolve_slides, slide_names

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading.resolve import Spots

__all__ = [
    "Inputs",
    "Keys",
    "Source",
    "as_list",
    "check_images",
    "depth_of",
    "gather",
    "resolve_sources",
    "stacked_column",
    "stacked_labels",
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


@dataclass(frozen=True, slots=True)
class Inputs:
    """All spots of all objects, one under another.

    Attributes
    ----------
    slide_names, slide
        Names of the slides and the slide of each spot (n_spots,).
    donor, batch
        Donor and batch of each spot (n_spots,).
    name
        Names of the spots (n_spots,), as in `obs_names`.
    xy
        Centres (n_spots, 2).
    genes
        Genes that every object with counts has.
    counts
        Raw counts (n_spots, n_genes), empty rows where a spot is not measured.
    total
        Depth over the full library (n_spots,).
    measured
        Whether a spot has counts (n_spots,).
    label
        Annotation (n_spots,), `None` where there is none.
    """

    slide_names: list[str]
    slide: NDArray[np.int64]
    donor: NDArray[np.str_]
    batch: NDArray[np.str_]
    name: NDArray[np.str_]
    xy: NDArray[np.float64]
    genes: list[str]
    counts: sparse.csr_matrix
    total: NDArray[np.float64]
    measured: NDArray[np.bool_]
    label: NDArray[Any]


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


def gather(sources: Sequence[Source], keys: Keys) -> Inputs:
    """Stack all objects. Each slide gives what it has: counts, labels or both.

    Raises
    ------
    KeyError
        If a key is absent; the message lists what is there.
    ValueError
        If counts are not raw, objects share no genes, or slides share a name.
    """
    names = [slide.name for source in sources for slide in source.spots.slides]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        msg = (
            f"Slides share a name: {twice}. Rename the shapes so that every slide has its own; an AnnData object "
            "names its slides in a column of `obs` (`library_key`)."
        )
        raise ValueError(msg)
    genes = shared_genes([source.table for source in sources])
    slide, xy, counts, total, measured = [], [], [], [], []
    n_slides = 0
    for source in sources:
        of_spot, centers = source.slide_and_xy()
        matrix, depth = _counts(source.table, keys.layer, genes)
        slide.append(of_spot + n_slides)
        n_slides += len(source.spots.slides)
        xy.append(centers)
        counts.append(matrix)
        total.append(depth)
        measured.append(depth > 0)
    donor_key = keys.donor_key or keys.batch_key
    tables = [source.table for source in sources]
    slide_of_spot = np.concatenate(slide)
    # without a donor, every slide counts as one
    by_slide = np.array(names, dtype=np.str_)[slide_of_spot]
    donor = by_slide
    if donor_key is not None:
        donor = stacked_column(tables, donor_key, "donor_key" if keys.donor_key else "batch_key")
        _check_one_donor_a_slide(sources, keys, donor_key)
    return Inputs(
        slide_names=names,
        slide=slide_of_spot,
        donor=donor,
        batch=by_slide if keys.batch_key is None else stacked_column(tables, keys.batch_key, "batch_key"),
        name=np.concatenate([table.obs_names.to_numpy(dtype=np.str_) for table in tables]),
        xy=np.concatenate(xy),
        genes=genes,
        counts=sparse.csr_matrix(sparse.vstack(counts, format="csr")),
        total=np.concatenate(total),
        measured=np.concatenate(measured),
        label=stacked_labels(tables, keys.label_key),
    )


def depth_of(source: Source) -> NDArray[np.float64]:
    """Measured counts of every spot in `X` (n_spots,), for an oracle."""
    if source.table.n_vars == 0:
        msg = (
            "The model is an oracle: it needs the measured depth of the spots it predicts, and the table has no genes."
        )
        raise ValueError(msg)
    logger.warning("The model is an oracle: it looks at the measured depth of the spots that it predicts.")
    return _counts(source.table, None, [])[1]


def _check_one_donor_a_slide(sources: Sequence[Source], keys: Keys, donor_key: str) -> None:
    # An AnnData of several sections with nothing that tells them apart: their coordinates would be mixed. A shapes
    # element is one slide by definition, and may hold several donors (a tissue microarray).
    for source in sources:
        named = keys.slide_key is not None or "library_id" in source.table.obs
        donors = sorted(source.table.obs[donor_key].astype(str).unique())
        if not source.is_spatialdata and not named and len(donors) > 1:
            msg = f"The AnnData object holds several donors, {donors[:5]}: say which column of `obs` names the slides (`library_key`)."
            raise ValueError(msg)


def _restricted[T](given: T | Mapping[str, T] | None, names: set[str]) -> T | dict[str, T] | None:
    if not isinstance(given, Mapping):
        return given
    return {name: value for name, value in given.items() if name in names}


def _counts(table: AnnData, layer: str | None, genes: list[str]) -> tuple[sparse.csr_matrix, NDArray[np.float64]]:
    if table.n_vars == 0:
        return sparse.csr_matrix((table.n_obs, len(genes)), dtype=np.float32), np.zeros(table.n_obs)
    full = raw_counts(table, layer)
    columns = table.var_names.get_indexer(genes)
    # depth over the full library, not over the shared genes
    return sparse.csr_matrix(full[:, columns]), np.asarray(full.sum(axis=1), dtype=np.float64).ravel()


def stacked_column(tables: Sequence[AnnData], key: str, argument: str) -> NDArray[np.str_]:
    """A column of `obs` that every table has in full, one under another (n_spots,)."""
    for table in tables:
        if key not in table.obs:
            msg = f"`{argument}`: no column {key!r} in `obs`; its columns are {sorted(table.obs.columns)}."
            raise KeyError(msg)
        if table.obs[key].isna().any():
            msg = f"`{argument}`: column {key!r} of `obs` is empty for {int(table.obs[key].isna().sum())} spots."
            raise ValueError(msg)
    return np.concatenate([table.obs[key].astype(str).to_numpy(dtype=np.str_) for table in tables])


def stacked_labels(tables: Sequence[AnnData], key: str | None) -> NDArray[Any]:
    """A column of `obs` that some table has, one under another (n_spots,), `None` where there is no value."""
    if key is None:
        return np.full(sum(table.n_obs for table in tables), None, dtype=object)
    if not any(key in table.obs for table in tables):
        msg = f"`label_key`: no column {key!r} in `obs`; its columns are {sorted(tables[0].obs.columns)}."
        raise KeyError(msg)
    parts = []
    for table in tables:
        column = table.obs.get(key, pd.Series(index=table.obs_names, dtype=object)).astype(object)
        parts.append(np.array([None if pd.isna(value) else str(value) for value in column], dtype=object))
    return np.concatenate(parts)

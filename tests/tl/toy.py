"""Parts of the toy data: some donors, without counts, without labels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LABELS = "subtype"
OPTIONS = {"max_epochs": 5, "n_coordinates": 4}


def parts_of(sdata: SpatialData, *donors: str) -> SpatialData:
    """The slides of some donors, table copied."""
    table = sdata["table"]
    table = table[table.obs["donor"].isin(donors)].copy()
    regions = sorted(set(table.obs["region"]))
    table.obs["region"] = table.obs["region"].cat.remove_unused_categories()
    return with_table(sdata, table, regions)


def with_table(sdata: SpatialData, table: AnnData, regions: list[str]) -> SpatialData:
    """The slides that a table annotates, with that table alone."""
    table.uns.pop("spatialdata_attrs", None)
    return SpatialData(
        images={f"{name}_he": sdata.images[f"{name}_he"] for name in regions},
        shapes={name: sdata.shapes[name] for name in regions},
        tables={"table": TableModel.parse(table, region=regions, region_key="region", instance_key="spot_id")},
    )


def bare(sdata: SpatialData, *, keep: tuple[str, ...] = ("donor", "subtype", "region", "spot_id")) -> SpatialData:
    """As from the scanner: H&E and spots, some columns of `obs`, no genes, no image features."""
    table = sdata["table"]
    empty = AnnData(obs=table.obs[list(keep)].copy())
    empty.uns["stcontrast"] = {"um_per_px": dict(table.uns["stcontrast"]["um_per_px"])}
    return with_table(sdata, empty, sorted(set(table.obs["region"].astype(str))))


def as_anndata(sdata: SpatialData) -> AnnData:
    """The table as an AnnData of its own, as one without SpatialData has it: features given, slides in a column."""
    table = sdata["table"].copy()
    del table.uns["spatialdata_attrs"], table.uns["stcontrast"]
    table.obs["library_id"] = table.obs["region"]
    return table


def snapshot(sdata: SpatialData) -> dict[str, Any]:
    """What must not change: the names of all elements, and the contents of the tables."""
    content: dict[str, Any] = {"elements": sorted(name for _, name, _ in sdata.gen_elements())}
    for name, table in sdata.tables.items():
        content[name] = {
            "obs": table.obs.to_csv(), "var": table.var.to_csv(), "obsm": sorted(table.obsm), "layers": sorted(map(str, table.layers)),
            "uns": sorted(table.uns), "ours": sorted(table.uns.get("stcontrast", {})),
            "X": None if table.X is None else np.asarray(table.X.sum(axis=0)).tolist(),
        }  # fmt: skip
    return content


def image_of(sdata: SpatialData, change: Callable[[np.ndarray], np.ndarray]) -> SpatialData:
    """The same slides with changed pictures."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import get_transformation

    images = {
        name: Image2DModel.parse(
            change(tree["scale0"]["image"].values), dims=("c", "y", "x"), c_coords=("r", "g", "b"), scale_factors=[2, 2],
            transformations=get_transformation(tree, get_all=True),
        )
        for name, tree in sdata.images.items()
    }  # fmt: skip
    return SpatialData(images=images, shapes=dict(sdata.shapes), tables=dict(sdata.tables))


def kept_fits(directory: Path) -> dict[tuple[str, str, str], dict[str, np.ndarray]]:
    """Arrays of the fits in a cross-validation's folder, by method, options and held-out donors."""
    found = {}
    for path in directory.glob("*.npz"):
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        about = json.loads(str(arrays.pop("about")))
        found[about["method"], about["options"], ", ".join(about["held out"])] = arrays
    return found

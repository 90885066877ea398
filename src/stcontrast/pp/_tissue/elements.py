"""The spots of a lattice as shapes, and the table without genes that annotates them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from stcontrast._keys import UNS
from stcontrast._records import write_record

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast.pp._tissue.lattice import Geometry, Lattice

__all__ = ["Grid", "grid_shapes", "grid_table"]


class Grid(NamedTuple):
    """The spots of one image."""

    image_key: str
    shapes_key: str
    um_per_px: float
    lattice: Lattice
    fraction: NDArray[np.float32]


def grid_shapes(sdata: SpatialData, grid: Grid, diameter: float, geometry: Geometry) -> Any:
    """Circles or squares in the pixels of the image, with its transformations."""
    from geopandas import GeoDataFrame
    from shapely import box
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    placed = dict(get_transformation(sdata.images[grid.image_key], get_all=True))
    centers = grid.lattice.centers
    if geometry == "visium":
        return ShapesModel.parse(centers, geometry=0, radius=diameter / 2, transformations=placed)
    squares = box(*(centers - diameter / 2).T, *(centers + diameter / 2).T)
    return ShapesModel.parse(GeoDataFrame(geometry=squares), transformations=placed)


def grid_table(grids: list[Grid], record: dict[str, Any]) -> AnnData:
    """One table for the spots of all images; `record` says how they were made."""
    from anndata import AnnData
    from scipy.sparse import csr_matrix
    from spatialdata.models import TableModel

    slides = [grid.shapes_key for grid in grids]
    sizes = [len(grid.fraction) for grid in grids]
    region = pd.Categorical.from_codes(np.repeat(np.arange(len(grids)), sizes), categories=pd.Index(slides))
    spot_id = np.concatenate([np.arange(size) for size in sizes])
    array = np.concatenate([grid.lattice.array for grid in grids])
    obs = pd.DataFrame(
        {
            "region": region,
            "spot_id": spot_id,
            "array_row": array[:, 0],
            "array_col": array[:, 1],
            "tissue_fraction": np.concatenate([grid.fraction for grid in grids]),
        },
        index=[f"{slide}_{i}" for slide, size in zip(slides, sizes, strict=True) for i in range(size)],
    )
    table = AnnData(
        csr_matrix((len(obs), 0), dtype=np.float32),
        obs=obs,
        obsm={"spatial": np.concatenate([grid.lattice.centers for grid in grids])},
    )
    table.uns[UNS] = {
        "um_per_px": {grid.shapes_key: grid.um_per_px for grid in grids},
        "image_key": {grid.shapes_key: grid.image_key for grid in grids},
    }
    write_record(table, "tissue_grid", record)
    return TableModel.parse(table, region=slides, region_key="region", instance_key="spot_id")

"""Regular lattices of spots: centres, share of tissue, shapes, and the table without genes that annotates them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import pandas as pd

from stcontrast._keys import UNS
from stcontrast._records import write_record

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


__all__ = ["Geometry", "Grid", "Lattice", "grid_shapes", "grid_table", "lattice_points", "tissue_fraction"]

type Geometry = Literal["visium", "square"]

# points that stand for the area of a spot, each for the same share of it
POINTS_ALONG: Final = 8
GOLDEN_ANGLE: Final = np.pi * (3 - np.sqrt(5))


class Lattice(NamedTuple):
    """Centres (n, 2), x and y, and the row and column (n, 2) of each."""

    centers: NDArray[np.float64]
    array: NDArray[np.int64]


def lattice_points(width: float, height: float, *, pitch: float, geometry: Geometry) -> Lattice:
    """Points of a regular lattice in the middle of a rectangle.

    Parameters
    ----------
    width, height
        The rectangle, from 0.
    pitch
        Distance between neighbours, in the same units.
    geometry
        ``"visium"``: hexagonal; rows lie √3/2 pitch apart, every second one shifted by half a pitch. Columns are
        counted as Space Ranger does, by half pitches. ``"square"``: rows and columns one pitch apart.

    Returns
    -------
    The lattice, row by row; empty where not even one point has room.
    """
    shift = 0.5 if geometry == "visium" else 0.0
    between_rows = pitch * (np.sqrt(0.75) if geometry == "visium" else 1.0)
    n_rows, n_columns = int(height / between_rows), max(0, int(width / pitch - shift))
    row, column = (index.ravel() for index in np.mgrid[:n_rows, :n_columns])
    odd = row % 2
    x = (column + shift * odd) * pitch + (width - (n_columns - 1 + shift) * pitch) / 2
    y = row * between_rows + (height - (n_rows - 1) * between_rows) / 2
    return Lattice(np.column_stack([x, y]), np.column_stack([row, 2 * column + odd if shift else column]))


def tissue_fraction(
    centers: NDArray[np.float64], mask: NDArray[np.bool_], *, downsampling: float, diameter: float, geometry: Geometry
) -> NDArray[np.float32]:
    """Share of every spot's area that lies on tissue, from 64 points spread evenly over it.

    Parameters
    ----------
    centers
        x, y in pixels of the image, shape (n_spots, 2).
    mask
        Tissue, shape (height, width), at low resolution. Beyond it there is none.
    downsampling
        Pixels of the image along the side of a pixel of the mask.
    diameter
        Diameter of the spots (side, if they are square) in pixels of the image.
    geometry
        ``"visium"``: discs; ``"square"``: squares.

    Returns
    -------
    Shares between 0 and 1, shape (n_spots,).
    """
    n = POINTS_ALONG**2
    if geometry == "visium":
        radius, angle = np.sqrt((np.arange(n) + 0.5) / n) / 2, np.arange(n) * GOLDEN_ANGLE
        offsets = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]) * diameter
    else:
        along = ((np.arange(POINTS_ALONG) + 0.5) / POINTS_ALONG - 0.5) * diameter
        offsets = np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2)
    # a border of glass, so that a point beyond the mask finds no tissue
    padded = np.pad(mask, 1)
    limit = np.array(mask.shape[::-1])
    hits = np.zeros(len(centers), dtype=np.float32)
    for offset in offsets:
        x, y = np.clip(np.floor((centers + offset) / downsampling).astype(np.int64), -1, limit).T + 1
        hits += padded[y, x]
    return hits / np.float32(n)


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

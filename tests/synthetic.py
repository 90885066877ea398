"""Small slides of known geometry, element by element."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from shapely import box
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from geopandas import GeoDataFrame
    from numpy.typing import NDArray


def picture(height: int = 96, width: int = 128, *, seed: int = 0, channels: int = 3) -> NDArray[np.uint8]:
    """Noise: no two places look alike."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth_picture(size: int = 256) -> NDArray[np.uint8]:
    """Waves of some 40 pixels."""
    y, x = np.mgrid[:size, :size] / 6.0
    waves = [np.sin(x) + np.cos(y), np.sin(x + y), np.cos(x / 2) * np.sin(y)]
    return np.stack([127 + 60 * wave for wave in waves], axis=-1).clip(0, 255).astype(np.uint8)


def points(n: int, height: int = 96, width: int = 128, *, seed: int = 0) -> NDArray[np.float64]:
    """Centres inside a picture."""
    return 1 + np.random.default_rng(seed).uniform(0, 1, (n, 2)) * (
        width - 2,
        height - 2,
    )


def hexagonal(rows: int, columns: int, pitch: float = 1.0) -> NDArray[np.float64]:
    """A lattice as Visium's."""
    i, j = np.mgrid[:rows, :columns]
    return pitch * np.column_stack([(j + i % 2 / 2).ravel(), (i * np.sqrt(0.75)).ravel()])


def square(rows: int, columns: int, pitch: float = 1.0) -> NDArray[np.float64]:
    """A lattice as legacy ST's."""
    i, j = np.mgrid[:rows, :columns]
    return pitch * np.column_stack([j.ravel(), i.ravel()]).astype(float)


def image(
    pixels: NDArray[Any],
    to: Mapping[str, Any],
    *,
    scale_factors: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Any:
    """An image element from (height, width, channels), its channels without names by default."""
    return Image2DModel.parse(
        np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), scale_factors=scale_factors, chunks=(pixels.shape[-1], 64, 64),
        c_coords=names, transformations=dict(to),
    )  # fmt: skip


def circles(
    centers: NDArray[np.float64], to: Mapping[str, Any], *, radius: float = 5.0, index: Any = None
) -> GeoDataFrame:
    """Circles as a shapes element."""
    return ShapesModel.parse(centers, geometry=0, radius=radius, index=index, transformations=dict(to))


def polygons(
    centers: NDArray[np.float64], to: Mapping[str, Any], *, side: float = 8.0, index: Any = None
) -> GeoDataFrame:
    """Squares as a shapes element."""
    import geopandas as gpd

    low, high = centers - side / 2, centers + side / 2
    squares = gpd.GeoDataFrame(geometry=[box(*a, *b) for a, b in zip(low, high, strict=True)], index=index)
    return ShapesModel.parse(squares, transformations=dict(to))


def table(instances: Mapping[str, Any], *, um_per_px: float | None = 1.0) -> ad.AnnData:
    """A table over slides, from slide to its instances."""
    region = np.concatenate([[name] * len(ids) for name, ids in instances.items()])
    n = len(region)
    adata = ad.AnnData(
        csr_matrix(np.random.default_rng(0).poisson(1.0, (n, 3)).astype(np.float32)),
        obs=pd.DataFrame(
            {"region": pd.Categorical(region), "spot_id": np.concatenate([np.asarray(ids) for ids in instances.values()])},
            index=pd.Index([f"spot{i}" for i in range(n)], dtype=object),
        ),
        var=pd.DataFrame(index=pd.Index(["a", "b", "c"], dtype=object)),
    )  # fmt: skip
    if um_per_px is not None:
        adata.uns["stcontrast"] = {"um_per_px": dict.fromkeys(instances, um_per_px)}
    return TableModel.parse(adata, region=list(instances), region_key="region", instance_key="spot_id")


def slide(
    pixels: NDArray[Any],
    centers: NDArray[np.float64],
    *,
    name: str = "s1",
    um_per_px: float | None = 1.0,
    scale_factors: Sequence[int] | None = None,
) -> SpatialData:
    """One slide, circles in pixels of its image, in a coordinate system of its own."""
    here = {name: Identity()}
    return SpatialData(
        images={f"{name}_he": image(pixels, here, scale_factors=scale_factors)},
        shapes={name: circles(centers, here)},
        tables={"table": table({name: np.arange(len(centers))}, um_per_px=um_per_px)},
    )


def visium_adata(
    pixels: NDArray[Any], centers: NDArray[np.float64], *, library: str = "lib", factor: float = 0.25
) -> ad.AnnData:
    """AnnData as scanpy reads Visium: centres in full-resolution pixels, `pixels` the hires image."""
    n = len(centers)
    return ad.AnnData(
        csr_matrix(np.ones((n, 2), dtype=np.float32)),
        obs=pd.DataFrame(index=pd.Index([f"spot{i}" for i in range(n)], dtype=object)),
        var=pd.DataFrame(index=pd.Index(["a", "b"], dtype=object)),
        obsm={"spatial": centers},
        uns={
            "spatial": {
                library: {
                    "images": {"hires": pixels, "lowres": pixels[::2, ::2]},
                    "scalefactors": {
                        "tissue_hires_scalef": factor,
                        "tissue_lowres_scalef": factor / 2,
                        "spot_diameter_fullres": 20.0,
                    },
                }
            }
        },
    )


def refuse(*_args: Any, **_kwargs: Any) -> None:
    """A scheduler of dask that computes nothing: ``dask.config.set(scheduler=refuse)``."""
    msg = "the session's scheduler was used"
    raise RuntimeError(msg)

"""The real slides of the test material as SpatialData, for tests and benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity

if TYPE_CHECKING:
    from pathlib import Path


def slide(adata: ad.AnnData, image: Path, *, name: str, diameter_px: float, um_per_px: float) -> SpatialData:
    """One section: AnnData with ``obsm["spatial"]`` in pixels of an image file."""
    with Image.open(image) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    here = {name: Identity()}
    adata = adata.copy()
    adata.obs_names = [f"{name}_{spot}" for spot in adata.obs_names]
    adata.obs["region"] = pd.Categorical([name] * adata.n_obs)
    adata.obs["spot_id"] = np.arange(adata.n_obs)
    adata.uns["stcontrast"] = {"um_per_px": {name: um_per_px}}
    return SpatialData(
        images={
            f"{name}_he": Image2DModel.parse(
                np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), c_coords=("r", "g", "b"), scale_factors=[2, 2],
                chunks=(3, 1024, 1024), transformations=here,
            )
        },
        shapes={
            name: ShapesModel.parse(
                np.asarray(adata.obsm["spatial"], dtype=float), geometry=0, radius=diameter_px / 2, transformations=here,
            )
        },
        tables={"table": TableModel.parse(adata, region=[name], region_key="region", instance_key="spot_id")},
    )  # fmt: skip


def olfactory_bulb(folder: Path, replicate: int) -> SpatialData:
    """A section of the olfactory bulb (Ståhl et al. 2016), layers in ``obs["layer"]``."""
    adata = ad.read_h5ad(folder / f"sections/Rep{replicate:02d}.h5ad")
    image = adata.uns.pop("image")
    adata.obs["layer"] = adata.obs["layer"].astype("category")
    return slide(
        adata, folder / image["file"], name=f"Rep{replicate:02d}", diameter_px=float(image["spot_diameter_px"]),
        um_per_px=float(image["um_per_px"]),
    )  # fmt: skip


def stutility(folder: Path, section: str) -> SpatialData:
    """A section of the olfactory bulb on an array of 2 000 spots (141 µm pitch)."""
    counts = pd.read_table(folder / f"{section}.tsv.gz", index_col=0)
    spots = pd.read_table(folder / f"alignment_table_{section}.tsv.gz")
    individual = pd.read_csv(folder / "sections.csv", index_col=0).loc[section, "individual"]
    spots.index = pd.Index([f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)])
    spots = spots[(spots["selected"] == 1) & spots.index.isin(counts.index)]
    counts = counts.loc[spots.index]
    adata = ad.AnnData(
        csr_matrix(counts.to_numpy(dtype=np.float32)),
        obs=pd.DataFrame({"individual": f"individual{individual!s}", "section": section}, index=spots.index),
        var=pd.DataFrame(index=counts.columns.astype(str)),
        obsm={"spatial": spots[["pixel_x", "pixel_y"]].to_numpy()},
    )
    # the pitch is 31.7 px; √2 × 100 µm between neighbours of the staggered array
    return slide(adata, folder / f"{section}.jpg", name=section, diameter_px=22.4, um_per_px=141.4 / 31.7)


def her2st_low_resolution(folder: Path, section: str) -> SpatialData:
    """A1 or A2 of the breast data on a downscaled image, 3.2 µm/px."""
    adata = ad.read_h5ad(folder / f"low_resolution/{section}.h5ad")
    image = adata.uns.pop("image")
    adata.obs["donor"] = "A"
    return slide(
        adata, folder / "low_resolution" / image["file"], name=section, diameter_px=float(image["spot_diameter_px"]),
        um_per_px=float(image["um_per_px"]),
    )  # fmt: skip

"""AnnData whose numbers lie on disk: every function does with them what it does with those in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stcontrast as stc
from tests.synthetic import hexagonal, smooth_picture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPENED: dict[str, tuple[str, Callable[[Path], ad.AnnData]]] = {
    "backed": ("h5ad", lambda path: ad.read_h5ad(path, backed="r")),
    "lazy h5ad": ("h5ad", lambda path: ad.experimental.read_lazy(path)),
    "lazy zarr": ("zarr", lambda path: ad.experimental.read_lazy(path)),
}
LEARN: dict[str, Any] = {"batch_key": "donor", "label_key": "kind", "layer": "counts", "method": "ridge"}


def section(form: str) -> ad.AnnData:
    rng = np.random.default_rng(0)
    centers = 20 + hexagonal(6, 6, 40.0)
    counts = rng.poisson(3.0, (36, 12)).astype(np.float32)
    make = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}[form]
    obs = pd.DataFrame(
        {"donor": ["a", "b"] * 18, "kind": pd.Categorical(["fat", None, "stroma"] * 12), "library_id": "one"},
        index=[f"s{i}" for i in range(36)],
    )
    adata = ad.AnnData(make(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(12)]))
    adata.layers["counts"] = make(counts)
    adata.obsm["spatial"] = centers
    picture = smooth_picture()
    scale = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 22.0}
    adata.uns["spatial"] = {"one": {"images": {"hires": picture}, "scalefactors": scale}}
    stc.pp.image_features(adata, encoder="color", field_um=100)
    return adata


def stored(adata: ad.AnnData, how: str, folder: Path) -> ad.AnnData:
    suffix, read = OPENED[how]
    path = folder / f"one.{suffix}"
    (adata.write_h5ad if suffix == "h5ad" else adata.write_zarr)(path)
    return read(path)


@pytest.mark.filterwarnings("ignore::UserWarning:anndata")
@pytest.mark.parametrize("form", ["dense", "csr", "csc"])
@pytest.mark.parametrize("how", OPENED)
def test_they_are_learnt_from_and_predicted_as_in_memory(
    how: str, form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adata = section(form)
    expected = stc.tl.fit(adata.copy(), **LEARN)
    there = stored(adata, how, tmp_path)
    model = stc.tl.fit(there, **LEARN)
    assert model.model_id == expected.model_id
    assert "no longer match" not in caplog.text
    found, same = (stc.tl.predict_expression(item, model, donor_key="donor") for item in (there, adata))
    assert isinstance(found, ad.AnnData)
    assert isinstance(same, ad.AnnData)
    np.testing.assert_array_equal(found.X, same.X)
    pd.testing.assert_frame_equal(found.obs, same.obs, check_categorical=False, check_dtype=False, check_names=False)
    found.write_h5ad(tmp_path / "pred.h5ad")
    assert found.uns["stcontrast"]["prediction"] == same.uns["stcontrast"]["prediction"]
    stc.tl.classify(there, model)
    stc.tl.classify(adata, model)
    np.testing.assert_array_equal(there.obsm["stc_class_proba"], adata.obsm["stc_class_proba"])


@pytest.mark.filterwarnings("ignore::UserWarning:anndata")
@pytest.mark.parametrize("how", OPENED)
def test_their_genes_are_embedded_and_completed_as_in_memory(how: str, tmp_path: Path) -> None:
    adata = section("csr")
    there = stored(adata, how, tmp_path)
    options: dict[str, Any] = {"batch_key": "donor", "n_latent": 2, "max_epochs": 1}
    for item in (there, adata):
        stc.tl.embed_genes(item, **options)
        stc.pp.complete(item, layer="counts", max_steps=2)
    np.testing.assert_array_equal(there.obsm["X_stc_vae"], adata.obsm["X_stc_vae"])
    np.testing.assert_array_equal(there.layers["stc_completed"].toarray(), adata.layers["stc_completed"].toarray())


@pytest.mark.filterwarnings("ignore::UserWarning:anndata")
@pytest.mark.parametrize("how", OPENED)
@pytest.mark.parametrize("odd", [-7.0, 0.5, np.nan])
def test_one_wrong_value_on_disk_is_found(how: str, odd: float, tmp_path: Path) -> None:
    adata = section("csr")
    adata.layers["counts"][33, 7] = odd
    there = stored(adata, how, tmp_path)
    with pytest.raises(ValueError, match=r"`layers\['counts'\]` holds the value"):
        stc.tl.fit(there, **LEARN)


def test_features_in_a_data_frame_of_arrow_types() -> None:
    pa = pytest.importorskip("pyarrow")
    adata, framed = section("csr"), section("csr")
    for slot in ("X_image", "spatial"):
        frame = pd.DataFrame(framed.obsm[slot], index=framed.obs_names).astype(pd.ArrowDtype(pa.float64()))
        framed.obsm[slot] = frame.rename(columns=str)
    for name in ("donor", "kind"):
        framed.obs[name] = framed.obs[name].astype(pd.ArrowDtype(pa.string()))
    assert stc.tl.fit(framed, **LEARN).model_id == stc.tl.fit(adata, **LEARN).model_id

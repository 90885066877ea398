from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import zarr
from scipy import sparse

from stcontrast._models.batch_vae.counts import RowsOnDisk, check_counts, on_disk, row_blocks
from stcontrast.models import BatchAgnosticVAE
from tests.models.batch_vae.synthetic import make_adata

if TYPE_CHECKING:
    from pathlib import Path

    from anndata.abc import CSRDataset

# anndata gathers the metadata of a store that it writes, which zarr warns of; no user can do anything about it
pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part:UserWarning")


class Watched:
    """A matrix that notes the most rows that were read at once."""

    def __init__(self, values: Any) -> None:
        self.values, self.shape, self.most = values, values.shape, 0

    def __getitem__(self, rows: Any) -> Any:
        read = self.values[rows]
        self.most = max(self.most, read.shape[0])
        return read


def backed(adata: ad.AnnData, how: str, folder: Path) -> ad.AnnData:
    if how == "h5ad":
        adata.write_h5ad(folder / "a.h5ad")
        return ad.read_h5ad(folder / "a.h5ad", backed="r")
    adata.write_zarr(folder / "a.zarr")
    if how == "lazy":
        return ad.experimental.read_lazy(folder / "a.zarr")
    stored = zarr.open_group(folder / "a.zarr", mode="r")["X"]
    counts = stored if isinstance(stored, zarr.Array) else ad.io.sparse_dataset(stored)
    if how == "zarr layer":
        return ad.AnnData(obs=adata.obs, var=adata.var, layers={"counts": counts})
    return ad.AnnData(counts, obs=adata.obs, var=adata.var)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("how", ["h5ad", "zarr", "zarr layer", "lazy"])
def test_backed_counts_are_encoded_as_those_in_memory(model: BatchAgnosticVAE, tmp_path: Path, how: str, dense: bool):
    adata = make_adata("DE", seed=5, dense=dense)
    expected = model.get_latent_representation(adata, batch_size=50)
    stored = backed(adata, how, tmp_path)
    layer = "counts" if how == "zarr layer" else None
    assert on_disk(stored.X if layer is None else stored.layers[layer])
    latent = model.get_latent_representation(stored, layer=layer, batch_size=50)
    np.testing.assert_array_equal(latent, expected)


@pytest.mark.parametrize("how", ["h5ad", "zarr", "lazy"])
def test_spots_of_a_backed_object_in_any_order(model: BatchAgnosticVAE, tmp_path: Path, how: str):
    adata = make_adata("DE", seed=5)
    stored = backed(adata, how, tmp_path)
    chosen = [150, 3, 3, -1, 80, 7]
    mask = np.arange(adata.n_obs) % 7 == 2
    for indices in (chosen, mask):
        expected = model.get_latent_representation(adata, indices, batch_size=4)
        latent = model.get_latent_representation(stored, indices, batch_size=4)
        np.testing.assert_array_equal(latent, expected)


def test_a_view_of_a_backed_object(model: BatchAgnosticVAE, tmp_path: Path):
    adata = make_adata("DE", seed=5)
    stored = backed(adata, "h5ad", tmp_path)
    rows = [9, 100, 30]
    latent = model.get_latent_representation(stored[rows])
    np.testing.assert_array_equal(latent, model.get_latent_representation(adata[rows]))


def test_counts_stored_by_gene_are_encoded_too(model: BatchAgnosticVAE, tmp_path: Path):
    adata = make_adata("D", seed=5)
    expected = model.get_latent_representation(adata)
    adata.X = adata.X.tocsc()
    stored = backed(adata, "h5ad", tmp_path)
    assert not on_disk(stored.X)
    np.testing.assert_allclose(model.get_latent_representation(stored), expected, atol=1e-6)


def test_genes_of_a_backed_object_are_matched_by_name(model: BatchAgnosticVAE, tmp_path: Path):
    adata = make_adata("D", seed=5)
    stored = backed(adata[:, ::-1].copy(), "h5ad", tmp_path)
    np.testing.assert_array_equal(model.get_latent_representation(stored), model.get_latent_representation(adata))


def test_missing_genes_are_found_before_a_row_is_read(model: BatchAgnosticVAE, tmp_path: Path):
    adata = make_adata("D", seed=5)[:, 5:].copy()
    adata.X[0, 0] = 0.5
    stored = backed(adata, "h5ad", tmp_path)
    with pytest.raises(ValueError, match="5 of the model's 60 genes are missing: G0"):
        model.get_latent_representation(stored)


def test_what_is_not_a_count_is_found_in_the_last_block(model: BatchAgnosticVAE, tmp_path: Path):
    adata = make_adata("D", seed=5)
    adata.X[79, 3] = 0.5
    stored = backed(adata, "h5ad", tmp_path)
    with pytest.raises(ValueError, match=r"adata.X does not hold raw counts: it has the value 0.5 \(not a whole"):
        model.get_latent_representation(stored, batch_size=32)


def test_no_more_rows_are_read_at_once_than_are_encoded(model: BatchAgnosticVAE):
    adata = make_adata("DE", seed=5)
    for indices, n_spots in ((None, adata.n_obs), (np.arange(90), 90)):
        watched = Watched(adata.X)
        latent, _ = model._encode(RowsOnDisk(watched.__getitem__, adata.n_obs, indices=indices), None, 0, None, 32)
        assert watched.most == 32
        expected = model.get_latent_representation(adata, batch_size=32)[:n_spots]
        np.testing.assert_allclose(latent, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", ["h5ad", "zarr"])
def test_counts_on_disk_are_checked_block_by_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str):
    from stcontrast._models.batch_vae import counts as counts_module

    monkeypatch.setattr(counts_module, "N_AT_ONCE", 60 * 32)
    adata = make_adata("DE", seed=5)
    watched = Watched(adata.X)
    blocks = list(row_blocks(watched))
    assert watched.most == 32
    np.testing.assert_array_equal(sparse.vstack(blocks).toarray(), adata.X.toarray())
    adata.X[159, 0] = -2
    stored = backed(adata, how, tmp_path)
    with pytest.raises(ValueError, match=r"the value -2 \(negative\)"):
        check_counts(stored.X, stored, None)


def test_a_backed_object_is_trained_on_without_being_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    stored = backed(make_adata("ABCD", n_spots=30), "h5ad", tmp_path)
    most = [0]
    read = type(stored.X).__getitem__

    def noted(self: CSRDataset, rows: Any) -> Any:
        block = read(self, rows)
        most[0] = max(most[0], block.shape[0])
        return block

    def refused(self: CSRDataset) -> None:
        msg = "everything was loaded"
        raise AssertionError(msg)

    monkeypatch.setattr("stcontrast._models.batch_vae.counts.N_AT_ONCE", 60 * 32)
    monkeypatch.setattr(type(stored.X), "__getitem__", noted)
    monkeypatch.setattr(type(stored.X), "to_memory", refused)
    BatchAgnosticVAE.setup_anndata(stored, batch_key="donor")
    model = BatchAgnosticVAE(stored, n_latent=4, n_hidden=16)
    model.train(max_epochs=2, batch_size=16, validation_groups=["B"])
    latent = model.get_latent_representation(batch_size=16)
    assert latent.shape == (120, 4)
    assert most[0] <= 32
    assert model.history["elbo_train"].astype(float).notna().all(axis=None)


@pytest.mark.parametrize(("how", "named"), [("zarr", "in zarr"), ("h5ad", r"gene by gene \(CSC\)")])
def test_not_trained_on_where_every_minibatch_would_load_all_counts(tmp_path: Path, how: str, named: str):
    adata = make_adata("AB", n_spots=10)
    adata.X = adata.X if how == "zarr" else adata.X.tocsc()
    stored = backed(adata, how, tmp_path)
    BatchAgnosticVAE.setup_anndata(stored, batch_key="donor")
    with pytest.raises(ValueError, match=f"counts are on disk {named}, and scvi-tools would load all of them"):
        BatchAgnosticVAE(stored).train(max_epochs=1)

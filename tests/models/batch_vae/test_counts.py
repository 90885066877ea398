from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from stcontrast._models.batch_vae.counts import (
    RowsOnDisk,
    align_genes,
    check_categories,
    check_counts,
    check_genes,
    counts_of,
)
from stcontrast._reading import not_a_count, on_disk, row_blocks
from stcontrast.models import BatchAgnosticVAE
from tests.models.batch_vae.synthetic import make_adata

if TYPE_CHECKING:
    from pathlib import Path

    from anndata.abc import CSRDataset


GENES = pd.Index([f"G{i}" for i in range(6)])


@pytest.mark.parametrize(
    ("value", "kind"),
    [(0.5, "not a whole number"), (-1.0, "negative"), (np.nan, "not finite"), (np.inf, "not finite")],
)
@pytest.mark.parametrize("as_sparse", [False, True])
def test_one_wrong_value_is_found_and_named(value: float, kind: str, as_sparse: bool):
    values = np.ones((200, 30))
    values[150, 17] = value
    found = not_a_count(sparse.csr_matrix(values) if as_sparse else values)
    assert found is not None
    assert kind in found


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32", "float64"])
def test_counts_of_any_type_pass(dtype: str):
    assert not_a_count(np.array([[0, 1], [1, 0]], dtype=dtype)) is None
    assert not_a_count(sparse.csr_matrix((3, 2), dtype=dtype)) is None


def test_negative_integers_are_not_counts():
    assert not_a_count(np.array([[1, -2]])) == "the value -2 (negative)"


@settings(deadline=None, max_examples=40)
@given(order=st.permutations(range(9)), as_sparse=st.booleans())
def test_alignment_undoes_any_order_and_drops_other_genes(order: list[int], as_sparse: bool):
    names = pd.Index([*GENES, "other1", "other2", "other3"])
    counts = np.arange(27).reshape(3, 9)
    shuffled: Any = counts[:, order]
    aligned: Any = align_genes(sparse.csr_matrix(shuffled) if as_sparse else shuffled, names[order], GENES)
    np.testing.assert_array_equal(aligned.toarray() if as_sparse else aligned, counts[:, :6])


@pytest.mark.parametrize("as_sparse", [False, True])
def test_missing_genes_are_zero_where_allowed(as_sparse: bool):
    counts = np.array([[1, 2, 3], [4, 5, 6]])
    names = pd.Index(["G4", "other", "G0"])
    aligned: Any = align_genes(sparse.csr_matrix(counts) if as_sparse else counts, names, GENES, fill_missing=True)
    dense = aligned.toarray() if as_sparse else aligned
    np.testing.assert_array_equal(dense, [[3, 0, 0, 0, 1, 0], [6, 0, 0, 0, 4, 0]])


def test_missing_genes_are_counted_and_named():
    with pytest.raises(ValueError, match=r"4 of the model's 6 genes are missing: G1, G2, G3, G5.*fill_missing=True"):
        align_genes(np.ones((2, 2)), pd.Index(["G4", "G0"]), GENES)


def test_no_gene_in_common_is_an_error_that_shows_both_namings():
    with pytest.raises(ValueError, match=r"6 of the model's 6 genes are missing: G0.*named ENSG1, ENSG2"):
        align_genes(np.ones((2, 2)), pd.Index(["ENSG1", "ENSG2"]), GENES, fill_missing=True)


def test_a_gene_of_the_model_must_be_unique():
    names = pd.Index([*GENES, "G3"])
    with pytest.raises(ValueError, match="more than one column: G3"):
        align_genes(np.ones((2, 7)), names, GENES)


def test_another_gene_may_be_repeated():
    names = pd.Index(["other", "other", *GENES])
    aligned: Any = align_genes(np.arange(16).reshape(2, 8), names, GENES)
    np.testing.assert_array_equal(aligned, np.arange(16).reshape(2, 8)[:, 2:])


def test_layers():
    adata = ad.AnnData(np.full((2, 3), 0.5), layers={"counts": np.ones((2, 3)), "norm": np.zeros((2, 3))})
    np.testing.assert_array_equal(counts_of(adata, "counts"), np.ones((2, 3)))
    np.testing.assert_array_equal(counts_of(adata, "X"), counts_of(adata, None))
    with pytest.raises(KeyError, match=r"'raw' is not in adata.layers; layers here are 'counts', 'norm'"):
        counts_of(adata, "raw")


def test_no_matrix_at_all():
    with pytest.raises(KeyError, match=r"adata\.X is empty"):
        counts_of(ad.AnnData(obs=pd.DataFrame(index=["a", "b"])), None)


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="3 spots and 0 genes"):
        check_genes(ad.AnnData(np.zeros((3, 0))))


def test_repeated_genes_are_refused():
    adata = ad.AnnData(np.ones((2, 3)))
    adata.var.index = pd.Index(["a", "b", "b"])
    with pytest.raises(ValueError, match="more than one column: b"):
        check_genes(adata)


def test_columns_that_are_absent_or_incomplete():
    adata = ad.AnnData(np.ones((3, 2)))
    adata.obs["donor"] = ["A", None, "B"]
    with pytest.raises(KeyError, match=r"batch_key 'patient' is not in adata.obs, which has \['donor'\]"):
        check_categories(adata, batch_key="patient")
    with pytest.raises(ValueError, match="1 missing values; labels_key"):
        check_categories(adata, batch_key=None, labels_key="donor")


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
    monkeypatch.setattr("stcontrast._reading.counts.N_AT_ONCE", 60 * 32)
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

    monkeypatch.setattr("stcontrast._reading.counts.N_AT_ONCE", 60 * 32)
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

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from stcontrast.models import BatchAgnosticVAE
from tests.models.batch_vae.synthetic import N_GENES, make_adata

if TYPE_CHECKING:
    from pathlib import Path

fixed_model = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def snapshot(adata: ad.AnnData) -> dict[str, Any]:
    values = adata.X.toarray() if sparse.issparse(adata.X) else np.array(adata.X)
    return {
        "X": values.tobytes(),
        "kind": type(adata.X),
        "is_view": adata.is_view,
        "obs": adata.obs.copy(),
        "var": list(adata.var_names),
        "uns": list(adata.uns),
        "obsm": list(adata.obsm),
        "layers": list(adata.layers),
    }


def assert_untouched(adata: ad.AnnData, before: dict[str, Any]) -> None:
    after = snapshot(adata)
    pd.testing.assert_frame_equal(after.pop("obs"), before.pop("obs"))
    assert after == before


def test_unseen_donor_alone(model: BatchAgnosticVAE, unseen: ad.AnnData):
    latent = model.get_latent_representation(unseen)
    assert latent.shape == (80, 6)
    assert latent.dtype == np.float32
    assert np.isfinite(latent).all()


def test_a_classifier_of_the_training_donors_names_the_types_of_an_unseen_one(
    model: BatchAgnosticVAE, unseen: ad.AnnData
):
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(15).fit(model.get_latent_representation(), model.adata.obs["kind"].astype(str))
    predicted = classifier.predict(model.get_latent_representation(unseen))
    assert (predicted == unseen.obs["kind"].astype(str)).mean() > 0.9


def test_training_spots_are_encoded_as_unseen_ones_are(model: BatchAgnosticVAE):
    stranger = ad.AnnData(model.adata.X.copy(), var=pd.DataFrame(index=model.adata.var_names))
    np.testing.assert_array_equal(model.get_latent_representation(stranger), model.get_latent_representation())


def test_latent_is_that_of_scvi(model: BatchAgnosticVAE):
    from scvi.model import SCVI

    theirs = SCVI.get_latent_representation(model, dataloader=model._make_data_loader(model.adata, batch_size=64))
    np.testing.assert_allclose(model.get_latent_representation(), theirs, atol=1e-5)


@fixed_model
@given(seed=st.integers(0, 2**31), donors=st.sampled_from(["A", "BC", "ZZZ"]))
def test_batch_labels_never_change_the_latent(model: BatchAgnosticVAE, unseen: ad.AnnData, seed: int, donors: str):
    expected = model.get_latent_representation(unseen)
    unseen.obs["donor"] = np.random.default_rng(seed).choice(list(donors), size=unseen.n_obs)
    np.testing.assert_array_equal(model.get_latent_representation(unseen), expected)


@fixed_model
@given(order=st.permutations(range(80)), batch_size=st.integers(1, 100))
def test_neither_order_nor_other_spots_change_the_latent(
    model: BatchAgnosticVAE, unseen: ad.AnnData, order: list[int], batch_size: int
):
    expected = model.get_latent_representation(unseen)
    shuffled = model.get_latent_representation(unseen, order, batch_size=batch_size)
    np.testing.assert_allclose(shuffled, expected[order], atol=2e-5)
    n_kept = 1 + batch_size % 79
    np.testing.assert_allclose(
        model.get_latent_representation(unseen[order[:n_kept]]), expected[order[:n_kept]], atol=2e-5
    )


@fixed_model
@given(order=st.permutations(range(N_GENES + 2)))
def test_neither_gene_order_nor_other_genes_change_the_latent(
    model: BatchAgnosticVAE, unseen: ad.AnnData, order: list[int]
):
    expected = model.get_latent_representation(unseen)
    other = ad.AnnData(
        sparse.csr_matrix(np.full((unseen.n_obs, 2), 7.0)),
        obs=pd.DataFrame(index=unseen.obs_names),
        var=pd.DataFrame(index=["other1", "other2"]),
    )
    wider = ad.concat([unseen, other], axis=1)[:, order]
    np.testing.assert_array_equal(model.get_latent_representation(wider), expected)


@pytest.mark.parametrize("kind", ["dense", "csr", "csc", "csr_array", "view", "int64", "backed"])
def test_any_form_of_the_matrix_and_nothing_of_the_object_changes(
    model: BatchAgnosticVAE, unseen: ad.AnnData, kind: str, tmp_path: Path
):
    expected = model.get_latent_representation(unseen)
    if kind == "view":
        unseen = unseen.copy()[::2]
        expected = expected[::2]
    elif kind == "backed":
        unseen.write_h5ad(tmp_path / "unseen.h5ad")
        unseen = ad.read_h5ad(tmp_path / "unseen.h5ad", backed="r")
        np.testing.assert_array_equal(model.get_latent_representation(unseen), expected)
        unseen.file.close()
        return
    else:
        convert: dict[str, Any] = {
            "dense": lambda x: x.toarray(),
            "csr": lambda x: x,
            "csc": lambda x: x.tocsc(),
            "csr_array": sparse.csr_array,
            "int64": lambda x: x.astype("int64"),
        }
        unseen.X = convert[kind](unseen.X)
    before = snapshot(unseen)
    np.testing.assert_allclose(model.get_latent_representation(unseen), expected, atol=2e-5)
    assert_untouched(unseen, before)


def test_a_view_of_the_training_data_is_encoded_by_its_own_rows(model: BatchAgnosticVAE):
    view = model.adata[5:25]
    before = snapshot(view)
    np.testing.assert_allclose(
        model.get_latent_representation(view), model.get_latent_representation()[5:25], atol=2e-5
    )
    assert_untouched(view, before)


def test_counts_in_a_layer(model: BatchAgnosticVAE, unseen: ad.AnnData):
    expected = model.get_latent_representation(unseen)
    unseen.layers["counts"] = unseen.X
    unseen.X = unseen.X.log1p()
    with pytest.raises(ValueError, match=r"adata.X does not hold raw counts.*layers here are 'counts'"):
        model.get_latent_representation(unseen)
    np.testing.assert_array_equal(model.get_latent_representation(unseen, layer="counts"), expected)


def test_the_layer_of_the_set_up_is_the_default():
    adata = make_adata("AB", n_spots=20)
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    BatchAgnosticVAE.setup_anndata(adata, layer="counts", batch_key="donor")
    model = BatchAgnosticVAE(adata, n_latent=3, n_hidden=8)
    model.train(max_epochs=1)
    stranger = ad.AnnData(adata.layers["counts"], var=adata.var)
    with pytest.raises(KeyError, match=r"layer='X' takes adata\.X"):
        model.get_latent_representation(stranger)
    np.testing.assert_array_equal(
        model.get_latent_representation(stranger, layer="X"), model.get_latent_representation(adata)
    )


def test_missing_genes(model: BatchAgnosticVAE, unseen: ad.AnnData):
    without = unseen[:, 3:]
    with pytest.raises(ValueError, match="3 of the model's 60 genes are missing: G0, G1, G2"):
        model.get_latent_representation(without)
    padded = unseen.X.toarray()
    padded[:, :3] = 0
    np.testing.assert_allclose(
        model.get_latent_representation(without, fill_missing=True), model.encode_counts(padded), atol=1e-6
    )


def test_empty_spots_and_no_spots(model: BatchAgnosticVAE):
    latent = model.encode_counts(np.zeros((3, N_GENES)))
    assert np.isfinite(latent).all()
    np.testing.assert_allclose(latent, np.tile(latent[0], (3, 1)), rtol=1e-6, atol=1e-6)
    assert model.encode_counts(np.zeros((0, N_GENES))).shape == (0, 6)


@pytest.mark.parametrize("as_type", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, np.asarray])
def test_encode_counts(model: BatchAgnosticVAE, unseen: ad.AnnData, as_type: Any):
    latent = model.encode_counts(as_type(unseen.X.toarray()))
    np.testing.assert_allclose(latent, model.get_latent_representation(unseen), atol=2e-5)


def test_encode_counts_of_the_wrong_width_or_kind(model: BatchAgnosticVAE):
    with pytest.raises(ValueError, match=r"shape \(2, 7\); the model has 60 genes"):
        model.encode_counts(np.ones((2, 7)))
    with pytest.raises(ValueError, match=r"not raw counts: there is the value 0.5"):
        model.encode_counts(np.full((2, N_GENES), 0.5))


def test_posterior_and_its_samples(model: BatchAgnosticVAE, unseen: ad.AnnData):
    mean, variance = model.get_latent_representation(unseen, return_dist=True)
    torch.manual_seed(0)
    np.testing.assert_array_equal(mean, model.get_latent_representation(unseen))
    assert (variance > 0).all()
    samples = np.stack([model.get_latent_representation(unseen, give_mean=False) for _ in range(60)])
    np.testing.assert_allclose(samples.mean(0), mean, atol=5 * float(np.sqrt(variance.max() / 60)))
    assert np.median(samples.var(0) / variance) == pytest.approx(1, abs=0.1)


def test_encoding_keeps_the_mode_of_the_module(model: BatchAgnosticVAE):
    counts = np.ones((2, N_GENES))
    expected = model.encode_counts(counts)
    model.module.train()
    np.testing.assert_array_equal(model.encode_counts(counts), expected)
    assert model.module.training
    model.module.eval()


def test_untrained_model():
    adata = make_adata("A", n_spots=10)
    BatchAgnosticVAE.setup_anndata(adata)
    with pytest.raises(RuntimeError, match="train"):
        BatchAgnosticVAE(adata).get_latent_representation()

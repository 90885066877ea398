from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scvi
import torch
from scipy import sparse

from stcontrast.models import BatchAgnosticVAE
from tests.models.batch_vae.synthetic import make_adata

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad


def test_is_an_scvi_model_with_a_summary(model: BatchAgnosticVAE):
    import scvi

    assert isinstance(model, scvi.model.SCVI)
    assert "BatchAgnosticVAE of 60 genes" in model.summary_string
    assert "n_latent: 6" in model.summary_string
    assert list(model.genes) == [f"G{i}" for i in range(60)]


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_every_likelihood_trains_and_decodes(likelihood: Any):
    adata = make_adata("AB", n_spots=40, dense=True)
    adata.X[3] = 0
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    model = BatchAgnosticVAE(adata, n_latent=4, n_hidden=16, gene_likelihood=likelihood)
    model.train(max_epochs=10, batch_size=32)
    elbo = model.history["elbo_train"].astype(float).iloc[:, 0]
    assert elbo.iloc[-1] < elbo.iloc[0]
    assert np.isfinite(model.get_latent_representation()).all()
    expression = model.get_normalized_expression(transform_batch=["A", "B"])
    np.testing.assert_allclose(expression.sum(axis=1), 1, rtol=1e-4)
    assert np.isfinite(float(model.get_elbo()))


def test_more_layers_and_latents():
    adata = make_adata("AB", n_spots=20)
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    model = BatchAgnosticVAE(adata, n_latent=7, n_hidden=16, n_layers=2, dropout_rate=0.3)
    model.train(max_epochs=1)
    assert model.get_latent_representation().shape == (40, 7)
    assert len(model.module.z_encoder.encoder.fc_layers) == 2


def test_encode_covariates_is_refused():
    adata = make_adata("AB", n_spots=5)
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    with pytest.raises(TypeError, match="encode_covariates is fixed at False in BatchAgnosticVAE: the encoder must"):
        BatchAgnosticVAE(adata, encode_covariates=True)


def test_neither_data_nor_registry():
    with pytest.raises(ValueError, match="adata or registry must be provided"):
        BatchAgnosticVAE()


def test_without_a_seed_the_weights_follow_that_of_scvi_tools(monkeypatch: pytest.MonkeyPatch):
    adata = make_adata("AB", n_spots=5)
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")

    def weights(**kwargs: Any) -> torch.Tensor:
        return BatchAgnosticVAE(adata, **kwargs).module.px_r

    expected = {seed: weights(seed=seed) for seed in (0, 3, 4)}
    assert scvi.settings.seed is None
    assert torch.equal(weights(), expected[0])
    # the setter would also seed the session
    monkeypatch.setattr(scvi.settings, "_seed", 3)
    assert torch.equal(weights(), expected[3])
    assert torch.equal(weights(seed=4), expected[4])
    assert BatchAgnosticVAE(adata).seed_ == 3


def test_initial_weights_follow_the_seed_and_leave_the_session_alone():
    adata = make_adata("AB", n_spots=5)
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    before = torch.get_rng_state()
    first, second, other = (BatchAgnosticVAE(adata, seed=seed).module.px_r for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("values", "found"),
    [(0.5, r"the value 0.5 \(not a whole number\)"), (-1.0, r"the value -1 \(negative\)"), (np.nan, "not finite")],
)
def test_set_up_refuses_what_is_not_counts_before_any_work(values: float, found: str):
    adata = make_adata("AB", n_spots=5, dense=True)
    adata.layers["umi"] = adata.X.copy()
    adata.X[2, 3] = values
    obs, uns = list(adata.obs), list(adata.uns)
    with pytest.raises(ValueError, match=rf"adata.X does not hold raw counts.*{found}.*layer=: layers here are 'umi'"):
        BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    assert list(adata.obs) == obs
    assert "_scvi_manager_uuid" not in set(adata.uns) - set(uns)
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor", layer="umi")


def test_set_up_names_what_is_there():
    adata = make_adata("AB", n_spots=5)
    with pytest.raises(
        KeyError, match=r"batch_key 'patient' is not in adata.obs, which has \['donor', 'slide', 'kind'\]"
    ):
        BatchAgnosticVAE.setup_anndata(adata, batch_key="patient")
    with pytest.raises(KeyError, match=r"layer 'counts' is not in adata\.layers"):
        BatchAgnosticVAE.setup_anndata(adata, layer="counts")


@pytest.mark.slow  # a new interpreter imports torch and scvi-tools
def test_save_and_load_in_a_fresh_process(model: BatchAgnosticVAE, unseen: ad.AnnData, tmp_path: Path):
    expected = model.get_latent_representation(unseen)
    model.save(str(tmp_path / "model"))
    unseen[:, ::-1].copy().write_h5ad(tmp_path / "unseen.h5ad")
    code = """
import sys, anndata, numpy
from stcontrast.models import BatchAgnosticVAE
folder = sys.argv[1]
model = BatchAgnosticVAE.load(folder + "/model")
numpy.save(folder + "/latent.npy", model.get_latent_representation(anndata.read_h5ad(folder + "/unseen.h5ad")))
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    np.testing.assert_allclose(np.load(tmp_path / "latent.npy"), expected, atol=1e-6)


def test_loaded_without_data(model: BatchAgnosticVAE, tmp_path: Path):
    model.save(str(tmp_path / "model"))
    loaded = BatchAgnosticVAE.load(tmp_path / "model")
    assert loaded.adata is None
    assert loaded.is_trained
    assert list(loaded.genes) == list(model.genes)
    with pytest.raises(ValueError, match="loaded without its training data; pass the data"):
        loaded.get_latent_representation()
    with pytest.raises(ValueError, match="Load it with adata="):
        loaded.train()


def test_loaded_with_data_trains_on(model: BatchAgnosticVAE, tmp_path: Path):
    model.save(str(tmp_path / "model"), save_anndata=True)
    for adata in (None, make_adata()):
        loaded = BatchAgnosticVAE.load(tmp_path / "model", adata)
        np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
        assert float(loaded.get_elbo()) == pytest.approx(float(model.get_elbo()), rel=0.02)
    loaded.train(max_epochs=1)
    assert np.isfinite(loaded.get_latent_representation()).all()


def test_scarches_query_gives_the_same_latent(model: BatchAgnosticVAE):
    query = make_adata("D", seed=5)
    expected = model.get_latent_representation(query)
    mapped = BatchAgnosticVAE.load_query_data(query, model)
    mapped.is_trained_ = True
    np.testing.assert_allclose(mapped.get_latent_representation(), expected, atol=1e-6)


@pytest.mark.parametrize(
    "as_type",
    [
        pytest.param(sparse.csr_array, id="csr_array"),
        pytest.param(lambda x: x.astype("int64"), id="int64"),
        pytest.param(lambda x: x.toarray(), id="dense"),
    ],
)
def test_any_common_type_of_matrix_can_be_trained_on(as_type: Any):
    adata = make_adata("AB", n_spots=20)
    expected = adata.X.toarray()
    adata.X = as_type(adata.X)
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    model = BatchAgnosticVAE(adata, n_latent=3, n_hidden=8)
    model.train(max_epochs=1)
    np.testing.assert_allclose(model.get_latent_representation(), model.encode_counts(expected), atol=1e-6)


def test_an_adversary_mixes_the_batches_more(tmp_path: Path):
    from stcontrast.metrics import batch_mixing

    adata = make_adata("ABC", depth=2000)
    own = {}
    for weight in (0.0, 5.0):
        BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
        model = BatchAgnosticVAE(adata, n_latent=6, n_hidden=32, adversarial_weight=weight)
        model.train(max_epochs=40, validation_groups=0, batch_size=64)
        latent = model.get_latent_representation()
        own[weight] = batch_mixing(latent, adata.obs["donor"].to_numpy(), n_neighbors=15)["same_batch_fraction"].mean()
    assert own[5.0] < own[0.0] - 0.05
    model.save(str(tmp_path / "model"))
    loaded = BatchAgnosticVAE.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.get_latent_representation(adata), latent)
    with pytest.raises(ValueError, match="`adversarial_weight` must be a finite number of at least 0, found -1"):
        BatchAgnosticVAE(adata, adversarial_weight=-1)

"""What users of scvi-tools expect of every model of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy

from stcontrast.models import BatchAgnosticVAE
from tests.models.batch_vae.synthetic import make_adata
from tests.models.batch_vae.test_classes import partly_labelled, trained

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _drawn_alike() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def small(**kwargs: Any) -> BatchAgnosticVAE:
    adata = make_adata("AB", n_spots=30)
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    return BatchAgnosticVAE(adata, n_latent=3, n_hidden=8, **kwargs)


@pytest.mark.slow
def test_samples_of_the_posterior_predictive_look_like_the_counts(model: BatchAgnosticVAE):
    samples = model.posterior_predictive_sample(n_samples=5).todense()
    assert samples.shape == (240, 60, 5)
    np.testing.assert_array_equal(samples, np.rint(samples))
    measured = model.adata.X.toarray()
    assert np.corrcoef(np.log1p(samples.mean(axis=2)).ravel(), np.log1p(measured).ravel())[0, 1] > 0.7


@pytest.mark.parametrize("batch_correction", [False, True])
def test_differential_expression_finds_the_planted_markers(model: BatchAgnosticVAE, batch_correction: bool):
    found = model.differential_expression(
        groupby="kind", group1="kind0", silent=True, batch_correction=batch_correction, mode="change"
    )
    planted = {f"G{i}" for i in range(10)}
    top = found.sort_values("lfc_mean", ascending=False).index[:10]
    assert len(planted & set(top)) >= 9


def test_decoding_into_a_batch_takes_on_its_profile(model: BatchAgnosticVAE):
    spots = np.flatnonzero(model.adata.obs["donor"] == "B")
    counts = model.adata.X.toarray()
    profile = {name: counts[(model.adata.obs["donor"] == name).to_numpy()].sum(axis=0) for name in "AB"}
    decoded = model.get_normalized_expression(indices=spots, transform_batch="A", n_samples=5)
    assert isinstance(decoded, pd.DataFrame)
    assert list(decoded.columns) == list(model.genes)
    likeness = {name: np.corrcoef(decoded.mean(axis=0), values)[0, 1] for name, values in profile.items()}
    assert likeness["A"] > likeness["B"]


def test_bounds_of_the_likelihood_are_in_order(model: BatchAgnosticVAE):
    elbo, error = float(model.get_elbo()), float(model.get_reconstruction_error()["reconstruction_loss"])
    marginal = float(model.get_marginal_ll(n_mc_samples=100))
    assert elbo < marginal
    assert elbo < -abs(error)
    each = model.get_elbo(return_mean=False)
    assert each.shape == (240,)
    assert float(each.mean()) == pytest.approx(elbo, rel=0.02)
    assert model.get_marginal_ll(indices=[1, 2], n_mc_samples=3, return_mean=False).shape == (2,)


def test_likelihood_parameters_and_library(model: BatchAgnosticVAE):
    parameters = model.get_likelihood_parameters()
    depth = model.adata.X.toarray().sum(axis=1)
    np.testing.assert_allclose(parameters["mean"].sum(axis=1), depth, rtol=1e-3)
    assert (parameters["dispersions"] > 0).all()
    np.testing.assert_allclose(model.get_latent_library_size(give_mean=False)[:, 0], depth, rtol=1e-5)
    correlation = model.get_feature_correlation_matrix(n_samples=2)
    np.testing.assert_allclose(np.diag(correlation), 1, atol=1e-6)


@pytest.mark.slow
def test_posterior_predictive_check(model: BatchAgnosticVAE):
    from scvi.criticism import PosteriorPredictiveCheck

    check = PosteriorPredictiveCheck(model.adata, {"ours": model}, n_samples=4)
    check.coefficient_of_variation("features")
    check.zero_fraction()
    for metric in ("cv_cell", "zero_fraction"):
        values = check.metrics[metric]
        assert values["ours"].mean() == pytest.approx(values["Raw"].mean(), rel=0.5), metric
        assert np.corrcoef(values["ours"], values["Raw"])[0, 1] > 0.3, metric


def test_the_setup_can_be_viewed(model: BatchAgnosticVAE, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    model.view_anndata_setup()
    shown = capsys.readouterr().out
    assert "BatchAgnosticVAE.setup_anndata" in shown
    assert "donor" in shown
    model.save(tmp_path / "model")
    BatchAgnosticVAE.view_setup_args(str(tmp_path / "model"))
    assert "labels_key" in capsys.readouterr().out
    registry = BatchAgnosticVAE.load_registry(str(tmp_path / "model"))
    assert registry["model_name"] == "BatchAgnosticVAE"
    assert registry["setup_args"]["batch_key"] == "donor"


def test_history_and_guidance_come_back_from_disk(tmp_path: Path):
    model = trained(partly_labelled("AB", n_spots=40), max_epochs=3)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = BatchAgnosticVAE.load(tmp_path / "model")
    assert loaded.history.keys() == model.history.keys()
    pd.testing.assert_frame_equal(loaded.history["elbo_train"], model.history["elbo_train"])
    pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))
    assert loaded.summary_string == model.summary_string
    assert loaded.registry["setup_args"] == model.registry["setup_args"]
    assert loaded.adata.obs["label"].tolist() == model.adata.obs["label"].tolist()


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_after_training_in_any_precision_the_model_has_single_precision(precision: str):
    model, plain = small(), small()
    model.train(max_epochs=3, accelerator="cpu", devices=1, precision=precision)
    plain.train(max_epochs=3, accelerator="cpu", devices=1)
    assert model.trainer.precision == precision
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    latent = model.get_latent_representation()
    assert latent.dtype == np.float32
    assert np.isfinite(float(model.get_elbo()))
    # and it did something
    assert np.abs(latent - plain.get_latent_representation()).max() > 0


class Counting(Callback):
    def __init__(self) -> None:
        self.n_epochs = 0

    def on_train_epoch_end(self, *_: Any) -> None:
        self.n_epochs += 1


def test_devices_strategy_and_callbacks_reach_the_trainer():
    model, strategy, counting = small(), SingleDeviceStrategy(device=torch.device("cpu")), Counting()
    model.train(
        max_epochs=2, accelerator="cpu", strategy=strategy, callbacks=[counting], gradient_clip_val=0.5,
        plan_kwargs={"weight_decay": 0.0, "optimizer": "AdamW"},
    )  # fmt: skip
    trainer = model.trainer
    assert trainer.strategy is strategy
    assert trainer.num_devices == 1
    assert trainer.gradient_clip_val == 0.5
    assert counting.n_epochs == 2
    assert type(trainer.optimizers[0]) is torch.optim.AdamW


def test_invalid_trainer_arguments_raise_its_error():
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    with pytest.raises((ValueError, MisconfigurationException), match="accelerator"):
        small().train(max_epochs=1, accelerator="abacus")


def test_batches_as_embeddings():
    model = small(batch_representation="embedding")
    model.train(max_epochs=1)
    assert model.get_batch_representation().shape[0] == 60
    latent = model.get_latent_representation()
    np.testing.assert_allclose(model.decode_latent(latent).sum(axis=1), 1, rtol=1e-4)
    query = make_adata("D", n_spots=10)
    mapped = BatchAgnosticVAE.load_query_data(query, model)
    mapped.train(max_epochs=1)
    np.testing.assert_allclose(mapped.get_latent_representation(), model.get_latent_representation(query), atol=1e-5)


def test_managers_and_devices():
    model = small()
    model.train(max_epochs=1)
    before = model.get_latent_representation()
    model.to_device("cpu")
    assert model.device == torch.device("cpu")
    manager = model.get_anndata_manager(model.adata, required=True)
    np.testing.assert_array_equal(manager.get_from_registry("X").toarray(), model.adata.X.toarray())
    assert model.get_setup_arg("batch_key") == "donor"
    other = model.adata.copy()
    assert np.isfinite(float(model.get_elbo(other)))
    np.testing.assert_array_equal(model.get_latent_representation(), before)

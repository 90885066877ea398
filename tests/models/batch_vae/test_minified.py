"""Data whose counts were dropped for the posterior."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from stcontrast.models import BatchAgnosticVAE
from tests.models.batch_vae.synthetic import make_adata
from tests.models.batch_vae.test_classes import partly_labelled, trained

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT, WITH = "latent_posterior_parameters", "latent_posterior_parameters_with_counts"

# anndata reads options that pandas 3 deprecates, from within scvi-tools
pytestmark = pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment' option is deprecated")


def expression(model: BatchAgnosticVAE) -> np.ndarray:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model.get_normalized_expression(transform_batch="A", return_numpy=True)


class Minified:
    """A model before and after."""

    def __init__(self, kind: str) -> None:
        self.model = trained(partly_labelled("AB", n_spots=40), max_epochs=5)
        self.full = self.model.adata
        self.mean, self.variance = self.model.get_latent_representation(return_dist=True)
        self.expression = expression(self.model)
        self.proba = self.model.predict(soft=True)
        self.full.obsm["X_latent_qzm"], self.full.obsm["X_latent_qzv"] = self.mean, self.variance
        self.model.minify_adata(kind)

    def check(self, model: BatchAgnosticVAE, adata: ad.AnnData | None = None) -> None:
        mean, variance = model.get_latent_representation(adata, return_dist=True)
        np.testing.assert_allclose(mean, self.mean, atol=1e-5)
        np.testing.assert_allclose(variance, self.variance, atol=1e-5)
        np.testing.assert_allclose(model.get_latent_representation(adata, [7, 2]), self.mean[[7, 2]], atol=1e-5)
        np.testing.assert_allclose(model.predict(adata, soft=True), self.proba, atol=1e-5)


@pytest.fixture(scope="module", params=[WITHOUT, WITH])
def minified(request: pytest.FixtureRequest) -> Minified:
    from stcontrast import settings

    with settings.override(progress=False):
        return Minified(request.param)


def test_the_posterior_and_what_follows_from_it_are_those_of_the_counts(minified: Minified):
    model = minified.model
    assert (model.adata.X.sum() == 0) == (model.minified_data_type == WITHOUT)
    minified.check(model)
    minified.check(model, model.adata)
    np.testing.assert_allclose(expression(model), minified.expression, atol=1e-6)
    assert model.get_latent_representation().dtype == np.float32
    assert "minified?: True" in model.summary_string


def test_new_data_are_encoded_from_their_counts(minified: Minified, unseen: ad.AnnData):
    np.testing.assert_allclose(
        minified.model.get_latent_representation(unseen), minified.model.encode_counts(unseen.X), atol=1e-5
    )
    full = ad.AnnData(minified.full.X, var=minified.full.var)
    np.testing.assert_allclose(minified.model.get_latent_representation(full), minified.mean, atol=1e-5)


@pytest.mark.parametrize("given", [False, True])
def test_loaded_again(minified: Minified, tmp_path: Path, given: bool):
    minified.model.save(tmp_path / "model", save_anndata=True)
    adata = minified.model.adata.copy() if given else None
    loaded = BatchAgnosticVAE.load(tmp_path / "model", adata)
    assert loaded.minified_data_type == minified.model.minified_data_type
    minified.check(loaded)
    np.testing.assert_allclose(expression(loaded), minified.expression, atol=1e-6)


def test_samples_and_differences(minified: Minified):
    samples = minified.model.posterior_predictive_sample(n_samples=2)
    assert samples.shape == (80, 60, 2)
    depth = minified.full.X.toarray().sum(axis=1)
    # counts of the depth that was observed
    assert np.corrcoef(samples.todense().sum(axis=1).mean(axis=1), depth)[0, 1] > 0.8
    options = {"groupby": "kind", "group1": "kind0", "group2": "kind1", "silent": True, "all_stats": False}
    if minified.model.minified_data_type == WITHOUT:
        with pytest.warns(UserWarning, match="Count statistics make no sense for minified model"):
            found = minified.model.differential_expression(**options)
    else:
        found = minified.model.differential_expression(**options)
    assert sorted(found.index) == sorted(minified.full.var_names)


def test_without_counts_there_is_no_training_and_no_likelihood():
    minified = Minified(WITHOUT)
    with pytest.raises(ValueError, match="minify_adata dropped the counts of the data of this model"):
        minified.model.train(max_epochs=1)
    with pytest.raises(ValueError, match="does not support minified data"):
        minified.model.get_elbo()


def test_with_counts_training_goes_on_and_the_latent_follows():
    minified = Minified(WITH)
    minified.model.train(max_epochs=2)
    latent = minified.model.get_latent_representation()
    np.testing.assert_allclose(latent, minified.model.encode_counts(minified.full.X), atol=1e-5)
    assert np.abs(latent - minified.mean).max() > 1e-3


def test_minified_data_and_a_model_that_is_loaded_without_data(tmp_path: Path):
    minified = Minified(WITHOUT)
    minified.model.save(tmp_path / "model")
    loaded = BatchAgnosticVAE.load(tmp_path / "model")
    minified.check(loaded, minified.model.adata[:, ::-1].copy())
    pd.testing.assert_index_equal(loaded.predict(minified.model.adata, soft=True).index, minified.model.adata.obs_names)


def test_a_minified_model_takes_full_data_back(tmp_path: Path):
    minified = Minified(WITHOUT)
    minified.model.save(tmp_path / "model")
    full = partly_labelled("AB", n_spots=40)
    loaded = BatchAgnosticVAE.load(tmp_path / "model", full)
    minified.check(loaded)
    loaded.train(max_epochs=1)
    assert np.isfinite(float(loaded.get_elbo()))


def test_set_up_registers_what_minified_data_have():
    adata = make_adata("AB", n_spots=5)
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    model = BatchAgnosticVAE(adata, n_latent=2, n_hidden=8)
    assert "latent_qzm" not in model.adata_manager.data_registry
    model.train(max_epochs=1)
    mean, variance = model.get_latent_representation(return_dist=True)
    adata.obsm["X_latent_qzm"], adata.obsm["X_latent_qzv"] = mean, variance
    model.minify_adata()
    again = model.adata.copy()
    BatchAgnosticVAE.setup_anndata(again, batch_key="donor")
    registered = BatchAgnosticVAE(again, n_latent=2, n_hidden=8).adata_manager.data_registry
    assert {"latent_qzm", "latent_qzv", "observed_lib_size", "minify_type"} <= set(registered)

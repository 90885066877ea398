from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import stcontrast as stc
from stcontrast.methods import Ridge, Stcontrast
from stcontrast.methods._folds import inner_folds
from stcontrast.metrics import gene_correlation
from tests.methods.synthetic import training_data


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    with stc.settings.override(progress=False):
        yield


@pytest.fixture(scope="module")
def fitted():
    data = training_data()
    method = Stcontrast(n_latent=4, max_epochs=8, vae_epochs=3)
    method.held = method.fit(data, inner_folds(data))
    return method


def test_the_share_is_one_of_the_grid_and_the_prediction_its_mixture(fitted):
    image = training_data(seed=1)
    assert fitted.share in (0.0, 0.25, 0.5, 0.75, 1.0)
    mixture = fitted.share * fitted.network_expression(image) + (1 - fitted.share) * fitted.ridge.predict_expression(
        image
    )
    np.testing.assert_allclose(fitted.predict_expression(image), mixture, atol=1e-5)


def test_held_out_correlation_is_no_worse_than_ridge(fitted):
    data = training_data()
    ridge = Ridge().fit(data, inner_folds(data))
    r = [
        np.mean([np.nanmean(gene_correlation(h[data.slide == s], data.target[data.slide == s])) for s in range(3)])
        for h in (fitted.held.expression, ridge.expression)
    ]
    assert r[0] >= r[1]
    assert r[0] > 0.5


def test_a_useless_network_is_left_out(monkeypatch):
    rng = np.random.default_rng(0)

    def noise(self, view):
        return rng.normal(size=(len(view.design), 5)).astype(np.float32)

    def wrong(self, view):
        return rng.dirichlet(np.ones(2), len(view.design)).astype(np.float32)

    monkeypatch.setattr(Stcontrast, "network_expression", noise)
    monkeypatch.setattr(Stcontrast, "network_proba", wrong)
    data = training_data()
    method = Stcontrast(n_latent=4, max_epochs=2, vae_epochs=1)
    folds = inner_folds(data)
    held = method.fit(data, folds)
    ridge = Ridge()
    of_ridge = ridge.fit(data, folds)
    assert method.share == 0.0
    np.testing.assert_array_equal(held.expression, of_ridge.expression)
    new = training_data(seed=1)
    np.testing.assert_array_equal(method.predict_expression(new), ridge.predict_expression(new))
    assert method.class_share == 0.0
    np.testing.assert_array_equal(held.proba, of_ridge.proba)
    np.testing.assert_array_equal(method.predict_proba(new), ridge.predict_proba(new))


def test_embeddings(fitted):
    data = training_data(seed=1)
    measured = np.arange(90) % 7 > 0
    found = fitted.embed(replace(data, measured=measured))
    latent, gene, image = (found[f"X_stc_{name}"] for name in ("vae", "gene", "image"))
    for embedding in (latent, gene):
        assert np.isnan(embedding[~measured]).all()
        assert np.isfinite(embedding[measured]).all()
    assert latent.shape == (90, 4)
    assert gene.shape == image.shape
    for embedding in (gene, image):
        np.testing.assert_allclose(np.linalg.norm(embedding[measured], axis=1), 1, atol=1e-5)


def test_saved_and_read_again(fitted, tmp_path):
    fitted.save_parts(tmp_path)
    again = Stcontrast(**fitted.hyper)
    again.load_parts(tmp_path)
    data = training_data(seed=1)
    np.testing.assert_allclose(again.predict_expression(data), fitted.predict_expression(data), atol=1e-6)
    np.testing.assert_allclose(again.predict_proba(data), fitted.predict_proba(data), atol=1e-6)
    one, other = again.embed(data), fitted.embed(data)
    assert one.keys() == other.keys()
    for slot in one:
        np.testing.assert_allclose(one[slot], other[slot], atol=1e-5)


def test_labels_alone(tmp_path):
    data = training_data()
    data = replace(
        data,
        measured=np.zeros(90, dtype=bool),
        counts=data.counts[:, :0],
        target=np.zeros((90, 0), dtype=np.float32),
        observed=np.zeros((90, 0), dtype=np.float32),
    )
    method = Stcontrast(max_epochs=15)
    held = method.fit(data, inner_folds(data))
    assert method.latent.vae is None
    assert set(method.embed(data)) == {"X_stc_image"}
    assert (held.proba.argmax(axis=1) == data.label).mean() > 0.7
    method.save_parts(tmp_path)
    again = Stcontrast(max_epochs=15)
    again.load_parts(tmp_path)
    np.testing.assert_allclose(again.predict_proba(data), method.predict_proba(data), atol=1e-6)


def test_nothing_fitted():
    with pytest.raises(RuntimeError, match="has not been fitted"):
        Stcontrast().predict_proba(np.zeros((2, 3), dtype=np.float32))

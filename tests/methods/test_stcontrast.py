from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stcontrast.methods import Knn, Ridge, Stcontrast
from stcontrast.methods._folds import inner_folds
from stcontrast.metrics import gene_correlation, mean_slide_correlation
from tests.methods.synthetic import training_data


@pytest.fixture(scope="module")
def fitted():
    data = training_data()
    method = Stcontrast(n_latent=4, max_epochs=8, vae_epochs=3)
    method.held = method.fit(data, inner_folds(data))
    return method


def test_the_prediction_is_the_weighted_mean_of_its_members(fitted):
    view = training_data(seed=1)
    members = {
        "network": (fitted.network_expression(view), fitted.network_proba(view)),
        "ridge": (fitted.ridge.predict_expression(view), fitted.ridge.predict_proba(view)),
        "knn": (fitted.knn.predict_expression(view), fitted.knn.predict_proba(view)),
    }
    for weights, i, prediction in (
        (fitted.weights, 0, fitted.predict_expression(view)), (fitted.class_weights, 1, fitted.predict_proba(view)),
    ):  # fmt: skip
        assert sum(weights.values()) == pytest.approx(1)
        expected = sum(weights[name] * members[name][i] for name in members)
        np.testing.assert_allclose(prediction, expected, atol=1e-5)


def test_networks_differ_and_are_averaged(fitted):
    view = training_data(seed=1)
    each = [network.expression(view) for network in fitted.networks]
    assert len(each) == 3
    assert not np.array_equal(each[0], each[1])
    np.testing.assert_allclose(fitted.network_expression(view), np.mean(each, axis=0), atol=1e-6)


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
    method.fit(data, folds)
    ridge = Ridge()
    ridge.fit(data, folds)
    assert method.weights["network"] == pytest.approx(0, abs=0.02)
    assert method.class_weights["network"] < 0.2
    new = training_data(seed=1)
    r = [mean_slide_correlation(m.predict_expression(new), new.observed, new.slide) for m in (method, ridge)]
    assert r[0] > r[1] - 0.02


def test_where_nothing_beats_ridge_it_is_ridge(monkeypatch):
    def constant(self, view):
        return np.ones((len(view.design), 5), dtype=np.float32)

    monkeypatch.setattr(Stcontrast, "network_expression", constant)
    monkeypatch.setattr(Knn, "predict_expression", constant)
    data = training_data()
    method, folds = Stcontrast(n_latent=4, max_epochs=2, vae_epochs=1), inner_folds(data)
    held = method.fit(data, folds)
    ridge = Ridge()
    of_ridge = ridge.fit(data, folds)
    assert method.weights == {"network": 0.0, "ridge": 1.0, "knn": 0.0}
    np.testing.assert_array_equal(held.expression, of_ridge.expression)
    new = training_data(seed=1)
    np.testing.assert_array_equal(method.predict_expression(new), ridge.predict_expression(new))


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

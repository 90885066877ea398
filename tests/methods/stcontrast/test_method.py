from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stcontrast._data.folds import inner_folds
from stcontrast.fitted._disk import read_state, write_state
from stcontrast.methods._network import Network, average_expression, average_proba
from stcontrast.methods._targets import denoised
from stcontrast.methods.baselines import Kernel, Knn, Ridge
from stcontrast.methods.stcontrast import Stcontrast, _method
from stcontrast.methods.stcontrast._method import MEMBERS
from stcontrast.methods.stcontrast._stacking import calibration_slope
from stcontrast.metrics import gene_correlation, mean_slide_correlation
from tests.methods.synthetic import training_data


@pytest.fixture(scope="module")
def with_predictions():
    """The method, fitted, and its out-of-fold predictions."""
    data = training_data()
    method = Stcontrast(n_latent=4, max_epochs=8, vae_epochs=3)
    return method, method.fit(data, inner_folds(data))


@pytest.fixture(scope="module")
def fitted(with_predictions):
    return with_predictions[0]


def test_the_prediction_is_the_weighted_mean_of_its_members(fitted):
    view = training_data(seed=1)
    networks = fitted.networks
    members = {"network": (average_expression(networks, view), average_proba(networks, view))}
    for name, member in fitted.members.items():
        members[name] = (member.predict_expression(view), member.predict_proba(view))
    assert set(members) == set(MEMBERS) == set(fitted.weights) == set(fitted.class_weights)
    for weights in (fitted.weights, fitted.class_weights):
        assert sum(weights.values()) == pytest.approx(1)
    # expression is then drawn, gene by gene, towards the mean over slides
    mean, slope = training_data().slide_means()[0], fitted.slope["slope"]
    expected = sum(fitted.weights[name] * members[name][0] for name in members)
    np.testing.assert_allclose(fitted.predict_expression(view), mean + slope * (expected - mean), atol=1e-5)
    expected = sum(fitted.class_weights[name] * members[name][1] for name in members)
    np.testing.assert_allclose(fitted.predict_proba(view), expected, atol=1e-5)


def test_slopes_are_those_of_out_of_fold_predictions(with_predictions):
    fitted, found = with_predictions
    data = training_data()
    mean, slope = data.slide_means()[0], fitted.slope["slope"]
    assert slope.shape == (5,)
    assert ((slope >= np.float32(0.05)) & (slope <= 2)).all()
    before = mean + (found.expression - mean) / slope
    np.testing.assert_allclose(calibration_slope(before, data.observed, data.slide), slope, rtol=1e-3)


def test_all_but_ridge_learn_the_principal_components(fitted):
    """Members are what they are when fitted alone, on the denoised target or, ridge, on what was measured."""
    data, new = training_data(), training_data(seed=1)
    few = Stcontrast(n_latent=4, max_epochs=1, vae_epochs=1, n_networks=1, n_components=2)
    few.fit(data, inner_folds(data))
    low_rank = denoised(data, 2)
    assert not np.allclose(low_rank.target, data.target, atol=0.1)
    for name, member in few.members.items():
        alone = type(member)(**member.spec)
        if name == "knn":
            alone.class_k = member.class_k
        alone.fit_parts(data if name == "ridge" else low_rank)
        np.testing.assert_array_equal(alone.predict_expression(new), member.predict_expression(new), err_msg=name)
        np.testing.assert_array_equal(alone.predict_proba(new), member.predict_proba(new), err_msg=name)
    of_fit_parts = Stcontrast(n_latent=4, max_epochs=1, vae_epochs=1, n_networks=1, n_components=2)
    of_fit_parts.fit_parts(data)
    for member in of_fit_parts.members.values():
        assert np.isfinite(member.predict_expression(new)).all()
    spread = [
        np.linalg.svd(m.predict_expression(new) - m.predict_expression(new).mean(axis=0))[1]
        for m in few.members.values()
    ]
    # a method that is linear in the target returns the two components it was given; plain ridge returns all
    for name, values in zip(few.members, spread, strict=True):
        assert (values[2] > 1e-2 * values[0]) == (name == "ridge"), name


def test_networks_differ_and_are_averaged(fitted):
    view = training_data(seed=1)
    each = [network.expression(view) for network in fitted.networks]
    assert len(each) == 3
    assert not np.array_equal(each[0], each[1])
    np.testing.assert_allclose(average_expression(fitted.networks, view), np.mean(each, axis=0), atol=1e-6)
    proba = np.mean([network.proba(view) for network in fitted.networks], axis=0)
    np.testing.assert_allclose(average_proba(fitted.networks, view), proba, atol=1e-6)


def test_out_of_fold_correlation_is_no_worse_than_ridge(with_predictions):
    data = training_data()
    ridge = Ridge().fit(data, inner_folds(data))
    r = [
        np.mean([np.nanmean(gene_correlation(h[data.slide == s], data.target[data.slide == s])) for s in range(3)])
        for h in (with_predictions[1].expression, ridge.expression)
    ]
    assert r[0] >= r[1]
    assert r[0] > 0.5


def test_a_useless_network_is_left_out(monkeypatch):
    rng = np.random.default_rng(0)

    def noise(self, view):
        return rng.normal(size=(len(view.design), 5)).astype(np.float32)

    def wrong(self, view):
        return rng.dirichlet(np.ones(2), len(view.design)).astype(np.float32)

    monkeypatch.setattr(Network, "expression", noise)
    monkeypatch.setattr(Network, "proba", wrong)
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


def useless(monkeypatch, *, constant: bool = False) -> None:
    """Make all members but ridge predict noise or a constant, for held-out spots too."""
    original = Ridge.fit

    def expression(self, view):
        said = np.random.default_rng(len(view.design)).random((len(view.design), 5)).astype(np.float32)
        return np.ones_like(said) if constant else said

    def proba(self, view):
        wrong = np.where(view.design[:, [0]] < 0, np.float32([[0.1, 0.9]]), np.float32([[0.9, 0.1]]))
        return wrong.astype(np.float32)

    def fit(self, data, folds):
        found = original(self, data, folds)
        if self.classifier == "discriminant":
            found.expression, found.proba = expression(self, data), proba(self, data)
        return found

    monkeypatch.setattr(Ridge, "fit", fit)
    monkeypatch.setattr(Network, "expression", expression)
    monkeypatch.setattr(Network, "proba", proba)
    for kind in (Kernel, Knn):
        monkeypatch.setattr(kind, "predict_expression", expression)
        monkeypatch.setattr(kind, "predict_proba", proba)


@pytest.mark.parametrize("trusted", [None, "network", "linear", "kernel", "knn"])
def test_where_nothing_beats_ridge_it_is_ridge(monkeypatch, tmp_path, trusted):
    """Also where the weights go to a member that is wrong on held-out spots."""
    useless(monkeypatch, constant=not trusted)
    if trusted:
        one_hot = np.array([float(name == trusted) for name in MEMBERS])
        monkeypatch.setattr(_method, "stack_expression", lambda *_: one_hot)
        monkeypatch.setattr(_method, "stack_proba", lambda *_: one_hot)
    data = training_data()
    method, folds = Stcontrast(n_latent=4, max_epochs=1, vae_epochs=1, n_networks=1), inner_folds(data)
    found = method.fit(data, folds)
    ridge = Ridge()
    of_ridge = ridge.fit(data, folds)
    only = dict.fromkeys(MEMBERS, 0.0) | {"ridge": 1.0}
    assert method.weights == only
    assert method.slope == {}
    np.testing.assert_array_equal(found.expression, of_ridge.expression)
    new = training_data(seed=1)
    np.testing.assert_array_equal(method.predict_expression(new), ridge.predict_expression(new))
    if trusted:
        assert method.class_weights == only
        np.testing.assert_array_equal(found.proba, of_ridge.proba)
        np.testing.assert_array_equal(method.predict_proba(new), ridge.predict_proba(new))
    write_state(tmp_path, method.state())
    again = Stcontrast(**method.spec)
    again.restore(read_state(tmp_path))
    assert (again.weights, again.class_weights, again.slope) == (method.weights, method.class_weights, {})
    np.testing.assert_array_equal(again.predict_expression(new), method.predict_expression(new))
    np.testing.assert_array_equal(again.predict_proba(new), method.predict_proba(new))


def test_a_second_fit_forgets_the_slopes_of_the_first(monkeypatch):
    data, new = training_data(), training_data(seed=1)
    folds = inner_folds(data)
    method = Stcontrast(n_latent=4, max_epochs=1, vae_epochs=1, n_networks=1)
    method.slope = {"center": np.zeros(5, dtype=np.float32), "slope": np.zeros(5, dtype=np.float32)}
    useless(monkeypatch)
    monkeypatch.setattr(_method, "stack_expression", lambda *_: np.array([1.0, 0, 0, 0, 0]))
    method.fit(data, folds)
    ridge = Ridge()
    ridge.fit(data, folds)
    np.testing.assert_array_equal(method.predict_expression(new), ridge.predict_expression(new))


def test_labels_of_a_single_donor():
    """While this donor is held out no label is left to learn from; the other donors have none to compare with."""
    data = training_data()
    data = replace(data, label=np.where(data.donor == "1", data.label, -1))
    method = Stcontrast(n_latent=4, max_epochs=2, vae_epochs=1, n_networks=1)
    found = method.fit(data, inner_folds(data))
    assert np.isnan(found.proba[data.donor == "1"]).all()
    assert method.class_weights == pytest.approx(dict.fromkeys(MEMBERS, 0.2))
    proba = method.predict_proba(data)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    assert (proba.argmax(axis=1) == data.label)[data.donor == "1"].mean() > 0.8


def test_embeddings(fitted):
    data = training_data(seed=1)
    measured = np.arange(90) % 7 > 0
    found = fitted.embed(replace(data, depth=data.depth * measured))
    latent, gene, image = (found[f"X_stc_{name}"] for name in ("vae", "gene", "image"))
    for embedding in (latent, gene):
        assert np.isnan(embedding[~measured]).all()
        assert np.isfinite(embedding[measured]).all()
    assert latent.shape == (90, 4)
    assert gene.shape == image.shape
    for embedding in (gene, image):
        np.testing.assert_allclose(np.linalg.norm(embedding[measured], axis=1), 1, atol=1e-5)


def test_saved_and_read_again(fitted, tmp_path):
    write_state(tmp_path, fitted.state())
    again = Stcontrast(**fitted.spec)
    again.restore(read_state(tmp_path))
    data = training_data(seed=1)
    assert (again.weights, again.class_weights) == (fitted.weights, fitted.class_weights)
    np.testing.assert_array_equal(again.slope["slope"], fitted.slope["slope"])
    np.testing.assert_allclose(again.predict_expression(data), fitted.predict_expression(data), atol=1e-6)
    np.testing.assert_allclose(again.predict_proba(data), fitted.predict_proba(data), atol=1e-6)
    for name in fitted.members:
        one, other = again.members[name], fitted.members[name]
        np.testing.assert_array_equal(one.predict_expression(data), other.predict_expression(data))
        np.testing.assert_array_equal(one.predict_proba(data), other.predict_proba(data))
    one, other = again.embed(data), fitted.embed(data)
    assert one.keys() == other.keys()
    for slot in one:
        np.testing.assert_allclose(one[slot], other[slot], atol=1e-5)


def test_labels_alone(tmp_path):
    data = training_data()
    data = replace(
        data,
        depth=np.zeros(90),
        counts=data.counts[:, :0],
        target=np.zeros((90, 0), dtype=np.float32),
        observed=np.zeros((90, 0), dtype=np.float32),
    )
    method = Stcontrast(max_epochs=15)
    found = method.fit(data, inner_folds(data))
    assert method.latent.vae is None
    assert set(method.embed(data)) == {"X_stc_image"}
    assert (found.proba.argmax(axis=1) == data.label).mean() > 0.7
    write_state(tmp_path, method.state())
    again = Stcontrast(max_epochs=15)
    again.restore(read_state(tmp_path))
    np.testing.assert_allclose(again.predict_proba(data), method.predict_proba(data), atol=1e-6)


def test_nothing_fitted():
    with pytest.raises(RuntimeError, match="has not been fitted"):
        Stcontrast().predict_proba(training_data().unseen())

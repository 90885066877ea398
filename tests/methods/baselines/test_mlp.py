from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from stcontrast._data import inner_folds
from stcontrast._files import read_state, write_state
from stcontrast.methods.baselines import Mlp, _mlp
from stcontrast.metrics import mean_slide_correlation
from tests.methods.synthetic import training_data

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    from stcontrast.methods import Spots


def watched(monkeypatch: pytest.MonkeyPatch, data: Spots) -> tuple[Mlp, list[MLPRegressor | MLPClassifier]]:
    """The method, fitted, and scikit-learn's networks that it was made of."""
    networks: list[MLPRegressor | MLPClassifier] = []
    trained = _mlp._trained

    def noted(network: MLPRegressor | MLPClassifier, *xy: np.ndarray) -> dict[str, np.ndarray]:
        networks.append(network)
        return trained(network, *xy)

    monkeypatch.setattr(_mlp, "_trained", noted)
    method = Mlp(max_epochs=3, n_hidden=7)
    method.fit_parts(data)
    return method, networks


def test_it_learns_what_held_out_donors_share_and_is_saved(tmp_path):
    data, new = training_data(n_spots=60), training_data(n_spots=60, seed=1)
    method = Mlp(max_epochs=60)
    found = method.fit(data, inner_folds(data))
    assert mean_slide_correlation(found.expression, data.observed, data.slide) > 0.6
    view = new.unseen()
    assert mean_slide_correlation(method.predict_expression(view), new.observed, new.slide) > 0.6
    assert (method.predict_proba(view).argmax(axis=1) == new.label).mean() > 0.8
    write_state(tmp_path, method.state())
    again = Mlp(**method.spec)
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.predict_expression(view), method.predict_expression(view))
    np.testing.assert_array_equal(again.predict_proba(view), method.predict_proba(view))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_it_is_scikit_learn_s(monkeypatch, n_classes):
    data, view = training_data(n_classes=n_classes), training_data(seed=1).unseen()
    method, (regression, classifier) = watched(monkeypatch, data)
    scaled = method.scaler.scaled(view)
    mean, of_spot = data.slide_means()
    expected = regression.predict(scaled) * (data.target - of_spot).std(axis=0) + mean
    np.testing.assert_allclose(method.predict_expression(view), expected, atol=1e-4)
    np.testing.assert_allclose(method.predict_proba(view), classifier.predict_proba(scaled), atol=1e-5)
    assert regression.hidden_layer_sizes == classifier.hidden_layer_sizes == (7,)
    assert regression.n_iter_ == classifier.n_iter_ == 3


def test_one_gene(monkeypatch):
    data = training_data(n_genes=1)
    method, (regression, _) = watched(monkeypatch, data)
    mean, of_spot = data.slide_means()
    expected = regression.predict(method.scaler.scaled(data)) * (data.target - of_spot).std() + mean
    np.testing.assert_allclose(method.predict_expression(data)[:, 0], expected, atol=1e-4)


def test_a_single_class_is_certain_and_absent_classes_get_nothing(monkeypatch):
    data = training_data(n_classes=4)
    method, networks = watched(monkeypatch, replace(data, label=np.where(data.label == 1, 1, -1)))
    assert len(networks) == 1
    np.testing.assert_array_equal(method.predict_proba(data), np.tile([0, 1, 0, 0], (90, 1)))
    method.fit_parts(replace(data, label=np.where(np.isin(data.label, [1, 3]), data.label, -1)))
    proba = method.predict_proba(data)
    np.testing.assert_array_equal(proba[:, [0, 2]], 0)
    np.testing.assert_allclose(proba[:, [1, 3]], networks[-1].predict_proba(method.scaler.scaled(data)), atol=1e-5)


def test_spots_without_counts_or_labels_are_not_learnt_from():
    data = training_data()
    measured, known = np.arange(90) % 3 > 0, np.arange(90) % 4 > 0
    one, other = Mlp(max_epochs=2), Mlp(max_epochs=2)
    partly = replace(data, depth=data.depth * measured, label=np.where(known, data.label, -1))
    one.fit_parts(partly)
    other.fit_parts(replace(partly, target=np.where(measured[:, None], data.target, np.float32(1e6))))
    np.testing.assert_array_equal(one.predict_expression(data), other.predict_expression(data))


def test_the_seed_decides_everything_and_the_session_s_random_numbers_are_left_alone():
    data = training_data()
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    methods = [Mlp(max_epochs=2, seed=seed) for seed in (0, 0, 1)]
    for method in methods:
        method.fit_parts(data)
    assert np.random.random() == expected  # noqa: NPY002
    first, second, third = (method.predict_expression(data) for method in methods)
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, third, atol=1e-3)


def test_labels_alone():
    data = training_data()
    data = replace(data, depth=np.zeros(90))
    method = Mlp(max_epochs=60)
    method.fit(data, inner_folds(data))
    assert (method.predict_proba(data.unseen()).argmax(axis=1) == data.label).mean() > 0.8
    with pytest.raises(ValueError, match="without counts"):
        method.predict_expression(data.unseen())


@pytest.mark.parametrize("options", [{"n_hidden": 0}, {"max_epochs": 0}, {"penalty": -1.0}])
def test_parameters_are_checked(options):
    with pytest.raises(ValueError, match=r"`(n_hidden|max_epochs|penalty)` must be"):
        Mlp(**options)

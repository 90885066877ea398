from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from stcontrast._files import read_state, write_state
from stcontrast.methods._linear import PENALTIES, LinearClassifier, RidgePath, Scaler, standardizer
from tests.methods.synthetic import training_data


@pytest.mark.parametrize("penalty", [PENALTIES[0], 300.0, PENALTIES[-1]])
def test_ridge_path_is_sklearn_s(penalty):
    data = training_data()
    mean, of_spot = data.slide_means()
    scaler = StandardScaler().fit(data.design)
    reference = Ridge(alpha=penalty).fit(scaler.transform(data.design), data.target - of_spot)
    new = training_data(seed=1).design
    expected = reference.predict(scaler.transform(new)) + mean
    np.testing.assert_allclose(RidgePath().fit(data.design, data).predict(new, penalty), expected, atol=1e-4)


def test_ridge_path_of_more_features_than_spots():
    data = training_data(donors=2, n_spots=10, n_design=50)
    mean, of_spot = data.slide_means()
    scaler = StandardScaler().fit(data.design)
    reference = Ridge(alpha=10.0).fit(scaler.transform(data.design), data.target - of_spot)
    expected = reference.predict(scaler.transform(data.design)) + mean
    np.testing.assert_allclose(RidgePath().fit(data.design, data).predict(data.design, 10.0), expected, atol=1e-4)


def test_ridge_path_uses_only_measured_spots():
    data = training_data()
    measured = np.arange(90) % 3 > 0
    target = data.target.copy()
    target[~measured] = 1e6
    one = RidgePath().fit(data.design, replace(data, depth=data.depth * measured))
    other = RidgePath().fit(data.design, replace(data, depth=data.depth * measured, target=target))
    np.testing.assert_array_equal(one.predict(data.design, 10.0), other.predict(data.design, 10.0))


def test_a_constant_feature_gives_finite_predictions():
    data = training_data()
    data.design[:, 2] = 3.0
    assert np.isfinite(RidgePath().fit(data.design, data).predict(data.design, 1.0)).all()
    assert np.isfinite(LinearClassifier().fit(data.design, data).predict_proba(data.design)).all()


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_classifier_is_sklearn_s(n_classes):
    data = training_data(n_classes=n_classes)
    scaler = StandardScaler().fit(data.design)
    reference = LogisticRegression(C=0.03, max_iter=1000).fit(scaler.transform(data.design), data.label)
    new = training_data(seed=1).design
    expected = reference.predict_proba(scaler.transform(new))
    np.testing.assert_allclose(LinearClassifier().fit(data.design, data).predict_proba(new), expected, atol=1e-5)


def test_classes_absent_from_the_training_get_nothing():
    data = training_data(n_classes=4)
    data = replace(data, label=np.where(np.isin(data.label, [1, 3]), data.label, -1))
    proba = LinearClassifier().fit(data.design, data).predict_proba(data.design)
    np.testing.assert_array_equal(proba[:, [0, 2]], 0)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-6)
    assert 0 < proba[0, 1] < 1


def test_a_single_class_is_certain():
    data = training_data(n_classes=3)
    data = replace(data, label=np.where(data.label == 1, 1, -1))
    proba = LinearClassifier().fit(data.design, data).predict_proba(data.design)
    np.testing.assert_array_equal(proba, np.tile([0, 1, 0], (90, 1)))


def test_saved_and_read_again(tmp_path):
    data = training_data()
    ridge, classifier = RidgePath().fit(data.design, data), LinearClassifier().fit(data.design, data)
    write_state(tmp_path, {"ridge": ridge.state(), "classifier": classifier.state()})
    state = read_state(tmp_path)
    other_ridge, other_classifier = RidgePath(), LinearClassifier()
    other_ridge.restore(state["ridge"])
    other_classifier.restore(state["classifier"])
    np.testing.assert_array_equal(other_ridge.predict(data.design, 1.0), ridge.predict(data.design, 1.0))
    np.testing.assert_array_equal(other_classifier.predict_proba(data.design), classifier.predict_proba(data.design))


def test_a_constant_column_keeps_its_scale():
    center, scale = standardizer(np.float32([[1, 5], [3, 5]]))
    np.testing.assert_array_equal(center, [2, 5])
    np.testing.assert_array_equal(scale, [1, 1])


def test_a_scaler_is_scikit_learn_s_and_keeps_what_it_learnt():
    data, new = training_data(), training_data(seed=1)
    expected = StandardScaler().fit(data.design).transform(new.design)
    scaler = Scaler().fit(data)
    np.testing.assert_allclose(scaler.scaled(new), expected, atol=1e-5)
    again = Scaler()
    again.restore(scaler.state())
    np.testing.assert_array_equal(again.scaled(new), scaler.scaled(new))


def test_of_unit_length_a_spot_is_the_same_at_any_contrast():
    data = training_data()
    scaler = Scaler(unit=True).fit(data)
    scaled = scaler.scaled(data)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), np.sqrt(6), rtol=1e-5)
    plain = Scaler().fit(data).scaled(data)
    np.testing.assert_allclose(scaled, plain / np.linalg.norm(plain, axis=1, keepdims=True) * np.sqrt(6), atol=1e-5)
    stronger = replace(data, design=scaler.center + 3 * (data.design - scaler.center))
    np.testing.assert_allclose(scaler.scaled(stronger), scaled, atol=1e-4)
    nowhere = replace(data, design=np.tile(scaler.center, (90, 1)))
    np.testing.assert_array_equal(scaler.scaled(nowhere), 0)

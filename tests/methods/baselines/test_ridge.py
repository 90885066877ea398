from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stcontrast._data.folds import inner_folds
from stcontrast._files import read_state, write_state
from stcontrast.methods._linear import PENALTIES, LinearClassifier, RidgePath
from stcontrast.methods.baselines import Color, Mean, Ridge
from stcontrast.metrics import mean_slide_correlation
from tests.methods.synthetic import training_data


def held_out_score(data, penalty: float) -> float:
    expression = np.full_like(data.target, np.nan)
    for fold in inner_folds(data):
        path = RidgePath().fit(data.design[fold.train], data.take(fold.train))
        expression[fold.held_out] = path.predict(data.design[fold.held_out], penalty)
    return mean_slide_correlation(expression, data.target, data.slide)


@pytest.mark.parametrize("noise", [0, 300])
def test_the_penalty_that_predicts_held_out_donors_best(noise):
    data = training_data(n_spots=25)
    rng = np.random.default_rng(0)
    design = np.concatenate([data.design, rng.normal(size=(75, noise)).astype(np.float32)], axis=1)
    data = replace(data, design=design)
    method = Ridge()
    found = method.fit(data, inner_folds(data))
    scores = {penalty: held_out_score(data, penalty) for penalty in PENALTIES}
    assert method.penalty == max(scores, key=scores.get)
    assert mean_slide_correlation(found.expression, data.target, data.slide) == pytest.approx(scores[method.penalty])
    np.testing.assert_allclose(
        method.predict_expression(data), RidgePath().fit(data.design, data).predict(data.design, method.penalty)
    )


def test_held_out_counts_do_not_change_out_of_fold_predictions():
    data = training_data()
    method, folds = Ridge(), inner_folds(data)
    found = method.predict_out_of_fold(data, folds)
    fold = folds[0]
    target = data.target.copy()
    target[fold.held_out] = 100 * np.random.default_rng(0).random(target[fold.held_out].shape)
    changed = replace(data, target=target, observed=target)
    again = method.predict_out_of_fold(changed, inner_folds(changed))
    np.testing.assert_array_equal(again.expression[fold.held_out], found.expression[fold.held_out])
    others = folds[1].held_out
    assert not np.allclose(again.expression[others], found.expression[others], atol=1e-2)


def test_mean_predicts_means():
    data = training_data(n_classes=3)
    data = replace(data, label=np.where(np.arange(90) % 4, data.label, -1))
    method = Mean()
    found = method.fit(data, inner_folds(data))
    np.testing.assert_array_equal(method.predict_expression(data), np.tile(data.slide_means()[0], (90, 1)))
    known = data.label[data.label >= 0]
    expected = [np.mean(known == code) for code in range(3)]
    np.testing.assert_allclose(method.predict_proba(data)[7], expected, rtol=1e-6)
    assert mean_slide_correlation(found.expression, data.target, data.slide) == 0.0


@pytest.mark.parametrize("kind", [Ridge, Color, Mean])
def test_predicting_what_was_not_learnt_is_refused(kind, tmp_path):
    data = training_data()
    without_labels, without_counts = kind(), kind()
    without_labels.fit_parts(replace(data, label=np.full(90, -1)))
    with pytest.raises(ValueError, match="without labels"):
        without_labels.predict_proba(data)
    without_counts.fit_parts(replace(data, depth=np.zeros(90)))
    with pytest.raises(ValueError, match="without counts"):
        without_counts.predict_expression(data)
    write_state(tmp_path, without_counts.state())
    again = kind()
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.predict_proba(data), without_counts.predict_proba(data))


def test_subtypes_are_those_of_logistic_regression():
    data, new = training_data(n_classes=3), training_data(seed=1)
    method, folds = Ridge(), inner_folds(data)
    found = method.fit(data, folds)
    expected = LinearClassifier().fit(data.design, data).predict_proba(new.design)
    np.testing.assert_array_equal(method.predict_proba(new), expected)
    fold = folds[0]
    part = LinearClassifier().fit(data.design[fold.train], data.take(fold.train))
    np.testing.assert_array_equal(found.proba[fold.held_out], part.predict_proba(data.design[fold.held_out]))

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as PlainRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stcontrast._data import inner_folds
from stcontrast._files import read_state, write_state
from stcontrast.methods._base import get_method
from stcontrast.methods._linear import PENALTIES, LinearClassifier, RidgePath
from stcontrast.methods.baselines import Color, Mean, Ridge
from stcontrast.metrics import gene_correlation, mean_slide_correlation
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


def hest_data(*, n_columns: int, seed: int = 0):
    """Spots whose features are not their design, of which some are not measured."""
    data = training_data(n_spots=40, seed=seed)
    rng = np.random.default_rng(seed)
    features = np.hstack([3 * data.features + 5, rng.normal(size=(120, n_columns - 6)).astype(np.float32)])
    features += data.slide[:, None] * np.float32(0.3)
    expression = np.log1p(1e4 * data.counts.toarray() / data.depth[:, None]).astype(np.float32)
    return replace(
        data, features=features, target=expression, observed=expression, depth=data.depth * (np.arange(120) % 9 > 0)
    )


@pytest.mark.parametrize("n_columns", [7, 300], ids=["all components", "256 components of 300 features"])
def test_the_recipe_of_hest_is_that_of_scikit_learn(n_columns):
    data, new = hest_data(n_columns=n_columns), hest_data(n_columns=n_columns, seed=1)
    rows = data.measured
    seen, asked = data.features[rows].astype(np.float64), new.features.astype(np.float64)
    components = make_pipeline(StandardScaler(), PCA(min(256, *seen.shape), svd_solver="full")).fit(seen)
    by_hand = PlainRidge(alpha=100 / (256 * 50), fit_intercept=False)
    by_hand.fit(components.transform(seen), np.log1p(data.counts.toarray()[rows]))
    expected = by_hand.predict(components.transform(asked))
    method = Ridge(recipe="hest")
    method.fit(data, inner_folds(data))
    found = method.predict_expression(new.unseen())
    # the same but for the unit: a shift and a factor of every gene
    np.testing.assert_allclose(gene_correlation(found, expected.astype(np.float32)), 1, atol=1e-5)
    counted = np.log1p(data.counts.toarray()[rows])
    unit = data.observed[rows].std(axis=0) / counted.std(axis=0)
    np.testing.assert_allclose(found, data.observed[rows].mean(axis=0) + unit * expected, atol=2e-3)
    assert method.penalty == 0.0078125


def test_the_recipe_of_hest_sees_no_neighbours_and_no_slides():
    data = hest_data(n_columns=7)
    method = Ridge(recipe="hest")
    method.fit(data, inner_folds(data))
    whole = method.predict_expression(data.unseen())
    one = np.flatnonzero(data.slide == 1)[:3]
    np.testing.assert_allclose(method.predict_expression(data.take(one).unseen()), whole[one], atol=1e-6)
    changed = replace(data.unseen(), design=data.design + 1)
    np.testing.assert_array_equal(method.predict_expression(changed), whole)


def test_the_recipe_of_hest_learns_from_raw_counts_alone():
    data = hest_data(n_columns=7)
    one, other = Ridge(recipe="hest"), Ridge(recipe="hest")
    one.fit_parts(data)
    other.fit_parts(replace(data, target=data.target + 1))
    np.testing.assert_array_equal(one.predict_expression(data), other.predict_expression(data))


def test_held_out_counts_do_not_change_the_recipe_of_hest():
    data = hest_data(n_columns=7)
    folds = inner_folds(data)
    found = Ridge(recipe="hest").predict_out_of_fold(data, folds)
    rows = folds[0].held_out
    counts = data.counts.toarray()
    counts[rows] = np.random.default_rng(0).poisson(30, counts[rows].shape)
    observed = data.observed.copy()
    observed[rows] = np.log1p(counts[rows])
    changed = replace(data, counts=type(data.counts)(counts), observed=observed, target=observed)
    again = Ridge(recipe="hest").predict_out_of_fold(changed, inner_folds(changed))
    np.testing.assert_array_equal(again.expression[rows], found.expression[rows])
    others = folds[1].held_out
    assert not np.allclose(again.expression[others], found.expression[others], atol=1e-2)


def test_recipes_and_their_penalties(tmp_path):
    assert get_method("ridge", options={"recipe": "hest", "penalty": 2.0}).penalty == 2.0
    with pytest.raises(ValueError, match="`recipe` must be one of 'folds', 'hest', found 'HEST'"):
        get_method("ridge", options={"recipe": "HEST"})
    with pytest.raises(ValueError, match="`penalty` must be a finite number above 0"):
        get_method("ridge", options={"penalty": 0.0})
    data = hest_data(n_columns=7)
    method = Ridge(recipe="hest")
    method.fit(data, inner_folds(data))
    write_state(tmp_path, method.state())
    again = Ridge(**method.spec)
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.predict_expression(data), method.predict_expression(data))
    np.testing.assert_array_equal(again.predict_proba(data), method.predict_proba(data))


@pytest.mark.parametrize("name", ["color", "depth"])
def test_what_is_made_of_ridge_takes_the_recipe_too(name):
    data = hest_data(n_columns=7)
    method = get_method(name, options={"recipe": "hest"})
    method.fit(data, inner_folds(data))
    found = method.predict_expression(data.unseen(depth=True))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[data.measured].mean(axis=0), data.observed[data.measured].mean(axis=0), atol=0.1)

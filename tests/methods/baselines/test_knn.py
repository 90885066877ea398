from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from stcontrast._data import inner_folds
from stcontrast._files import read_state, write_state
from stcontrast.methods.baselines import Knn
from stcontrast.methods.baselines._knn import GRID
from stcontrast.metrics import mean_slide_correlation
from tests.methods.synthetic import training_data


def test_it_is_scikit_learn_s():
    data, new = training_data(n_classes=3), training_data(seed=1)
    method = Knn(k=7)
    method.class_k = 9
    method.fit_parts(data)
    scaler = StandardScaler().fit(data.design)
    mean, of_spot = data.slide_means()
    regression = KNeighborsRegressor(7).fit(scaler.transform(data.design), data.target - of_spot + mean)
    votes = KNeighborsClassifier(9).fit(scaler.transform(data.design), data.label)
    queries = scaler.transform(new.design)
    view = new.unseen()
    np.testing.assert_allclose(method.predict_expression(view), regression.predict(queries), atol=1e-5)
    np.testing.assert_allclose(method.predict_proba(view), votes.predict_proba(queries), atol=1e-6)


def test_the_number_of_neighbours_that_predicts_held_out_donors_best():
    data = training_data(n_spots=25)
    folds = inner_folds(data)
    method = Knn()
    found = method.fit(data, folds)
    scores = {}
    for k in GRID:
        expression = np.full_like(data.target, np.nan)
        for fold in folds:
            part = Knn(k=k)
            part.fit_parts(data.take(fold.train))
            expression[fold.held_out] = part.predict_expression(data.take(fold.held_out).unseen())
        scores[k] = mean_slide_correlation(expression, data.observed, data.slide)
    assert method.k == max(scores, key=scores.get)
    assert mean_slide_correlation(found.expression, data.observed, data.slide) == pytest.approx(scores[method.k])


def test_predicting_what_was_not_learnt_is_refused_and_the_rest_is_saved(tmp_path):
    data = training_data()
    labels_alone, counts_alone = Knn(), Knn()
    labels_alone.fit_parts(replace(data, depth=np.zeros(90)))
    counts_alone.fit_parts(replace(data, label=np.full(90, -1)))
    view = data.unseen()
    with pytest.raises(ValueError, match="without counts"):
        labels_alone.predict_expression(view)
    with pytest.raises(ValueError, match="without labels"):
        counts_alone.predict_proba(view)
    write_state(tmp_path, labels_alone.state())
    again = Knn()
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.predict_proba(view), labels_alone.predict_proba(view))
    with pytest.raises(ValueError, match="`k` must be a whole number of at least 1"):
        Knn(k=0)

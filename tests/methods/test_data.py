from __future__ import annotations

from dataclasses import replace

import numpy as np

from stcontrast.methods._data import Held
from tests.methods.synthetic import training_data


def test_take_keeps_rows_together():
    data = training_data()
    rows = np.array([5, 40, 2])
    part = data.take(rows)
    np.testing.assert_array_equal(part.design, data.design[rows])
    np.testing.assert_array_equal(part.counts.toarray(), data.counts.toarray()[rows])
    np.testing.assert_array_equal(part.label, data.label[rows])
    assert part.n_classes == data.n_classes


def test_slides_count_alike_in_the_mean():
    data = training_data(donors=2)
    measured = np.arange(60) < 40  # 30 spots of the first slide, 10 of the second
    target = np.where(measured[:, None], data.target, 0)
    mean, of_spot = replace(data, measured=measured, target=target).slide_means()
    first, second = data.target[:30].mean(axis=0), data.target[30:40].mean(axis=0)
    np.testing.assert_allclose(mean, (first + second) / 2, rtol=1e-5)
    np.testing.assert_allclose(of_spot[3], first, rtol=1e-5)
    np.testing.assert_allclose(of_spot[35], second, rtol=1e-5)
    np.testing.assert_array_equal(of_spot[40:], 0)


def test_nothing_is_held_out_yet():
    held = Held.empty(training_data())
    assert held.expression.shape == (90, 5)
    assert held.proba.shape == (90, 2)
    assert np.isnan(held.expression).all()

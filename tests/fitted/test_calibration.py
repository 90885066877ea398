from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from stcontrast._data.folds import inner_folds
from stcontrast._data.spots import Held
from stcontrast.fitted._calibration import Calibration, calibrate, conformal_half_width
from stcontrast.metrics import gene_correlation
from tests.methods.synthetic import training_data


@given(n=st.integers(1, 60), level=st.sampled_from([0.5, 0.8, 0.9]), seed=st.integers(0, 99))
def test_half_width_is_an_order_statistic(n, level, seed):
    residual = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    rank = math.ceil((n + 1) * level)
    expected = np.sort(np.abs(residual), axis=0)[rank - 1] if rank <= n else np.full(2, np.inf)
    np.testing.assert_array_equal(conformal_half_width(residual, level=level), expected)


def test_coverage_on_exchangeable_data():
    rng = np.random.default_rng(0)
    n_calibration, n_genes = 199, 400
    half = conformal_half_width(rng.standard_t(3, size=(n_calibration, n_genes)).astype(np.float32))
    covered = (np.abs(rng.standard_t(3, size=(500, n_genes))) <= half).mean()
    # (n + 1) · 0.9 is whole: coverage is 0.9 exactly, in expectation
    assert covered == pytest.approx(0.9, abs=0.005)


def calibrated(held_from=None, **changes) -> tuple[Calibration, dict, Held, object]:
    data = replace(training_data(), **changes)
    folds = inner_folds(data)
    rng = np.random.default_rng(3)
    held = Held(
        (data.target + rng.normal(size=data.target.shape)).astype(np.float32),
        rng.dirichlet([1] * data.n_classes, len(data.label)).astype(np.float32),
    )
    calibration, scores = calibrate(held, data, data.design[:, :2], folds)
    return calibration, scores, held, data


def test_scores_of_the_card():
    calibration, scores, held, data = calibrated()
    per_slide = [gene_correlation(held.expression[data.slide == s], data.target[data.slide == s]) for s in range(3)]
    np.testing.assert_allclose(calibration.held_out_r, np.mean(per_slide, axis=0), rtol=1e-5)
    assert scores["held_out_r"] == pytest.approx(np.mean(per_slide))
    assert scores["held_out_macro_f1"] == pytest.approx(
        f1_score(data.label, held.proba.argmax(axis=1), average="macro")
    )
    assert scores["held_out_unit"] == "donor"
    residual = np.maximum(held.expression, 0) - data.target
    np.testing.assert_array_equal(calibration.half_width, conformal_half_width(residual))


def test_a_gene_constant_on_a_slide_is_scored_on_the_others():
    target = training_data().target.copy()
    target[:30, 0] = 1.0
    target[:, 1] = 1.0
    calibration, _, held, data = calibrated(observed=target)
    others = [gene_correlation(held.expression[data.slide == s], data.target[data.slide == s])[0] for s in (1, 2)]
    assert calibration.held_out_r[0] == pytest.approx(np.mean(others))
    assert calibration.held_out_r[1] == 0


def test_labels_alone():
    calibration, scores, _, _ = calibrated(
        measured=np.zeros(90, dtype=bool),
        target=np.zeros((90, 0), dtype=np.float32),
        observed=np.zeros((90, 0), dtype=np.float32),
        label=training_data().label,
    )
    assert len(calibration.half_width) == 0
    assert "held_out_r" not in scores
    assert "held_out_macro_f1" in scores


def test_nothing_held_out_leaves_intervals_infinite():
    data = training_data()
    calibration, _ = calibrate(Held.empty(data), data, data.design[:, :2], inner_folds(data))
    assert np.isinf(calibration.half_width).all()
    assert calibration.held_out_r.shape == (5,)


def test_familiar_spots():
    calibration, _, _, data = calibrated()
    assert calibration.is_familiar(data.design, data.design[:, :2]).mean() > 0.96
    new = training_data(seed=5)
    assert calibration.is_familiar(new.design, new.design[:, :2]).mean() > 0.9
    assert not calibration.is_familiar(data.design + 10, data.design[:, :2]).any()
    assert not calibration.is_familiar(data.design, data.design[:, :2] + 10).any()


def test_arrays_there_and_back():
    calibration, _, _, data = calibrated()
    again = Calibration.from_arrays(calibration.arrays())
    np.testing.assert_array_equal(
        again.is_familiar(data.design, data.design[:, :2]), calibration.is_familiar(data.design, data.design[:, :2])
    )
    np.testing.assert_array_equal(again.half_width, calibration.half_width)

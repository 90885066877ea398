from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from stcontrast._data import inner_folds
from stcontrast._files import read_state, write_state
from stcontrast.fitted._calibration import Calibration, conformal_half_width
from stcontrast.methods import Prediction, Spots
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


def empty(data: Spots) -> Prediction:
    return Prediction.empty(len(data), n_genes=data.n_genes, n_classes=data.n_classes)


def calibrated(**changes) -> tuple[Calibration, dict, Prediction, Spots]:
    data = training_data()
    data = replace(data, features=data.design[:, :2], **changes)
    rng = np.random.default_rng(3)
    found = empty(data)
    found.expression = (data.target + rng.normal(size=data.target.shape)).astype(np.float32)
    found.proba = rng.dirichlet([1] * data.n_classes, len(data.label)).astype(np.float32)
    calibration = Calibration()
    return calibration, calibration.fit(found, data, inner_folds(data)), found, data


def test_scores_of_the_spec():
    calibration, scores, found, data = calibrated()
    per_slide = [gene_correlation(found.expression[data.slide == s], data.target[data.slide == s]) for s in range(3)]
    np.testing.assert_allclose(calibration.held_out_r, np.mean(per_slide, axis=0), rtol=1e-5)
    assert scores["held_out_r"] == pytest.approx(np.mean(per_slide))
    assert scores["held_out_macro_f1"] == pytest.approx(
        f1_score(data.label, found.proba.argmax(axis=1), average="macro")
    )
    assert scores["held_out_unit"] == "donor"
    residual = np.maximum(found.expression, 0) - data.target
    np.testing.assert_array_equal(calibration.half_width, conformal_half_width(residual))


def test_a_gene_constant_on_a_slide_is_scored_on_the_others():
    target = training_data().target.copy()
    target[:30, 0] = 1.0
    target[:, 1] = 1.0
    calibration, _, found, data = calibrated(observed=target)
    others = [gene_correlation(found.expression[data.slide == s], data.target[data.slide == s])[0] for s in (1, 2)]
    assert calibration.held_out_r[0] == pytest.approx(np.mean(others))
    assert calibration.held_out_r[1] == 0


def test_labels_alone():
    calibration, scores, _, _ = calibrated(
        depth=np.zeros(90),
        target=np.zeros((90, 0), dtype=np.float32),
        observed=np.zeros((90, 0), dtype=np.float32),
    )
    assert len(calibration.half_width) == 0
    assert "held_out_r" not in scores
    assert "held_out_macro_f1" in scores


def test_without_out_of_fold_predictions_intervals_are_infinite():
    data = training_data()
    calibration = Calibration()
    calibration.fit(empty(data), data, inner_folds(data))
    assert np.isinf(calibration.half_width).all()
    assert calibration.held_out_r.shape == (5,)


def test_spots_are_in_distribution_by_design_and_by_features():
    calibration, _, _, data = calibrated()
    assert calibration.in_distribution(data).mean() > 0.96
    new = training_data(seed=5)
    assert calibration.in_distribution(replace(new, features=new.design[:, :2])).mean() > 0.9
    assert not calibration.in_distribution(replace(data, design=data.design + 10)).any()
    assert not calibration.in_distribution(replace(data, features=data.features + 10)).any()


def test_features_of_a_fold_set_the_radius_in_that_fold():
    """An encoder that was fine-tuned on all spots brings them together; the folds tell how far a new spot lies."""
    data = training_data()
    data = replace(data, features=data.design[:, :2])
    folds = inner_folds(data)
    near = replace(data, design=np.float32(0.01) * data.design, features=np.float32(0.01) * data.features)
    own, shared = Calibration(), Calibration()
    own.fit(empty(near), near, folds)
    shared.fit(empty(near), near, inner_folds(near))
    for part in ("design", "appearance"):
        assert getattr(own, part).radius != getattr(shared, part).radius
        np.testing.assert_array_equal(getattr(own, part).reference, getattr(shared, part).reference)


def test_state_there_and_back(tmp_path):
    calibration, _, _, data = calibrated()
    write_state(tmp_path, calibration.state())
    again = Calibration()
    again.restore(read_state(tmp_path))
    far = replace(data, design=data.design + 2)
    for spots in (data, far):
        np.testing.assert_array_equal(again.in_distribution(spots), calibration.in_distribution(spots))
    assert 0 < calibration.in_distribution(far).mean() < 1
    np.testing.assert_array_equal(again.half_width, calibration.half_width)
    np.testing.assert_array_equal(again.held_out_r, calibration.held_out_r)

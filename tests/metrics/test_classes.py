from __future__ import annotations

import numpy as np
import pytest

from stcontrast.metrics import calibration_error
from stcontrast.metrics._classes import calibration_bins


def test_by_hand():
    proba = np.array([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.4, 0.6]])
    label = np.array([0, 1, 1, 1])
    # bins: 0.95 twice (half right), 0.65 and 0.6 (both right, one bin)
    expected = 0.5 * abs(0.5 - 0.95) + 0.5 * abs(1.0 - 0.625)
    assert calibration_error(proba, label) == pytest.approx(expected)


def test_a_calibrated_classifier_has_a_small_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1.0, 20_000)
    label = (rng.uniform(size=20_000) > confidence).astype(int)
    assert calibration_error(np.column_stack([confidence, 1 - confidence]), label) < 0.02


def test_an_unknown_class_is_always_wrong():
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([-1])) == 1.0
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0.0


def test_confidence_is_counted_in_ten_bins_unless_told_otherwise():
    proba, label = np.array([[0.61, 0.39], [0.79, 0.21]]), np.array([0, 1])
    apart, together = (0.39 + 0.79) / 2, abs(0.5 - 0.7)
    assert calibration_error(proba, label) == pytest.approx(apart)
    assert calibration_error(proba, label, n_bins=5) == pytest.approx(together)


def test_full_confidence_belongs_to_the_last_bin():
    confidence = np.array([0.95, 1.0, 0.91, 0.05])
    found = calibration_bins(confidence, np.array([True, True, False, False]))
    assert found.index.tolist() == [0, 9]
    np.testing.assert_allclose(found.loc[9, ["confidence", "accuracy", "n_spots"]], [2.86 / 3, 2 / 3, 3])
    np.testing.assert_allclose(found.loc[0, ["confidence", "accuracy", "n_spots"]], [0.05, 0, 1])

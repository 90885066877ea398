from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from stcontrast.methods.stcontrast._stacking import calibration_slope, mixed, stack_expression, stack_proba


def centred(values: np.ndarray, slide: np.ndarray) -> np.ndarray:
    return np.concatenate([values[slide == code] - values[slide == code].mean(axis=0) for code in np.unique(slide)])


@given(seed=st.integers(0, 10_000))
def test_least_squares_with_weights_not_below_0(seed):
    rng = np.random.default_rng(seed)
    slide = np.repeat([0, 1], 15)
    observed = (rng.normal(size=(30, 4)) * [1, 5, 0.2, 2]).astype(np.float32)
    parts = [
        (a * observed + rng.normal(size=(30, 4)) * observed.std(axis=0)).astype(np.float32) for a in (1, 0.5, -0.5)
    ]
    weights = stack_expression(parts, observed, slide)
    truth = centred(observed, slide)
    scale = np.sqrt((truth**2).sum(axis=0))
    columns = np.stack([(centred(part, slide) / scale).ravel() for part in parts], axis=1)

    def loss(w):
        return ((columns @ w - (truth / scale).ravel()) ** 2).sum()

    best = minimize(loss, np.full(3, 0.3), bounds=[(0, None)] * 3, tol=1e-12).x
    np.testing.assert_allclose(weights, best / best.sum(), atol=2e-3)


def test_levels_of_slides_and_units_of_genes_do_not_matter():
    rng = np.random.default_rng(0)
    slide = np.repeat([0, 1, 2], 10)
    observed = rng.normal(size=(30, 5))
    parts = [observed + rng.normal(size=(30, 5)), 0.5 * observed + rng.normal(size=(30, 5))]
    shift = rng.normal(size=(3, 5))[slide] * 9
    units = np.array([1, 10, 0.1, 3, 100])
    one = stack_expression(parts, observed, slide)
    np.testing.assert_allclose(stack_expression([part + shift for part in parts], observed, slide), one, atol=1e-8)
    np.testing.assert_allclose(stack_expression([p * units for p in parts], observed * units, slide), one, atol=1e-8)
    swapped = stack_expression(parts[::-1], observed, slide)
    np.testing.assert_allclose(swapped, one[::-1], atol=1e-8)


def test_spots_without_a_prediction_are_left_out_and_useless_predictions_count_alike():
    rng = np.random.default_rng(0)
    slide = np.zeros(20, dtype=np.int64)
    observed = rng.normal(size=(20, 3)).astype(np.float32)
    good = observed.copy()
    good[:5] = np.nan
    np.testing.assert_allclose(stack_expression([good, -observed], observed, slide), [1, 0], atol=1e-8)
    np.testing.assert_allclose(stack_expression([-observed, -observed], observed, slide), [0.5, 0.5])


def test_the_greatest_likelihood():
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, 200)
    parts = [rng.dirichlet(np.ones(3), 200) for _ in range(2)]
    parts.append(np.eye(3)[label] * 0.4 + 0.2)
    weights = stack_proba(parts, np.where(np.arange(200) % 5, label, -1))
    rows = np.arange(200) % 5 > 0
    given_label = np.stack([part[rows, label[rows]] for part in parts], axis=1)

    def loss(w):
        return -np.log(given_label @ (np.abs(w) / np.abs(w).sum())).sum()

    best = np.abs(minimize(loss, np.full(3, 1 / 3), method="Nelder-Mead", tol=1e-10).x)
    np.testing.assert_allclose(weights, best / best.sum(), atol=0.01)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(stack_proba(parts, np.full(200, -1)), 1 / 3)


def test_a_prediction_without_weight_may_be_absent():
    np.testing.assert_allclose(mixed({"a": 0.25, "b": 0.0, "c": 0.75}, {"a": np.ones(2), "c": np.zeros(2)}), 0.25)


def held_out(seed: int, *, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    slide = np.repeat([0, 1, 2], [12, 20, 8])
    observed = rng.normal(size=(40, 4)) * [1, 3, 0.2, 2]
    predicted = 0.7 * observed + noise * rng.normal(size=(40, 4)) * observed.std(axis=0)
    return predicted, observed, slide


@given(seed=st.integers(0, 10_000), factor=st.floats(0.02, 50))
def test_a_prediction_that_is_too_wide_by_a_factor_is_divided_by_it(seed, factor):
    _, observed, slide = held_out(seed)
    slope = calibration_slope(observed / factor, observed, slide)
    np.testing.assert_allclose(slope, np.full(4, np.clip(factor, 0.05, 2)), rtol=1e-5)


@given(seed=st.integers(0, 10_000))
def test_slopes_are_of_least_squares_drawn_half_way_to_that_of_all_genes(seed):
    predicted, observed, slide = held_out(seed)
    claimed, truth = centred(predicted, slide), centred(observed, slide)
    each = [np.linalg.lstsq(claimed[:, [g]], truth[:, g])[0].item() for g in range(4)]
    pooled = np.linalg.lstsq(claimed.reshape(-1, 1), truth.ravel())[0].item()
    slope = calibration_slope(predicted, observed, slide)
    np.testing.assert_allclose(slope, np.clip((np.array(each) + pooled) / 2, 0.05, 2), rtol=1e-4)
    np.testing.assert_allclose(
        np.clip([np.polyfit(c, t, 1)[0] for c, t in zip(claimed.T, truth.T, strict=True)], 0.05, 2),
        np.clip(each, 0.05, 2), rtol=1e-4,
    )  # fmt: skip


@given(seed=st.integers(0, 10_000))
def test_a_slide_s_level_and_the_order_of_spots_do_not_matter(seed):
    predicted, observed, slide = held_out(seed)
    rng = np.random.default_rng(seed)
    shifts = [10 * rng.normal(size=(3, 4))[slide] for _ in range(2)]
    slope = calibration_slope(predicted, observed, slide)
    np.testing.assert_allclose(calibration_slope(predicted + shifts[0], observed + shifts[1], slide), slope, rtol=1e-4)
    order = rng.permutation(40)
    np.testing.assert_allclose(calibration_slope(predicted[order], observed[order], slide[order]), slope, rtol=1e-5)


@given(seed=st.integers(0, 10_000), noise=st.floats(0, 20))
def test_the_slope_leaves_correlation_alone_and_does_not_raise_the_error(seed, noise):
    predicted, observed, slide = held_out(seed, noise=noise)
    slope = calibration_slope(predicted, observed, slide)
    assert ((slope >= np.float32(0.05)) & (slope <= 2)).all()
    for code in range(3):
        here = slide == code
        for g in range(4):
            before = np.corrcoef(predicted[here, g], observed[here, g])[0, 1]
            after = np.corrcoef(1.5 + slope[g] * (predicted[here, g] - 1.5), observed[here, g])[0, 1]
            assert after == pytest.approx(before, abs=1e-6)
    error = [((centred(part, slide) - centred(observed, slide)) ** 2).sum() for part in (predicted, slope * predicted)]
    if slope.max() < 1:
        assert error[1] < error[0]


def test_spots_without_a_prediction_do_not_change_the_slope():
    predicted, observed, slide = held_out(0)
    gone = np.arange(40) % 3 == 0
    wild = np.where(gone[:, None], 1e6, observed)
    absent = np.where(gone[:, None], np.nan, predicted)
    expected = calibration_slope(predicted[~gone], observed[~gone], slide[~gone])
    np.testing.assert_array_equal(calibration_slope(absent, wild, slide), expected)


def test_a_constant_prediction_gets_the_slope_of_all_genes():
    predicted, observed, slide = (part.astype(np.float32) for part in held_out(0))
    slide = slide.astype(np.int64)
    predicted[:, 2] = np.float32(0.1) * (1 + slide)
    claimed, truth = centred(predicted, slide), centred(observed, slide)
    pooled = (claimed * truth).sum() / (claimed**2).sum()
    assert calibration_slope(predicted, observed, slide)[2] == pytest.approx(pooled, rel=1e-4)
    np.testing.assert_array_equal(calibration_slope(np.ones_like(observed), observed, slide), 1)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from stcontrast.methods.stcontrast._stacking import CalibrationSlope, StackedWeights, mixed, stack_proba

PRIOR = {"a": 0.2, "b": 0.3, "c": 0.5}


def centred(values: np.ndarray, slide: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return np.concatenate([values[slide == code] - values[slide == code].mean(axis=0) for code in np.unique(slide)])


def fold(seed: int, *, k: int = 3, n: int = 30) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Predictions by name, what was measured, and slides in ascending order."""
    rng = np.random.default_rng(seed)
    slide = np.sort(rng.integers(0, 2, n))
    observed = (rng.normal(size=(n, k)) * rng.uniform(0.5, 3, k)).astype(np.float32)
    parts = {
        name: (a * observed + rng.normal(size=(n, k))).astype(np.float32)
        for name, a in zip(PRIOR, (1, 0.5, -0.5), strict=True)
    }
    return parts, observed, slide


def stacked(*folds: tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]) -> StackedWeights:
    weights = StackedWeights(PRIOR)
    for one in folds:
        weights.add(*one)
    return weights


def best_of(*folds: tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]) -> np.ndarray:
    """Least squares with weights not below 0, by a general optimiser, scaled to sum to 1."""
    columns = np.concatenate(
        [np.stack([centred(parts[name], slide).ravel() for name in PRIOR], axis=1) for parts, _, slide in folds]
    )
    truth = np.concatenate([centred(observed, slide).ravel() for _, observed, slide in folds])

    def loss(w):
        return ((columns @ w - truth) ** 2).mean(), 2 * columns.T @ (columns @ w - truth) / len(truth)

    best = minimize(loss, np.full(3, 0.3), jac=True, bounds=[(0, None)] * 3, tol=1e-14).x
    return best / best.sum()


@given(seed=st.integers(0, 10_000), n_donors=st.integers(3, 30))
def test_least_squares_with_weights_not_below_0_drawn_towards_the_fixed_ones(seed, n_donors):
    folds = [fold(3 * seed + i, n=20 + i) for i in range(3)]
    found = stacked(*folds).found(n_donors=n_donors)
    share = n_donors / (n_donors + 6)
    expected = share * best_of(*folds) + (1 - share) * np.array([0.2, 0.3, 0.5])
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-3)
    assert list(found) == list(PRIOR)
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize("n_donors", [1, 2])
def test_with_fewer_than_three_donors_the_weights_are_fixed(n_donors):
    assert stacked(fold(0), fold(1)).found(n_donors=n_donors) == PRIOR
    assert StackedWeights(PRIOR).found(n_donors=9) == PRIOR


def test_the_weights_of_a_fold_s_predictions_rest_on_the_other_folds():
    folds = [fold(i) for i in range(3)]
    weights = stacked(*folds)
    for i in range(3):
        others = [one for j, one in enumerate(folds) if j != i]
        assert weights.found(n_donors=3, without=i) == stacked(*others).found(n_donors=3)
    # with the fold's own measurements it would be another
    assert weights.found(n_donors=3, without=0) != weights.found(n_donors=3)
    assert stacked(folds[0]).found(n_donors=3, without=0) == PRIOR


@given(seed=st.integers(0, 10_000))
def test_levels_of_slides_order_of_spots_and_turns_of_the_coordinates_do_not_matter(seed):
    parts, observed, slide = fold(seed)
    rng = np.random.default_rng(seed)
    one = stacked((parts, observed, slide)).found(n_donors=5)
    shift = (5 * rng.normal(size=(2, 3))[slide]).astype(np.float32)
    moved = {name: part + shift for name, part in parts.items()}
    again = stacked((moved, observed + shift[:, ::-1], slide)).found(n_donors=5)
    np.testing.assert_allclose(list(again.values()), list(one.values()), atol=1e-3)
    # every fold has axes of its own
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    order = rng.permutation(30)
    turned = ({name: part[order] @ turn for name, part in parts.items()}, observed[order] @ turn, slide[order])
    np.testing.assert_allclose(list(stacked(turned).found(n_donors=5).values()), list(one.values()), atol=1e-3)


def test_useless_and_constant_predictions_leave_the_fixed_weights():
    _, observed, slide = fold(0)
    against = dict.fromkeys(PRIOR, -observed)
    assert stacked((against, observed, slide)).found(n_donors=9) == PRIOR
    constant = dict.fromkeys(PRIOR, np.ones_like(observed))
    assert stacked((constant, observed, slide)).found(n_donors=9) == PRIOR


def test_members_that_say_the_same_are_no_obstacle():
    parts, observed, slide = fold(0)
    parts["b"] = parts["a"]
    found = stacked((parts, observed, slide)).found(n_donors=60)
    assert found["a"] + found["b"] > 0.8
    assert min(found.values()) >= 0


@given(seed=st.integers(0, 10_000))
def test_the_greatest_likelihood_drawn_towards_the_fixed_weights(seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, 200)
    parts = {name: rng.dirichlet(np.ones(3), 200).astype(np.float32) for name in ("a", "b")}
    parts["c"] = (np.eye(3)[label] * rng.uniform(0, 0.5, (200, 1)) + 0.2).astype(np.float32)
    parts["c"] /= parts["c"].sum(axis=1, keepdims=True)
    known = np.arange(200) % 5 > 0
    parts["b"][7] = np.nan
    weights = stack_proba(parts, np.where(known, label, -1), prior=PRIOR)
    rows = np.flatnonzero(known & (np.arange(200) != 7))
    given_label = np.stack([parts[name][rows, label[rows]] for name in PRIOR], axis=1).astype(np.float64)

    def loss(w):
        return -np.log(given_label @ (np.abs(w) / np.abs(w).sum())).mean()

    best = np.abs(minimize(loss, np.full(3, 1 / 3), method="Nelder-Mead", tol=1e-10).x)
    of_data = len(rows) / (len(rows) + 100)
    expected = of_data * best / best.sum() + (1 - of_data) * np.array([0.2, 0.3, 0.5])
    found = np.array(list(weights.values()))
    drawn = (found - (1 - of_data) * np.array([0.2, 0.3, 0.5])) / of_data
    # expectation maximisation ends a little before the optimum where that is flat
    assert loss(drawn + 1e-12) < loss(best) + 1e-4
    assert loss(found) < loss(expected) + 1e-3
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()


def test_a_classifier_that_is_right_gets_what_the_data_have_to_give():
    label = np.arange(60) % 2
    right = (np.eye(2)[label] * 0.8 + 0.1).astype(np.float32)
    parts = {"a": right, "b": 1 - right, "c": np.full((60, 2), 0.5, dtype=np.float32)}
    weights = stack_proba(parts, label, prior=PRIOR)
    of_data = 60 / 160
    assert weights["a"] == pytest.approx(of_data + (1 - of_data) * 0.2, abs=1e-3)
    assert weights["b"] == pytest.approx((1 - of_data) * 0.3, abs=1e-3)


@pytest.mark.parametrize("n_labels", [0, 5, 50])
def test_what_has_no_fixed_weight_has_little_where_labels_are_few(n_labels):
    label = np.where(np.arange(200) < n_labels, np.arange(200) % 2, -1)
    right = np.eye(2, dtype=np.float32)[np.maximum(label, 0)] * 0.8 + np.float32(0.1)
    parts = {"a": 1 - right, "b": 1 - right, "c": right}
    prior = {"a": 0.5, "b": 0.5, "c": 0.0}
    weights = stack_proba(parts, label, prior=prior)
    assert weights["c"] == pytest.approx(n_labels / (n_labels + 100), abs=1e-3)
    if n_labels == 0:
        assert weights == prior


def test_a_prediction_without_weight_may_be_absent():
    ones, zeros = (np.full(2, value, dtype=np.float32) for value in (1, 0))
    found = mixed({"a": 0.25, "b": 0.0, "c": 0.75}, {"a": ones, "c": zeros})
    np.testing.assert_allclose(found, 0.25)
    assert found.dtype == np.float32


def held_out(seed: int, *, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    slide = np.repeat([0, 1, 2], [12, 20, 8])
    observed = rng.normal(size=(40, 4)) * [1, 3, 0.2, 2]
    predicted = 0.7 * observed + noise * rng.normal(size=(40, 4)) * observed.std(axis=0)
    return predicted, observed, slide


def slope_of(*folds: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    slopes = CalibrationSlope()
    for one in folds:
        slopes.add(*one)
    return slopes.found()


@given(seed=st.integers(0, 10_000), factor=st.floats(0.02, 50))
def test_a_prediction_that_is_too_wide_by_a_factor_is_divided_by_it(seed, factor):
    _, observed, slide = held_out(seed)
    slope = slope_of((observed / factor, observed, slide))
    np.testing.assert_allclose(slope, np.full(4, np.clip(factor, 0.05, 2)), rtol=1e-5)


@given(seed=st.integers(0, 10_000))
def test_slopes_are_of_least_squares_drawn_half_way_to_that_of_all_genes(seed):
    folds = [held_out(seed), held_out(seed + 1)]
    claimed, truth = (np.concatenate([centred(one[i], one[2]) for one in folds]) for i in (0, 1))
    each = [np.linalg.lstsq(claimed[:, [g]], truth[:, g])[0].item() for g in range(4)]
    pooled = np.linalg.lstsq(claimed.reshape(-1, 1), truth.ravel())[0].item()
    slope = slope_of(*folds)
    np.testing.assert_allclose(slope, np.clip((np.array(each) + pooled) / 2, 0.05, 2), rtol=1e-4)
    assert slope.dtype == np.float32


def test_the_slope_of_a_fold_s_predictions_rests_on_the_other_folds():
    folds = [held_out(seed) for seed in range(3)]
    slopes = CalibrationSlope()
    for one in folds:
        slopes.add(*one)
    for i in range(3):
        others = [one for j, one in enumerate(folds) if j != i]
        np.testing.assert_array_equal(slopes.found(without=i), slope_of(*others))
    alone = CalibrationSlope()
    alone.add(*folds[0])
    np.testing.assert_array_equal(alone.found(without=0), alone.found())


@given(seed=st.integers(0, 10_000))
def test_a_slide_s_level_and_the_order_of_spots_do_not_matter(seed):
    predicted, observed, slide = held_out(seed)
    rng = np.random.default_rng(seed)
    shifts = [10 * rng.normal(size=(3, 4))[slide] for _ in range(2)]
    slope = slope_of((predicted, observed, slide))
    np.testing.assert_allclose(slope_of((predicted + shifts[0], observed + shifts[1], slide)), slope, rtol=1e-4)
    order = rng.permutation(40)
    np.testing.assert_allclose(slope_of((predicted[order], observed[order], slide[order])), slope, rtol=1e-5)


@given(seed=st.integers(0, 10_000), noise=st.floats(0, 20))
def test_the_slope_leaves_correlation_alone_and_does_not_raise_the_error(seed, noise):
    predicted, observed, slide = held_out(seed, noise=noise)
    slope = slope_of((predicted, observed, slide))
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


def test_a_constant_prediction_gets_the_slope_of_all_genes():
    predicted, observed, slide = (part.astype(np.float32) for part in held_out(0))
    slide = slide.astype(np.int64)
    predicted[:, 2] = np.float32(1) + slide
    claimed, truth = centred(predicted, slide), centred(observed, slide)
    pooled = (claimed * truth).sum() / (claimed**2).sum()
    assert slope_of((predicted, observed, slide))[2] == pytest.approx(pooled, rel=1e-4)
    np.testing.assert_array_equal(slope_of((np.ones_like(observed), observed, slide)), 1)

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge
from sklearn.preprocessing import KernelCenterer

from stcontrast._data import inner_folds
from stcontrast._files import read_state, write_state
from stcontrast.methods.baselines import Kernel, _kernel
from stcontrast.methods.baselines._kernel import PENALTIES, KernelPath
from stcontrast.metrics import mean_slide_correlation
from tests.methods.synthetic import training_data


def problem(n: int, *, seed: int = 0, n_inputs: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n_inputs)).astype(np.float32)
    y = np.stack([np.sin(2 * x[:, 0]) + 5, x[:, 1] * x[:, 2] - 3, rng.normal(size=n)], axis=1)
    return x, y.astype(np.float32)


def gaussian(x: np.ndarray, z: np.ndarray, width: float) -> np.ndarray:
    """exp(-|x - z|² / width), differences written out."""
    return np.exp(-((x[:, None].astype(np.float64) - z[None]) ** 2).sum(axis=2) / width)


def median_squared_distance(x: np.ndarray) -> float:
    squared = ((x[:, None].astype(np.float64) - x[None]) ** 2).sum(axis=2)
    return float(np.median(squared[np.tril_indices(len(x), -1)]))


@pytest.mark.parametrize(("n", "penalty"), [(2, 0.3), (80, 1.0), (80, 10.0), (300, 0.3), (1000, 0.3), (1000, 3.0)])
def test_it_is_kernel_ridge_with_a_mean_that_is_not_penalised(n, penalty):
    x, y = problem(n, n_inputs=12)
    new = problem(30, seed=1, n_inputs=12)[0]
    width = median_squared_distance(x)
    kernel, between = gaussian(x, x, width), gaussian(new, x, width)
    predicted = KernelPath().fit(x, y).predict(new, penalty)
    # scikit-learn's, on the centred kernel and the centred target
    centerer = KernelCenterer().fit(kernel)
    reference = KernelRidge(alpha=penalty, kernel="precomputed").fit(centerer.transform(kernel), y - y.mean(axis=0))
    expected = reference.predict(centerer.transform(between)) + y.mean(axis=0)
    np.testing.assert_allclose(predicted, expected, atol=1e-4)
    # and the optimum of |y - K a - b|² + penalty a'K a, b free: (K + penalty) a + b = y, sum(a) = 0
    system = np.block([[kernel + penalty * np.eye(n), np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    solution = np.linalg.solve(system, np.vstack([y, np.zeros(y.shape[1])]))
    np.testing.assert_allclose(predicted, between @ solution[:-1] + solution[-1], atol=1e-4)


def test_landmarks_come_close_to_all_spots_and_depend_on_the_seed_alone(monkeypatch):
    x, y = problem(400, n_inputs=3)
    new = problem(100, seed=1, n_inputs=3)[0]
    exact = KernelPath().fit(x, y).predict(new, 1.0)
    monkeypatch.setattr(_kernel, "N_LANDMARKS", 150)
    path = KernelPath(seed=3).fit(x, y)
    assert path.arrays["landmarks"].shape == (150, 3)
    known = {tuple(spot) for spot in x}
    assert all(tuple(spot) in known for spot in path.arrays["landmarks"])
    predicted = path.predict(new, 1.0)
    np.testing.assert_array_equal(predicted, KernelPath(seed=3).fit(x, y).predict(new, 1.0))
    assert not np.array_equal(predicted, KernelPath(seed=4).fit(x, y).predict(new, 1.0))
    error = np.abs(predicted - exact).max(axis=0) / exact.std(axis=0)
    assert error[:2].max() < 0.1


def test_landmarks_are_the_nystroem_approximation(monkeypatch):
    """Ridge on K(x, L) K(L, L)^(-1/2), the square root by eigenvectors, the mean free."""
    x, y = problem(120)
    new = problem(20, seed=1)[0]
    monkeypatch.setattr(_kernel, "N_LANDMARKS", 25)
    path = KernelPath().fit(x, y)
    landmarks = path.arrays["landmarks"]
    width = median_squared_distance(landmarks)
    values, vectors = np.linalg.eigh(gaussian(landmarks, landmarks, width))
    root = vectors / np.sqrt(values)
    mapped, seen = gaussian(x, landmarks, width) @ root, gaussian(new, landmarks, width) @ root
    center = mapped.mean(axis=0)
    solution = np.linalg.solve(
        (mapped - center).T @ (mapped - center) + 3 * np.eye(25), (mapped - center).T @ (y - y.mean(axis=0))
    )
    np.testing.assert_allclose(path.predict(new, 3.0), (seen - center) @ solution + y.mean(axis=0), atol=1e-3)


@pytest.mark.parametrize("n_landmarks", [20, 1000])
def test_what_is_kept_for_one_penalty_predicts_the_same(monkeypatch, n_landmarks):
    monkeypatch.setattr(_kernel, "N_LANDMARKS", n_landmarks)
    x, y = problem(60)
    path = KernelPath().fit(x, y)
    before, size = path.predict(x, 3.0), min(60, n_landmarks)
    path.settle(3.0)
    np.testing.assert_array_equal(path.predict(x, 3.0), before)
    # no square matrix of the landmarks is left
    assert {name: array.shape for name, array in path.arrays.items()} == {
        "landmarks": (size, x.shape[1]), "width": (), "dual": (size, y.shape[1]), "level": (y.shape[1],),
    }  # fmt: skip


@pytest.mark.parametrize("n_landmarks", [20, 1000])
def test_chunks_do_not_matter(monkeypatch, n_landmarks):
    x, y = problem(90)
    monkeypatch.setattr(_kernel, "N_LANDMARKS", n_landmarks)
    whole = KernelPath().fit(x, y).predict(x, 1.0)
    monkeypatch.setattr(_kernel, "SPOTS_AT_ONCE", 7)
    np.testing.assert_allclose(KernelPath().fit(x, y).predict(x, 1.0), whole, atol=1e-5)
    assert KernelPath().fit(x, y).predict(x[:0], 1.0).shape == (0, 3)


@given(seed=st.integers(0, 10_000))
def test_the_order_of_spots_does_not_matter(seed):
    x, y = problem(40, seed=seed)
    new = problem(15, seed=seed + 1)[0]
    order = np.random.default_rng(seed).permutation(40)
    one, other = KernelPath().fit(x, y), KernelPath().fit(x[order], y[order])
    np.testing.assert_allclose(other.predict(new, 1.0), one.predict(new, 1.0), atol=1e-4)
    again = np.random.default_rng(seed + 2).permutation(15)
    np.testing.assert_allclose(one.predict(new[again], 1.0), one.predict(new, 1.0)[again], atol=1e-6)


@given(seed=st.integers(0, 10_000), penalty=st.sampled_from(PENALTIES))
def test_levels_and_units_of_targets_pass_through(seed, penalty):
    x, y = problem(30, seed=seed)
    shift, factor = np.float32([10, -20, 3]), np.float32([2, 0.5, -4])
    plain = KernelPath().fit(x, y).predict(x, penalty)
    np.testing.assert_allclose(
        KernelPath().fit(x, y * factor + shift).predict(x, penalty), plain * factor + shift, atol=1e-3
    )
    # no rescaling of the inputs, nor a rotation, changes what is near
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0].astype(np.float32)
    turned = KernelPath().fit(7 * x @ rotation, y).predict(7 * x @ rotation, penalty)
    np.testing.assert_allclose(turned, plain, atol=1e-3)


@pytest.mark.parametrize("x", [np.ones((20, 3)), np.ones((1, 3)), np.repeat([[0.0], [1.0]], 10, axis=0)])
def test_spots_that_look_the_same_get_their_mean(x):
    x = x.astype(np.float32)
    y = np.random.default_rng(0).normal(size=(len(x), 2)).astype(np.float32)
    predicted = KernelPath().fit(x, y).predict(x, 1e-3)
    expected = np.array([y[(x == spot).all(axis=1)].mean(axis=0) for spot in x])
    np.testing.assert_allclose(predicted, expected, atol=2e-3)


def test_far_from_everything_the_prediction_is_one_level():
    x, y = problem(50)
    path = KernelPath().fit(x, y)
    far = path.predict(np.array([[1e3] * 4, [-1e3] * 4], dtype=np.float32), 1.0)
    np.testing.assert_allclose(far[0], far[1], atol=1e-6)


def test_the_penalties_that_predict_held_out_donors_best():
    data = training_data(n_spots=25, n_classes=3)
    folds = inner_folds(data)
    method = Kernel()
    found = method.fit(data, folds)
    r, likelihood = {}, {}
    for penalty in PENALTIES:
        part = Kernel(penalty=penalty, class_penalty=penalty).predict_out_of_fold(data, folds)
        r[penalty] = mean_slide_correlation(part.expression, data.observed, data.slide)
        likelihood[penalty] = np.log(part.proba[np.arange(75), data.label]).mean()
        if penalty == method.penalty:
            np.testing.assert_array_equal(found.expression, part.expression)
        if penalty == method.class_penalty:
            np.testing.assert_array_equal(found.proba, part.proba)
    assert method.penalty == max(r, key=r.get)
    assert method.class_penalty == max(likelihood, key=likelihood.get)
    assert r[method.penalty] > 0.5
    whole = Kernel(**method.spec)
    whole.fit_parts(data)
    np.testing.assert_array_equal(method.predict_expression(data), whole.predict_expression(data))


def test_held_out_counts_do_not_change_out_of_fold_predictions():
    data = training_data()
    folds = inner_folds(data)
    fold = folds[0]
    found = Kernel().predict_out_of_fold(data, folds)
    target, label = data.target.copy(), data.label.copy()
    target[fold.held_out] = 100 * np.random.default_rng(0).random(target[fold.held_out].shape)
    label[fold.held_out] = 1 - label[fold.held_out]
    changed = replace(data, target=target, observed=target, label=label)
    again = Kernel().predict_out_of_fold(changed, inner_folds(changed))
    np.testing.assert_array_equal(again.expression[fold.held_out], found.expression[fold.held_out])
    np.testing.assert_array_equal(again.proba[fold.held_out], found.proba[fold.held_out])
    others = folds[1].held_out
    assert not np.allclose(again.expression[others], found.expression[others], atol=1e-2)
    assert not np.allclose(again.proba[others], found.proba[others], atol=1e-2)


def test_levels_of_slides_are_taken_out():
    data, new = training_data(), training_data(seed=1)
    shift = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    shift -= shift.mean(axis=0)  # the mean over slides stays
    one, other = Kernel(), Kernel()
    one.fit_parts(data)
    other.fit_parts(replace(data, target=data.target + shift[data.slide]))
    np.testing.assert_allclose(other.predict_expression(new), one.predict_expression(new), atol=1e-4)


def test_spots_without_counts_or_label_are_not_used():
    data = training_data()
    measured, known = np.arange(90) % 3 > 0, np.arange(90) % 5 > 0
    target = np.where(measured[:, None], data.target, 1e6).astype(np.float32)
    label = np.where(known, data.label, -1)
    one, other = Kernel(), Kernel()
    one.fit_parts(replace(data, depth=data.depth * measured, label=label))
    other.fit_parts(replace(data, depth=data.depth * measured, label=label, target=target))
    assert one.expression is not None
    assert len(one.expression.arrays["landmarks"]) == measured.sum()
    assert len(one.classes.arrays["landmarks"]) == known.sum()
    np.testing.assert_array_equal(one.predict_expression(data), other.predict_expression(data))


@pytest.mark.parametrize("kind", ["three", "one class", "one spot", "constant"])
def test_probabilities(kind):
    data = training_data(n_classes=3)
    if kind == "one class":
        data = replace(data, label=np.where(data.label == 1, 1, -1))
    elif kind == "one spot":
        data = replace(data, label=np.where(np.arange(90) == 4, 1, -1), depth=data.depth * (np.arange(90) == 4))
    elif kind == "constant":
        data = replace(data, design=np.full_like(data.design, 3))
    method = Kernel()
    method.fit_parts(data)
    proba, expression = method.predict_proba(data), method.predict_expression(data)
    assert (proba > 0).all()
    assert np.isfinite(expression).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-6)
    if kind in ("one class", "one spot"):
        assert (proba[:, 1] > 0.99).all()
    if kind == "one spot":
        np.testing.assert_allclose(expression, np.tile(data.target[4], (90, 1)), atol=1e-5)
    if kind == "constant":
        np.testing.assert_allclose(proba, 1 / 3, atol=1e-5)
        np.testing.assert_allclose(expression, np.tile(data.slide_means()[0], (90, 1)), atol=1e-4)
    if kind == "three":
        assert (proba.argmax(axis=1) == data.label).mean() > 0.8


@pytest.mark.parametrize("missing", ["nothing", "counts", "labels"])
def test_saved_and_read_again(tmp_path, missing):
    data, new = training_data(n_classes=3), training_data(seed=1)
    if missing == "counts":
        data = replace(data, depth=np.zeros(90))
    if missing == "labels":
        data = replace(data, label=np.full(90, -1))
    method = Kernel()
    method.fit(data, inner_folds(data))
    write_state(tmp_path, method.state())
    again = Kernel()
    again.restore(read_state(tmp_path))
    assert (again.penalty, again.class_penalty) == (method.penalty, method.class_penalty)
    for name, absent in (("predict_expression", "counts"), ("predict_proba", "labels")):
        if missing == absent:
            with pytest.raises(ValueError, match=f"without {absent}"):
                getattr(again, name)(new)
        else:
            np.testing.assert_array_equal(getattr(again, name)(new), getattr(method, name)(new))

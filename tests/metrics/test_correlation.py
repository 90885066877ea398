from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr

from stcontrast.metrics import gene_correlation, mean_slide_correlation, rmse, variance_ratio


def expression(n: int = 30, n_genes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    observed = rng.normal(size=(n, n_genes)).astype(np.float32)
    return (observed + rng.normal(size=observed.shape)).astype(np.float32), observed


@given(n=st.integers(3, 40), seed=st.integers(0, 99))
def test_correlation_equals_that_of_scipy(n, seed):
    predicted, observed = expression(n, seed=seed)
    expected = [
        pearsonr(p, o).statistic for p, o in zip(predicted.T.astype(float), observed.T.astype(float), strict=True)
    ]
    np.testing.assert_allclose(gene_correlation(predicted, observed), expected, atol=1e-6)
    np.testing.assert_allclose(
        gene_correlation(predicted, observed), np.diag(np.corrcoef(predicted.T, observed.T)[:4, 4:]), atol=1e-5
    )


@given(seed=st.integers(0, 99), gain=st.floats(0.01, 100), offset=st.floats(-100, 100))
def test_correlation_does_not_depend_on_scale_or_offset(seed, gain, offset):
    predicted, observed = expression(seed=seed)
    moved = gain * predicted.astype(np.float64) + offset
    np.testing.assert_allclose(gene_correlation(moved, observed), gene_correlation(predicted, observed), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e5, 1e-9])
def test_constant_prediction_is_zero_and_constant_observation_nan(value):
    predicted, observed = expression()
    predicted[:, 0] = value
    observed[:, 1] = value
    predicted[:, 2] = observed[:, 2] = value
    r = gene_correlation(predicted, observed)
    assert r[0] == 0.0
    assert np.isnan(r[1])
    assert np.isnan(r[2])
    assert 0 < r[3] < 1


@pytest.mark.parametrize("other", [1e6, 1e9])
def test_whether_a_gene_varies_is_judged_on_its_own_values(other):
    """Not on those of a gene that is far better expressed."""
    predicted, observed = expression()
    alone = gene_correlation(predicted, observed)
    predicted[:, 0] *= other
    np.testing.assert_allclose(gene_correlation(predicted, observed), alone, atol=1e-6)


def test_shapes_must_agree():
    predicted, observed = expression()
    with pytest.raises(ValueError, match=r"shape \(30, 4\), `observed` \(30, 3\)"):
        gene_correlation(predicted, observed[:, :3])


def test_rmse():
    predicted, observed = expression()
    expected = [np.sqrt(np.mean((predicted[:, j] - observed[:, j]) ** 2)) for j in range(4)]
    np.testing.assert_allclose(rmse(predicted, observed), expected, rtol=1e-5)


def test_mean_over_slides_not_over_spots():
    predicted, observed = expression(60)
    slide = np.repeat([0, 1], [50, 10])
    expected = [gene_correlation(predicted[slide == code], observed[slide == code]).mean() for code in (0, 1)]
    assert mean_slide_correlation(predicted, observed, slide) == pytest.approx(np.mean(expected))


def test_slides_without_prediction_or_with_two_spots_do_not_count():
    predicted, observed = expression(40)
    slide = np.repeat([0, 1, 2], [20, 18, 2])
    predicted[slide == 1] = np.nan
    expected = gene_correlation(predicted[:20], observed[:20]).mean()
    assert mean_slide_correlation(predicted, observed, slide) == pytest.approx(expected)


def test_nothing_to_score_is_nan():
    predicted, observed = expression(10)
    assert np.isnan(mean_slide_correlation(np.full_like(predicted, np.nan), observed, np.zeros(10, dtype=np.int64)))
    assert np.isnan(mean_slide_correlation(predicted, np.ones_like(observed), np.zeros(10, dtype=np.int64)))


def test_variance_is_compared_gene_by_gene():
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(60, 3)) * np.array([1.0, 5.0, 0.0])
    predicted = rng.normal(size=(60, 3)) * np.array([2.0, 1.0, 1.0])
    found = variance_ratio(predicted.astype(np.float32), observed.astype(np.float32))
    np.testing.assert_allclose(found[:2], predicted.var(axis=0)[:2] / observed.var(axis=0)[:2], rtol=1e-5)
    # nothing to compare with
    assert np.isnan(found[2])


def test_three_spots_of_a_slide_count():
    predicted, observed = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [4.0]])
    found = mean_slide_correlation(predicted, observed, np.zeros(3, dtype=np.int64))
    assert found == pytest.approx(pearsonr(predicted[:, 0], observed[:, 0]).statistic)

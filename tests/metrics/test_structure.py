from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.neighbors import kneighbors_graph

from stcontrast.metrics import gene_rank_correlation, moran_difference, variance_ratio


def values(seed: int, shape: tuple[int, int] = (40, 5)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_rank_correlation_equals_that_of_scipy():
    predicted, observed = np.round(values(0), 1), np.round(values(1), 1)
    expected = [spearmanr(predicted[:, i], observed[:, i]).statistic for i in range(5)]
    np.testing.assert_allclose(gene_rank_correlation(predicted, observed), expected, atol=1e-6)
    np.testing.assert_allclose(gene_rank_correlation(np.exp(predicted), observed), expected, atol=1e-6)
    constant = np.ones((40, 5))
    np.testing.assert_array_equal(gene_rank_correlation(constant, observed), 0)
    assert np.isnan(gene_rank_correlation(predicted, constant)).all()


def test_the_ratio_of_variances():
    observed = values(0)
    np.testing.assert_allclose(variance_ratio(0.5 * observed + 3, observed), 0.25)
    np.testing.assert_array_equal(variance_ratio(np.zeros((40, 5)), observed), 0)
    assert np.isnan(variance_ratio(observed, np.ones((40, 5)))).all()


def moran(of_gene: np.ndarray, xy: np.ndarray) -> float:
    weights = kneighbors_graph(xy, 6).toarray()
    centered = of_gene - of_gene.mean()
    return len(of_gene) / weights.sum() * (weights * np.outer(centered, centered)).sum() / (centered**2).sum()


def test_moran_s_i_by_its_formula():
    xy = np.random.default_rng(3).uniform(size=(40, 2))
    predicted, observed = values(0), values(1)
    expected = [moran(predicted[:, i], xy) - moran(observed[:, i], xy) for i in range(5)]
    np.testing.assert_allclose(moran_difference(predicted, observed, xy), expected, atol=1e-6)


def test_a_smooth_prediction_of_a_noisy_gene_is_above_0():
    xy = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), axis=-1).reshape(-1, 2)
    smooth = np.sin(xy[:, :1] / 3)
    noisy = smooth + np.random.default_rng(0).normal(size=smooth.shape)
    assert moran_difference(smooth, noisy, xy)[0] > 0.3
    assert moran_difference(noisy, noisy, xy)[0] == pytest.approx(0)
    assert np.isnan(moran_difference(np.ones_like(smooth), noisy, xy)[0])


THREADS = """
import numpy as np, torch
from stcontrast.metrics import moran_difference
torch.set_num_threads(1)
values, xy = np.random.default_rng(0).normal(size=(2, 40, 5)), np.random.default_rng(1).uniform(size=(40, 2))
moran_difference(*values, xy)
assert torch.get_num_threads() == 1
"""


@pytest.mark.slow
def test_the_number_of_threads_stays():
    # numba, which computes Moran's I, sets it to the number of cores at its first use
    subprocess.run([sys.executable, "-c", THREADS], check=True)

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from stcontrast.metrics import correlation_ceiling, gene_correlation


def sampled(n_spots: int, rate: np.ndarray, rest: float, seed: int = 0):
    """Counts of genes with these rates over spots of these depths, and depth."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rate)
    return csr_matrix(counts.astype(np.float32)), counts.sum(axis=1) + rng.poisson(rest, n_spots).astype(np.float64)


def test_the_ceiling_is_the_score_of_the_true_rates():
    """A predictor that knows the true rates reaches the ceiling, and not more."""
    rng = np.random.default_rng(1)
    shape = np.exp(rng.normal(size=(1500, 6)) * 0.6)
    rate = shape * np.array([30.0, 10.0, 3.0, 1.0, 0.5, 5.0])
    counts, depth = sampled(1500, rate, 5000.0)
    observed = np.log1p(1e4 * counts.toarray() / depth[:, None])
    truth = np.log1p(1e4 * rate / depth[:, None])
    ceiling = correlation_ceiling(counts, depth)
    np.testing.assert_allclose(ceiling, gene_correlation(truth, observed), atol=0.08)
    # the deeper the gene is sequenced, the higher
    assert (np.diff(ceiling[:5]) < 0).all()


def test_noise_has_a_low_ceiling_and_an_unseen_gene_has_none():
    counts, depth = sampled(400, np.column_stack([np.full(400, 2.0), np.zeros(400)]), 5000.0)
    ceiling = correlation_ceiling(counts, depth)
    assert ceiling[0] < 0.35
    assert np.isnan(ceiling[1])


def test_depth_alone_is_no_signal():
    """Spots that differ only in depth have a low ceiling."""
    rng = np.random.default_rng(2)
    depth = rng.lognormal(8, 1, 600)
    counts, total = sampled(600, 0.02 * depth[:, None], 0.98 * depth)
    # what is left is how the logarithm treats few counts
    assert correlation_ceiling(counts, total)[0] < 0.5


def test_the_seed_decides_the_result():
    counts, depth = sampled(60, np.random.default_rng(0).gamma(2, 2, size=(60, 3)), 500.0)
    np.testing.assert_array_equal(
        correlation_ceiling(counts, depth, seed=3), correlation_ceiling(counts, depth, seed=3)
    )
    assert not np.array_equal(correlation_ceiling(counts, depth, seed=3), correlation_ceiling(counts, depth, seed=4))
    assert correlation_ceiling(counts, depth).max() == pytest.approx(correlation_ceiling(counts, depth).max())


def test_one_split_by_hand():
    """Both halves of the counts, each over the depth of its own half; Spearman-Brown for the whole."""
    rng = np.random.default_rng(5)
    counts = rng.poisson(20, (50, 3))
    total = counts.sum(axis=1) + rng.integers(0, 90, 50)
    draws = np.random.default_rng(7)
    half = draws.binomial(counts, 0.5)
    depth = half.sum(axis=1) + draws.binomial(total - counts.sum(axis=1), 0.5)
    one = np.log1p(1e4 * half / depth[:, None])
    other = np.log1p(1e4 * (counts - half) / (total - depth)[:, None])
    r = np.array([np.corrcoef(one[:, i], other[:, i])[0, 1] for i in range(3)]).clip(0)
    found = correlation_ceiling(csr_matrix(counts.astype(np.float32)), total.astype(np.float64), n_splits=1, seed=7)
    np.testing.assert_allclose(found, np.sqrt(2 * r / (1 + r)), atol=1e-12)


def test_a_gene_that_is_the_whole_library_says_nothing():
    counts = np.random.default_rng(0).poisson(30, (40, 1)).astype(np.float32)
    assert np.isnan(correlation_ceiling(csr_matrix(counts), counts[:, 0].astype(np.float64))).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_gene_that_one_half_lacks_has_no_ceiling(seed):
    counts = np.random.default_rng(0).poisson(30, (40, 2))
    counts[:, 1] = 0
    counts[3, 1] = 1
    found = correlation_ceiling(csr_matrix(counts.astype(np.float32)), counts.sum(axis=1) + 9.0, n_splits=1, seed=seed)
    assert np.isfinite(found[0])
    assert np.isnan(found[1])


def test_five_splits_with_seed_zero_unless_told_otherwise():
    counts, depth = sampled(30, np.random.default_rng(0).gamma(2, 2, size=(30, 2)), 100.0)
    np.testing.assert_array_equal(
        correlation_ceiling(counts, depth), correlation_ceiling(counts, depth, n_splits=5, seed=0)
    )

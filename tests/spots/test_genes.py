from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from stcontrast._data import choose_genes, log_normalize


def simulated(n_spots: int = 60, n_genes: int = 12, seed: int = 0) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    spread = rng.gamma(1.0, 1.0, (n_spots, n_genes)) ** np.linspace(0, 2, n_genes)
    counts = csr_matrix(rng.poisson(3 * spread).astype(np.float32))
    # the library holds more genes than these
    return counts, np.asarray(counts.sum(axis=1)).ravel() + rng.integers(5, 50, n_spots), np.arange(n_spots) % 3


def test_log_normalize_is_log1p_of_counts_per_10000_of_the_full_library() -> None:
    counts = csr_matrix(np.array([[0, 1, 4], [2, 0, 0]], dtype=np.float32))
    expected = np.log([[1, 1 + 1e4 / 50, 1 + 4e4 / 50], [1 + 2e4 / 8, 1, 1]])
    found = log_normalize(counts, np.array([50.0, 8.0]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_an_empty_spot_is_all_zero() -> None:
    assert (log_normalize(csr_matrix((1, 4), dtype=np.float32), np.zeros(1)) == 0).all()


@given(st.integers(0, 50), st.integers(2, 9))
def test_depth_cancels(seed: int, factor: int) -> None:
    counts, total, _ = simulated(seed=seed)
    np.testing.assert_allclose(
        log_normalize(counts * factor, total * factor), log_normalize(counts, total), rtol=1e-5, atol=1e-6
    )


def test_genes_are_ranked_by_variance_within_slides() -> None:
    counts, total, slide = simulated()
    expression = np.log1p(counts.toarray() * (1e4 / total[:, None]))
    within = np.array([np.mean([expression[slide == s, g].var() for s in range(3)]) for g in range(12)])
    assert list(choose_genes(counts, total, slide, n_genes=5)) == list(np.argsort(-within)[:5])


def test_a_difference_between_slides_is_no_variation() -> None:
    rng = np.random.default_rng(0)
    slide = np.repeat([0, 1], 40)
    batch = np.where(slide == 0, 2, 90)[:, None]
    counts = csr_matrix(np.hstack([batch, rng.poisson(20, (80, 1))]).astype(np.float32))
    total = np.full(80, 1000.0)
    assert list(choose_genes(counts, total, slide, n_genes=1)) == [1]
    # in one slide it would be
    assert list(choose_genes(counts, total, np.zeros(80, dtype=int), n_genes=1)) == [0]


@given(st.integers(0, 1000))
def test_order_of_spots_and_genes_does_not_matter(seed: int) -> None:
    counts, total, slide = simulated(seed=seed)
    rng = np.random.default_rng(seed)
    spots, genes = rng.permutation(60), rng.permutation(12)
    chosen = choose_genes(counts, total, slide, n_genes=6)
    assert list(choose_genes(counts[spots], total[spots], slide[spots], n_genes=6)) == list(chosen)
    assert list(genes[choose_genes(counts[:, genes], total, slide, n_genes=6)]) == list(chosen)


@pytest.mark.parametrize("n", range(10, 101, 10))
def test_a_gene_at_the_threshold_is_well_expressed(n: int) -> None:
    seen = np.arange(n)[:, None] < [n // 10, n // 10 - 1]
    counts = csr_matrix(seen.astype(np.float32))
    assert list(choose_genes(counts, np.full(n, 10.0), np.zeros(n, dtype=int), n_genes=2, min_fraction=0.1)) == [0]


def test_flat_and_absent_genes_are_never_chosen() -> None:
    counts = csr_matrix(np.array([[1, 0, 3], [1, 0, 1], [1, 0, 2]], dtype=np.float32))
    assert list(choose_genes(counts, np.full(3, 10.0), np.zeros(3, dtype=int), n_genes=3)) == [2]
    nothing = choose_genes(csr_matrix((3, 3)), np.ones(3), np.zeros(3, dtype=int), n_genes=3)
    assert len(nothing) == 0


def test_ties_go_to_the_first_gene() -> None:
    counts = csr_matrix(np.array([[1, 1, 1], [3, 3, 3]], dtype=np.float32))
    assert list(choose_genes(counts, np.full(2, 9.0), np.zeros(2, dtype=int), n_genes=2)) == [0, 1]

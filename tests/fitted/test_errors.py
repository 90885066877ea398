from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stcontrast.fitted import _calibration
from stcontrast.fitted._calibration import error_factors


def moments(kept: np.ndarray) -> np.ndarray:
    kept = kept.astype(np.float64)
    return kept[:, :-1] @ kept[:, :-1].T + np.diag(kept[:, -1] ** 2)


def kept_of(errors: np.ndarray) -> np.ndarray:
    return error_factors(errors.astype(np.float32).__getitem__, np.arange(len(errors)), errors.shape[1])


@given(n=st.integers(1, 40), n_genes=st.integers(1, 16), seed=st.integers(0, 99))
def test_few_genes_are_exact(n, n_genes, seed):
    errors = np.random.default_rng(seed).normal(0.3, size=(n, n_genes)) * np.arange(1, n_genes + 1)
    np.testing.assert_allclose(moments(kept_of(errors)), errors.T @ errors / n, rtol=1e-3, atol=1e-3 * n_genes**2)


@pytest.mark.parametrize("values_at_once", [2**22, 500], ids=["at once", "in parts"])
def test_errors_of_few_dimensions_are_exact_for_many_genes(monkeypatch, values_at_once):
    monkeypatch.setattr(_calibration, "VALUES_AT_ONCE", values_at_once)
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 120))
    kept = kept_of(errors)
    assert kept.shape == (120, 17)
    np.testing.assert_allclose(moments(kept), errors.T @ errors / 200, atol=2e-3)


def test_independent_errors_are_a_rest_of_each_gene():
    errors = np.random.default_rng(0).normal(size=(4000, 200))
    kept = kept_of(errors)
    np.testing.assert_allclose(np.diag(moments(kept)), (errors**2).mean(axis=0), rtol=1e-4)
    weights = np.full(200, 1 / 200)
    assert weights @ moments(kept) @ weights == pytest.approx(1 / 200, rel=0.1)


def test_the_order_of_genes_and_rows_does_not_matter():
    rng = np.random.default_rng(1)
    errors = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 40)) + rng.normal(size=(60, 40))
    genes, rows = rng.permutation(40), rng.permutation(60)
    shuffled = moments(kept_of(errors[rows][:, genes]))
    difference = shuffled - moments(kept_of(errors))[np.ix_(genes, genes)]
    # the factors of noise are found roughly
    assert np.abs(difference).max() < 0.05


def test_a_gene_without_errors():
    errors = np.random.default_rng(0).normal(size=(30, 4))
    errors[:, 2] = 0
    kept = kept_of(errors)
    assert (kept[2] == 0).all()
    assert np.isfinite(kept).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_look_at(shape):
    assert kept_of(np.zeros(shape)).shape == (0, 0)

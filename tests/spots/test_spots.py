from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from stcontrast._data.folds import inner_folds
from stcontrast._data.spots import Held, Spots
from tests.methods.synthetic import training_data


def test_take_keeps_rows_together():
    data = training_data()
    rows = np.array([5, 40, 2])
    part = data.take(rows)
    np.testing.assert_array_equal(part.design, data.design[rows])
    np.testing.assert_array_equal(part.counts.toarray(), data.counts.toarray()[rows])
    np.testing.assert_array_equal(part.label, data.label[rows])
    assert part.n_classes == data.n_classes


def test_slides_count_alike_in_the_mean():
    data = training_data(donors=2)
    measured = np.arange(60) < 40  # 30 spots of the first slide, 10 of the second
    target = np.where(measured[:, None], data.target, 0)
    mean, of_spot = replace(data, depth=data.depth * measured, target=target).slide_means()
    first, second = data.target[:30].mean(axis=0), data.target[30:40].mean(axis=0)
    np.testing.assert_allclose(mean, (first + second) / 2, rtol=1e-5)
    np.testing.assert_allclose(of_spot[3], first, rtol=1e-5)
    np.testing.assert_allclose(of_spot[35], second, rtol=1e-5)
    np.testing.assert_array_equal(of_spot[40:], 0)


def test_nothing_is_held_out_yet():
    held = Held.empty(training_data())
    assert held.expression.shape == (90, 5)
    assert held.proba.shape == (90, 2)
    assert np.isnan(held.expression).all()


def centered(data: Spots) -> np.ndarray:
    """Expression of the measured spots, centred within the slide."""
    values = data.target[data.measured].astype(np.float64)
    slide = data.slide[data.measured]
    for code in np.unique(slide):
        values[slide == code] -= values[slide == code].mean(axis=0)
    return values


def partly_measured(**kwargs) -> Spots:
    """Some spots without counts, whose targets are any number."""
    data = training_data(**kwargs)
    measured = np.arange(len(data.design)) % 4 > 0
    target = np.where(measured[:, None], data.target, 777).astype(np.float32)
    return replace(data, depth=data.depth * measured, target=target, observed=target)


@pytest.mark.parametrize("sizes", [{}, {"n_genes": 120, "n_spots": 80}, {"n_genes": 40, "n_spots": 4}])
@pytest.mark.parametrize("k", [1, 3])
def test_denoised_is_the_projection_onto_principal_components(sizes, k):
    data = partly_measured(**sizes)
    rows = data.measured
    values = centered(data)
    scale = values.std(axis=0)
    scale[scale == 0] = 1
    left, singular, right = np.linalg.svd(values / scale, full_matrices=False)
    expected = (left[:, :k] * singular[:k]) @ right[:k] * scale + data.target[rows] - values
    denoised = replace(data, n_components=k).denoised()
    np.testing.assert_allclose(denoised.target[rows], expected, atol=1e-4)
    np.testing.assert_array_equal(denoised.target[~rows], 777)
    np.testing.assert_array_equal(denoised.observed, data.observed)
    assert denoised.target.dtype == np.float32
    # by another way: the values on the eigenvectors of the correlations between genes
    vectors = np.linalg.eigh((values / scale).T @ (values / scale))[1][:, -k:]
    np.testing.assert_allclose(centered(denoised), values / scale @ vectors @ vectors.T * scale, atol=1e-4)


def test_without_components_nothing_is_denoised():
    data = training_data()
    assert data.denoised() is data
    bare = replace(data, n_components=3, depth=np.zeros(90))
    assert bare.denoised() is bare


@given(seed=st.integers(0, 10_000), k=st.integers(1, 6))
def test_slide_means_stay_and_all_components_give_the_target_back(seed, k):
    data = partly_measured(seed=seed, n_spots=12)
    denoised = replace(data, n_components=k).denoised()
    for one, other in zip(denoised.slide_means(), data.slide_means(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    if k >= 5:
        np.testing.assert_allclose(denoised.target, data.target, atol=1e-5)
    else:
        assert not np.allclose(denoised.target, data.target, atol=1e-3)
    assert np.linalg.matrix_rank(centered(denoised), tol=1e-3) <= k
    # a projection takes variance away from every gene and gives none
    assert (centered(denoised).std(axis=0) <= centered(data).std(axis=0) + 1e-5).all()


@given(seed=st.integers(0, 10_000), k=st.integers(1, 4))
def test_the_order_of_genes_and_spots_and_the_units_of_genes_do_not_matter(seed, k):
    data = replace(partly_measured(seed=seed, n_spots=12), n_components=k)
    target = data.denoised().target
    rng = np.random.default_rng(seed)
    genes, spots = rng.permutation(5), rng.permutation(36)
    np.testing.assert_allclose(
        replace(data, target=data.target[:, genes]).denoised().target, target[:, genes], atol=1e-3
    )
    np.testing.assert_allclose(data.take(spots).denoised().target, target[spots], atol=1e-3)
    units = np.float32([1, 10, 0.1, 3, 0.5])
    scaled = replace(data, target=data.target * units).denoised().target
    np.testing.assert_allclose(scaled / units, target, atol=1e-2)
    level = rng.normal(size=(3, 5)).astype(np.float32)[data.slide] * data.measured[:, None]
    np.testing.assert_allclose(replace(data, target=data.target + level).denoised().target, target + level, atol=1e-3)


def test_genes_that_never_vary_and_a_single_spot_stay_as_they_are():
    data = training_data()
    target = data.target.copy()
    target[:, 1] = 0
    denoised = replace(data, target=target, n_components=2).denoised().target
    np.testing.assert_array_equal(denoised[:, 1], 0)
    assert np.isfinite(denoised).all()
    alone = replace(data, depth=data.depth * (np.arange(90) == 4), n_components=2).denoised()
    np.testing.assert_allclose(alone.target, data.target, atol=1e-6)


def test_noise_is_taken_out():
    """One hidden programme drives all genes: its component is closer to the truth than what was measured."""
    rng = np.random.default_rng(0)
    data = training_data(n_genes=60, n_spots=60)
    truth = (rng.normal(size=(180, 1)) * rng.uniform(0.5, 1, (1, 60))).astype(np.float32)
    noisy = truth + rng.normal(size=truth.shape).astype(np.float32)
    found = replace(data, target=noisy, n_components=1).denoised().target
    assert ((found - truth) ** 2).mean() < 0.1 * ((noisy - truth) ** 2).mean()


class Smoother:
    """Completes quickly, and by all spots that it is shown."""

    def fit(self, *spots: np.ndarray) -> Smoother:
        self.mean = spots[0].mean(axis=0)
        return self

    def complete(self, *spots: np.ndarray) -> np.ndarray:
        return 0.8 * spots[0] + 0.2 * self.mean


@pytest.mark.parametrize("complete", [False, True])
def test_held_out_spots_have_no_part_in_the_components_and_keep_what_was_measured(complete, monkeypatch):
    monkeypatch.setattr("stcontrast.pp._completion.Completer", Smoother)
    data = replace(training_data(n_genes=8), n_components=2, complete=complete)
    fold = inner_folds(data)[1]
    wild = data.observed.copy()
    wild[fold.held_out] = 50 * np.random.default_rng(1).random(wild[fold.held_out].shape)
    counts = data.counts.toarray()
    counts[fold.held_out] = np.random.default_rng(2).poisson(300, size=counts[fold.held_out].shape)
    other = replace(data, target=wild, observed=wild, counts=sparse.csr_matrix(counts))
    train = data.training(fold)
    np.testing.assert_array_equal(other.training(fold).target, train.target)
    np.testing.assert_array_equal(train.target, data.take(fold.train).completed().denoised().target)
    assert not np.allclose(train.target, data.observed[fold.train], atol=1e-2)
    both = other.training(fold, with_held_out=True)
    rows = np.union1d(fold.train, fold.held_out)
    is_held = np.isin(rows, fold.held_out)
    np.testing.assert_array_equal(both.target[~is_held], train.target)
    np.testing.assert_array_equal(both.target[is_held], wild[fold.held_out])
    np.testing.assert_array_equal(both.observed, wild[rows])

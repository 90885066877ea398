from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from stcontrast._data.design import MAX_RANGED
from stcontrast._data.folds import inner_folds
from stcontrast._data.spots import Prediction, Spots
from stcontrast.methods._targets import completed, denoised
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


def test_an_empty_prediction_knows_nothing():
    nothing = Prediction.empty(90, n_genes=5, n_classes=2)
    assert nothing.expression.shape == nothing.lower.shape == nothing.upper.shape == (90, 5)
    assert nothing.proba.shape == (90, 2)
    assert np.isnan(nothing.expression).all()
    assert np.isnan(nothing.proba).all()
    assert np.isinf(nothing.half_width).all()


def test_the_interval_lies_around_the_prediction_and_not_below_0():
    prediction = Prediction.empty(2, n_genes=2, n_classes=0)
    prediction.expression = np.float32([[1, 5], [2, 0]])
    prediction.half_width = np.float32([1.5, 2])
    np.testing.assert_array_equal(prediction.lower, [[0, 3], [0.5, 0]])
    np.testing.assert_array_equal(prediction.upper, [[2.5, 7], [3.5, 2]])


def test_unseen_spots_have_nothing_that_was_measured_or_annotated():
    data = training_data()
    unseen = data.unseen()
    for name in ("slide", "xy", "features", "design"):
        np.testing.assert_array_equal(getattr(unseen, name), getattr(data, name))
    assert unseen.counts.shape == unseen.observed.shape == unseen.target.shape == (90, 0)
    assert not unseen.depth.any()
    assert not unseen.has_counts
    assert not unseen.has_labels
    assert (unseen.genes, unseen.classes) == ((), ())
    oracle = data.unseen(depth=True)
    np.testing.assert_array_equal(oracle.depth, data.depth)
    assert oracle.counts.shape == (90, 0)
    assert not oracle.has_labels


@given(
    blocks=st.lists(st.integers(1, 9) | st.integers(MAX_RANGED, MAX_RANGED + 3), min_size=2, max_size=5),
    n_neighbors=st.sampled_from([0, 6]),
)  # fmt: skip
def test_blocks_have_the_same_weight(blocks, n_neighbors):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, sum(blocks))).astype(np.float32)
    data = Spots.of(np.zeros(4, dtype=np.int64), rng.uniform(size=(4, 2)), features=features, blocks=blocks)
    data = data.with_design(n_neighbors=n_neighbors, standardize="none")
    squares = data.column_weights.astype(np.float64) ** 2
    assert data.column_weights.dtype == np.float32
    assert squares.shape == (data.design.shape[1],)
    np.testing.assert_allclose(squares.mean(), 1, rtol=1e-5)
    # which block a column is of, told by what is in it: one block alone is not constant
    widths = []
    for i, stop in enumerate(np.cumsum(blocks)):
        alone = np.zeros_like(features)
        alone[:, stop - blocks[i] : stop] = features[:, stop - blocks[i] : stop]
        of_block = (
            replace(data, features=alone).with_design(n_neighbors=n_neighbors, standardize="none").design.any(axis=0)
        )
        widths.append(of_block.sum())
        np.testing.assert_allclose(squares[of_block].sum(), len(squares) / len(blocks), rtol=1e-4)
        times = 1 if not n_neighbors else 4 if blocks[i] <= MAX_RANGED else 2
        assert widths[-1] == times * blocks[i]
    assert sum(widths) == len(squares)


@pytest.mark.parametrize("blocks", [(), (3,)])
def test_one_block_has_no_weights(blocks):
    data = replace(training_data(n_design=3), blocks=blocks)
    np.testing.assert_array_equal(data.column_weights, np.ones(3, dtype=np.float32))
    designed = data.with_design(n_neighbors=6, standardize="slide")
    np.testing.assert_array_equal(designed.column_weights, np.ones(12, dtype=np.float32))
    assert replace(data, design=data.design[:, :0]).column_weights.shape == (0,)


def test_closed_form_of_the_weights():
    data = replace(training_data(n_design=6), blocks=(1, 5)).with_design(n_neighbors=0, standardize="none")
    np.testing.assert_allclose(data.column_weights, np.sqrt([3, *[0.6] * 5]), rtol=1e-6)


def test_parts_of_the_spots_keep_their_blocks():
    data = replace(training_data(n_design=6), blocks=(2, 4))
    for part in (data.take(np.arange(5)), data.unseen(), data.with_genes(np.array([0])), data.with_classes(["class1"])):
        assert part.blocks == (2, 4)
        np.testing.assert_array_equal(part.column_weights, data.column_weights)


def test_labels_among_other_classes():
    data = training_data(n_classes=3)
    other = data.with_classes(["class2", "new", "class0"])
    expected = np.array([2, -1, 0])[data.label]
    np.testing.assert_array_equal(other.label, expected)
    assert other.n_classes == 3
    assert other.known_classes == ["class0", "class2"]
    without = replace(data, label=np.where(np.arange(90) % 2, data.label, -1)).with_classes(["class1"])
    np.testing.assert_array_equal(without.label >= 0, (np.arange(90) % 2 > 0) & (data.label == 1))


def test_some_genes_are_normalised_by_the_full_library():
    data = training_data()
    part = data.with_genes(np.array([3, 1]))
    assert part.genes == ["gene3", "gene1"]
    counts = data.counts.toarray()[:, [3, 1]]
    np.testing.assert_array_equal(part.counts.toarray(), counts)
    expected = np.log1p(1e4 * counts / data.depth[:, None])
    np.testing.assert_allclose(part.observed, expected, rtol=1e-5)
    np.testing.assert_array_equal(part.target, part.observed)


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
    found = denoised(data, k)
    np.testing.assert_allclose(found.target[rows], expected, atol=1e-4)
    np.testing.assert_array_equal(found.target[~rows], 777)
    np.testing.assert_array_equal(found.observed, data.observed)
    assert found.target.dtype == np.float32
    # by another way: the values on the eigenvectors of the correlations between genes
    vectors = np.linalg.eigh((values / scale).T @ (values / scale))[1][:, -k:]
    np.testing.assert_allclose(centered(found), values / scale @ vectors @ vectors.T * scale, atol=1e-4)


def test_without_components_nothing_is_denoised():
    data = training_data()
    assert denoised(data, 0) is data
    bare = replace(data, depth=np.zeros(90))
    assert denoised(bare, 3) is bare


@given(seed=st.integers(0, 10_000), k=st.integers(1, 6))
def test_slide_means_stay_and_all_components_give_the_target_back(seed, k):
    data = partly_measured(seed=seed, n_spots=12)
    found = denoised(data, k)
    for one, other in zip(found.slide_means(), data.slide_means(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    if k >= 5:
        np.testing.assert_allclose(found.target, data.target, atol=1e-5)
    else:
        assert not np.allclose(found.target, data.target, atol=1e-3)
    assert np.linalg.matrix_rank(centered(found), tol=1e-3) <= k
    # a projection takes variance away from every gene and gives none
    assert (centered(found).std(axis=0) <= centered(data).std(axis=0) + 1e-5).all()


@given(seed=st.integers(0, 10_000), k=st.integers(1, 4))
def test_the_order_of_genes_and_spots_and_the_units_of_genes_do_not_matter(seed, k):
    data = partly_measured(seed=seed, n_spots=12)
    target = denoised(data, k).target
    rng = np.random.default_rng(seed)
    genes, spots = rng.permutation(5), rng.permutation(36)
    moved = denoised(replace(data, target=data.target[:, genes]), k)
    np.testing.assert_allclose(moved.target, target[:, genes], atol=1e-3)
    np.testing.assert_allclose(denoised(data.take(spots), k).target, target[spots], atol=1e-3)
    units = np.float32([1, 10, 0.1, 3, 0.5])
    scaled = denoised(replace(data, target=data.target * units), k).target
    np.testing.assert_allclose(scaled / units, target, atol=1e-2)
    level = rng.normal(size=(3, 5)).astype(np.float32)[data.slide] * data.measured[:, None]
    shifted = denoised(replace(data, target=data.target + level), k)
    np.testing.assert_allclose(shifted.target, target + level, atol=1e-3)


def test_genes_that_never_vary_and_a_single_spot_stay_as_they_are():
    data = training_data()
    target = data.target.copy()
    target[:, 1] = 0
    found = denoised(replace(data, target=target), 2).target
    np.testing.assert_array_equal(found[:, 1], 0)
    assert np.isfinite(found).all()
    alone = denoised(replace(data, depth=data.depth * (np.arange(90) == 4)), 2)
    np.testing.assert_allclose(alone.target, data.target, atol=1e-6)


def test_noise_is_taken_out():
    """One hidden programme drives all genes: its component is closer to the truth than the measurement."""
    rng = np.random.default_rng(0)
    data = training_data(n_genes=60, n_spots=60)
    truth = (rng.normal(size=(180, 1)) * rng.uniform(0.5, 1, (1, 60))).astype(np.float32)
    noisy = truth + rng.normal(size=truth.shape).astype(np.float32)
    found = denoised(replace(data, target=noisy), 1).target
    assert ((found - truth) ** 2).mean() < 0.1 * ((noisy - truth) ** 2).mean()


class Smoother:
    """A quick stand-in that completes with the mean of all spots it is given."""

    def fit(self, *spots: np.ndarray) -> Smoother:
        self.mean = spots[0].mean(axis=0)
        return self

    def complete(self, *spots: np.ndarray) -> np.ndarray:
        return 0.8 * spots[0] + 0.2 * self.mean


@pytest.mark.parametrize("complete", [False, True])
def test_held_out_spots_have_no_part_in_the_components_and_keep_what_was_measured(complete, monkeypatch):
    monkeypatch.setattr("stcontrast.pp._completion.Completer", Smoother)

    def make(spots: Spots) -> Spots:
        return denoised(completed(spots) if complete else spots, 2)

    data = training_data(n_genes=8)
    fold = inner_folds(data)[1]
    wild = data.observed.copy()
    wild[fold.held_out] = 50 * np.random.default_rng(1).random(wild[fold.held_out].shape)
    counts = data.counts.toarray()
    counts[fold.held_out] = np.random.default_rng(2).poisson(300, size=counts[fold.held_out].shape)
    other = replace(data, target=wild, observed=wild, counts=sparse.csr_matrix(counts))
    train = fold.with_targets(make).training
    changed = inner_folds(other)[1].with_targets(make)
    np.testing.assert_array_equal(changed.training.target, train.target)
    np.testing.assert_array_equal(train.target, make(data.take(fold.train)).target)
    assert not np.allclose(train.target, data.observed[fold.train], atol=1e-2)
    both, rows = changed.together()
    is_held_out = np.isin(np.arange(len(both)), rows)
    np.testing.assert_array_equal(both.target[~is_held_out], train.target)
    np.testing.assert_array_equal(both.target[is_held_out], wild[fold.held_out])
    np.testing.assert_array_equal(both.observed, wild[np.union1d(fold.train, fold.held_out)])

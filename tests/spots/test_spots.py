from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from stcontrast._data import MAX_RANGED, inner_folds
from stcontrast.fitted._fit import completed
from stcontrast.methods import Prediction, Spots
from tests.methods.synthetic import training_data, with_gene_side


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


class Smoother:
    """A quick stand-in that completes with the mean of all spots it is given."""

    def fit(self, *spots: np.ndarray) -> Smoother:
        self.mean = spots[0].mean(axis=0)
        return self

    def complete(self, *spots: np.ndarray) -> np.ndarray:
        return 0.8 * spots[0] + 0.2 * self.mean


def test_held_out_spots_have_no_part_in_completed_targets_and_keep_what_was_measured(monkeypatch):
    monkeypatch.setattr("stcontrast.pp._completion.Completer", Smoother)
    data = training_data(n_genes=8)
    fold = inner_folds(data)[1]
    wild = data.observed.copy()
    wild[fold.held_out] = 50 * np.random.default_rng(1).random(wild[fold.held_out].shape)
    counts = data.counts.toarray()
    counts[fold.held_out] = np.random.default_rng(2).poisson(300, size=counts[fold.held_out].shape)
    other = replace(data, target=wild, observed=wild, counts=sparse.csr_matrix(counts))
    train = fold.with_targets(completed).training
    changed = inner_folds(other)[1].with_targets(completed)
    np.testing.assert_array_equal(changed.training.target, train.target)
    np.testing.assert_array_equal(train.target, completed(data.take(fold.train)).target)
    assert not np.allclose(train.target, data.observed[fold.train], atol=1e-2)
    np.testing.assert_array_equal(changed.spots.target[fold.held_out], wild[fold.held_out])
    np.testing.assert_array_equal(changed.spots.observed, wild)


def test_without_counts_nothing_is_completed():
    bare = replace(training_data(), depth=np.zeros(90))
    assert completed(bare) is bare


def two_sides() -> Spots:
    """Donors 0 to 2 with two slides each; on the gene side a slide of donor 0 and both of donor 2."""
    data = training_data(donors=3, slides=2, n_spots=10, n_classes=3)
    data = replace(data, label=np.where(np.arange(60) % 4, data.label, -1))
    return with_gene_side(data, 1, 4, 5)


def test_all_spots_with_counts_have_an_image_or_not():
    spots = two_sides()
    measured = np.arange(30) % 5 > 0
    spots = replace(spots, depth=spots.depth * measured)
    gene_side = spots.gene_side
    both = spots.with_counts()
    assert both.gene_side is None
    assert len(both) == measured.sum() + 30
    for name in ("name", "donor", "batch", "depth", "observed", "target", "label", "xy"):
        expected = np.concatenate([getattr(spots, name)[measured], getattr(gene_side, name)])
        np.testing.assert_array_equal(getattr(both, name), expected)
    expected = np.concatenate([spots.counts.toarray()[measured], gene_side.counts.toarray()])
    np.testing.assert_array_equal(both.counts.toarray(), expected)
    assert (list(both.genes), list(both.classes)) == (list(spots.genes), list(spots.classes))
    # a slide of the gene side is no slide with an image, and keeps its name
    of_name = [both.slides[code] for code in both.slide]
    assert of_name == [
        data.slides[code] for data in (spots.take(np.flatnonzero(measured)), gene_side) for code in data.slide
    ]
    assert len(np.unique(both.slide)) == 6
    for code in np.unique(both.slide):
        assert len(set(both.donor[both.slide == code])) == 1


def test_slides_without_names_stay_apart_too():
    spots = two_sides()
    unnamed = replace(spots, slides=(), gene_side=replace(spots.gene_side, slides=(), slide=spots.gene_side.slide * 0))
    assert len(np.unique(unnamed.with_counts().slide)) == 4


def test_without_a_gene_side_they_are_those_that_are_measured():
    data = training_data()
    data = replace(data, depth=data.depth * (np.arange(90) % 2))
    np.testing.assert_array_equal(data.with_counts().name, data.name[data.measured])
    np.testing.assert_array_equal(data.with_counts().design, data.design[data.measured])


def test_donors_leave_the_gene_side():
    spots = two_sides()
    left = spots.without_donors(np.array(["0", "1"]))
    assert set(left.gene_side.donor) == {"2"}
    np.testing.assert_array_equal(left.gene_side.name, spots.gene_side.name[spots.gene_side.donor == "2"])
    np.testing.assert_array_equal(left.name, spots.name)
    assert spots.without_donors(np.array(["2", "0"])).gene_side is None
    np.testing.assert_array_equal(spots.without_donors(np.array(["9"])).gene_side.name, spots.gene_side.name)
    bare = training_data()
    assert bare.without_donors(np.array(["0"])) is bare


def test_genes_and_classes_are_chosen_on_the_gene_side_too():
    spots = two_sides()
    part = spots.with_genes(np.array([3, 1]))
    assert part.gene_side.genes == ["gene3", "gene1"]
    counts = spots.gene_side.counts.toarray()[:, [3, 1]]
    np.testing.assert_array_equal(part.gene_side.counts.toarray(), counts)
    expected = np.log1p(1e4 * counts / spots.gene_side.depth[:, None])
    np.testing.assert_allclose(part.gene_side.target, expected, rtol=1e-5)
    both = spots.with_classes(["class2", "class0"]).with_counts()
    old = np.concatenate([spots.label, spots.gene_side.label])
    np.testing.assert_array_equal(both.label, np.array([1, -1, 0, -1])[old])


def test_what_is_taken_and_what_is_unseen():
    spots = two_sides()
    assert len(spots.take(np.array([3, 1])).gene_side) == 30
    assert spots.unseen().gene_side is None


def test_the_order_of_training_is_by_slide_name_spot_name_and_place():
    xy = np.array([[5.0, 1], [0, 0], [0, 2], [0, 1], [9, 9], [1, 1]])
    spots = Spots.of(
        np.array([1, 0, 1, 1, 0, 0]), xy, name=np.array(["b", "x", "a", "a", "c", "d"]), slides=["second", "first"]
    )
    # slide "first" has the code 1; its two spots of one name are told apart by their place
    assert spots.in_order(np.arange(6)).tolist() == [3, 2, 0, 4, 5, 1]
    assert spots.in_order(np.array([5, 0, 1])).tolist() == [0, 5, 1]
    # without names of slides their codes decide
    assert replace(spots, slides=()).in_order(np.arange(6)).tolist() == [4, 5, 1, 3, 2, 0]


def test_slides_in_order_keep_their_names_also_on_the_gene_side():
    gene_side = Spots.of(np.array([0, 2]), np.zeros((2, 2)), name=np.array(["z", "a"]), slides=["c", "b", "a"])
    spots = Spots.of(np.array([1, 0, 2]), np.zeros((3, 2)), slides=["c", "b", "a"], gene_side=gene_side)
    found = spots.with_slides_in_order()
    assert list(found.slides) == ["a", "b", "c"]
    assert [found.slides[i] for i in found.slide] == ["b", "c", "a"]
    assert found.gene_side is not None
    assert found.gene_side.name.tolist() == ["a", "z"]
    assert [found.gene_side.slides[i] for i in found.gene_side.slide] == ["a", "c"]

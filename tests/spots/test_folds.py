from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stcontrast._data.folds import inner_folds
from tests.methods.synthetic import training_data


@given(
    donors=st.integers(1, 6), slides=st.integers(1, 3), seed=st.integers(0, 9), without=st.floats(0, 0.9),
    labelled=st.floats(0.1, 1),
)  # fmt: skip
def test_held_out_groups_are_nowhere_in_training(donors, slides, seed, without, labelled):
    data = training_data(donors=donors, slides=slides, n_spots=12, seed=seed)
    rng = np.random.default_rng(seed)
    measured = rng.random(len(data.slide)) >= without
    measured[:2] = True
    data = replace(
        data, depth=data.depth * measured, label=np.where(rng.random(len(measured)) < labelled, data.label, -1)
    )
    folds = inner_folds(data)
    together = np.concatenate([fold.held_out for fold in folds])
    assert 2 <= len(folds) <= 4
    assert len(set(together)) == len(together)
    np.testing.assert_array_equal(np.sort(together), np.flatnonzero(measured))
    for fold in folds:
        assert not set(fold.train) & set(fold.held_out)
        if fold.unit in ("donor", "slide"):
            codes = getattr(data, fold.unit)
            assert not set(codes[fold.train]) & set(codes[fold.held_out])


def test_donors_before_slides_before_blocks():
    assert {fold.unit for fold in inner_folds(training_data(donors=2, slides=2))} == {"donor"}
    assert {fold.unit for fold in inner_folds(training_data(donors=1, slides=2))} == {"slide"}
    assert {fold.unit for fold in inner_folds(training_data(donors=1, slides=1))} == {"block"}


def test_donors_are_joined_into_few_folds():
    assert len(inner_folds(training_data(donors=9, n_spots=5))) == 4
    assert len(inner_folds(training_data(donors=9, n_spots=5), max_folds=2)) == 2


def test_labels_of_a_held_out_donor_s_other_slide_are_not_trained_on():
    """Donor 0 has counts on one slide and only labels on the other."""
    data = training_data(donors=2, slides=2)
    data = replace(data, depth=data.depth * (data.slide != 1))
    for fold in inner_folds(data):
        assert len(set(data.donor[fold.train])) == 1
        assert data.measured[fold.held_out].all()


def test_spots_without_counts_of_other_donors_train_always():
    data = training_data(donors=3)
    data = replace(data, depth=data.depth * (data.donor != "2"))
    for fold in inner_folds(data):
        assert set(np.flatnonzero(data.donor == "2")) <= set(fold.train)


def test_labels_alone_are_grouped_too():
    data = training_data(donors=2)
    data = replace(data, depth=np.zeros(60), label=np.where(np.arange(60) % 2, data.label, -1))
    folds = inner_folds(data)
    assert folds[0].unit == "donor"
    assert (data.label[np.concatenate([fold.held_out for fold in folds])] >= 0).all()


def test_blocks_are_patches_of_the_slide(caplog):
    data = training_data(donors=1, n_spots=100)
    folds = inner_folds(data)
    assert len(folds) == 4
    assert "say nothing about another donor" in caplog.text
    spread = data.xy.var(axis=0).sum()
    assert all(data.xy[fold.held_out].var(axis=0).sum() < spread / 2 for fold in folds)


def test_unmeasured_spots_inside_a_held_out_block_are_not_trained_on():
    data = training_data(donors=1, n_spots=200)
    measured = np.arange(200) % 2 == 0
    for fold in inner_folds(replace(data, depth=data.depth * measured)):
        left_out = np.setdiff1d(np.arange(200), np.concatenate([fold.train, fold.held_out]))
        assert len(left_out) > 0
        assert not measured[left_out].any()


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_spots(n):
    data = training_data(donors=1)
    data = replace(data, depth=data.depth * (np.arange(30) < n), label=np.full(30, -1))
    with pytest.raises(ValueError, match="too few to learn from"):
        inner_folds(data)


def test_spots_at_one_place():
    data = replace(training_data(donors=1), xy=np.zeros((30, 2)))
    with pytest.raises(ValueError, match="at one place"):
        inner_folds(data)


def test_a_fold_learns_from_its_training_rows_and_predicts_spots_without_what_was_measured():
    data = training_data()
    for fold in inner_folds(data):
        np.testing.assert_array_equal(fold.training.observed, data.observed[fold.train])
        unseen = fold.unseen()
        np.testing.assert_array_equal(unseen.design, data.design[fold.held_out])
        assert unseen.n_genes == unseen.counts.shape[1] == unseen.observed.shape[1] == unseen.n_classes == 0
        assert not unseen.has_counts
        assert not unseen.has_labels
        np.testing.assert_array_equal(fold.unseen(depth=True).depth, data.depth[fold.held_out])


def test_targets_of_a_fold_are_made_of_its_training_rows_alone():
    data = training_data()
    fold = inner_folds(data)[1]
    seen = []

    def make(spots):
        seen.append(spots)
        return replace(spots, target=spots.target + 1, label=1 - spots.label)

    made = fold.with_targets(make)
    np.testing.assert_array_equal(seen[0].name, data.name[fold.train])
    np.testing.assert_array_equal(made.spots.target[fold.train], data.target[fold.train] + 1)
    np.testing.assert_array_equal(made.spots.label[fold.train], 1 - data.label[fold.train])
    others = np.setdiff1d(np.arange(90), fold.train)
    np.testing.assert_array_equal(made.spots.target[others], data.target[others])
    np.testing.assert_array_equal(made.spots.label[others], data.label[others])
    np.testing.assert_array_equal(made.spots.observed, data.observed)
    np.testing.assert_array_equal(fold.spots.target, data.target)

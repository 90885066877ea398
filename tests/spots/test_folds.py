from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stcontrast._data import inner_folds
from tests.methods.synthetic import training_data, with_gene_side


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


def test_a_held_out_donor_leaves_the_gene_side():
    """Donors 0 to 2 have a slide with an image and one without; donor 3 has none with an image."""
    spots = with_gene_side(training_data(donors=4, slides=2, n_spots=8), 1, 3, 5, 6, 7)
    folds = inner_folds(spots)
    assert len(folds) == 3
    for fold in folds:
        held_out = set(spots.donor[fold.held_out])
        assert set(fold.training.gene_side.donor) == {"0", "1", "2", "3"} - held_out
        assert not set(fold.training.with_counts().donor) & held_out
        assert fold.unseen().gene_side is None
        seen = []
        fold.with_targets(lambda part, seen=seen: (seen.append(part), part)[1])
        assert not set(seen[0].gene_side.donor) & held_out


def test_where_slides_of_one_donor_are_held_out_the_gene_side_stays():
    spots = with_gene_side(training_data(donors=1, slides=3, n_spots=8), 2)
    for fold in inner_folds(spots):
        assert fold.unit == "slide"
        assert len(fold.training.gene_side) == 8


@given(seed=st.integers(0, 99), labelled=st.floats(0.05, 1), of_donors=st.integers(1, 4))
def test_folds_over_annotated_spots(seed, labelled, of_donors):
    data = training_data(donors=4, slides=2, n_spots=10, seed=seed)
    rng = np.random.default_rng(seed)
    known = (rng.random(80) < labelled) & (data.donor.astype(int) < of_donors)
    known[[0, 9]] = True
    data = replace(data, label=np.where(known, data.label, -1), depth=data.depth * (rng.random(80) < 0.5))
    folds = inner_folds(data, of="labels")
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.held_out for fold in folds])), np.flatnonzero(known))
    n_donors = len(set(data.donor[known]))
    n_slides = len(set(data.slide[known]))
    assert {fold.unit for fold in folds} == {"donor" if n_donors > 1 else "slide" if n_slides > 1 else "block"}
    for fold in folds:
        assert not set(fold.train) & set(fold.held_out)
        group = {"donor": data.donor, "slide": data.slide}.get(fold.unit)
        if group is not None:
            assert not set(group[fold.train]) & set(group[fold.held_out])


def test_labels_decide_about_folds_over_annotated_spots_alone():
    """Counts of three donors, labels of one: donors can be held out for expression, slides for subtypes."""
    data = training_data(donors=3, slides=2)
    data = replace(data, label=np.where(data.donor == "1", data.label, -1))
    assert {fold.unit for fold in inner_folds(data)} == {"donor"}
    by_label = inner_folds(data, of="labels")
    assert {fold.unit for fold in by_label} == {"slide"}
    assert all(fold.has_labels for fold in by_label)
    for fold in by_label:
        assert {"0", "2"} <= set(data.donor[fold.train])
    with pytest.raises(ValueError, match="too few to learn from"):
        inner_folds(replace(data, label=np.full(len(data), -1)), of="labels")

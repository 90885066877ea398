from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import stcontrast as stc
from stcontrast._data.folds import inner_folds
from stcontrast.fitted._disk import read_state, write_state
from stcontrast.methods._linear import LinearClassifier
from stcontrast.methods._targets import pseudo_labels, self_training_helps
from tests.methods.synthetic import training_data


def two_clouds(*, share=0.1, gap=1.4, seed=0):
    """Two classes that differ a little in each of several features; few spots of each donor are annotated."""
    rng = np.random.default_rng(seed)
    data = training_data(n_spots=120)
    truth = rng.integers(0, 2, len(data.slide))
    design = rng.normal(size=(len(truth), 30)).astype(np.float32)
    design[:, :8] += np.float32(gap) * truth[:, None]
    known = rng.random(len(truth)) < share
    known[:2], truth[:2] = True, (0, 1)
    return replace(data, design=design, label=np.where(known, truth, -1), n_classes=2), truth


def test_labels_given_stay_and_the_others_are_filled():
    data, truth = two_clouds()
    label = pseudo_labels(data)
    known = data.label >= 0
    np.testing.assert_array_equal(label[known], data.label[known])
    assert set(label) == {0, 1}
    assert (label == truth).mean() > 0.9


def test_nothing_to_learn_from_is_left_alone():
    data = training_data()
    none = replace(data, label=np.full(len(data.label), -1))
    assert (pseudo_labels(none) == -1).all()
    everything = replace(data, label=np.zeros(len(data.label), dtype=np.int64))
    np.testing.assert_array_equal(pseudo_labels(everything), everything.label)


def test_unlabelled_spots_make_a_better_classifier():
    """Averaged over draws: a boundary from few spots, and from these and many that nobody annotated."""
    gain = []
    for seed in range(8):
        data, truth = two_clouds(share=0.06, seed=seed)
        plain, helped = (
            LinearClassifier("discriminant").fit(data.design, replace(data, label=label))
            for label in (data.label, pseudo_labels(data))
        )
        right = [(part.predict_proba(data.design).argmax(axis=1) == truth).mean() for part in (plain, helped)]
        gain.append(right[1] - right[0])
    assert np.mean(gain) > 0.02


def test_it_is_left_out_where_all_is_labelled_or_labels_say_nothing():
    data, _ = two_clouds(share=2.0)
    folds = inner_folds(data)
    assert not self_training_helps(data, folds)
    assert not self_training_helps(data, [])
    rng = np.random.default_rng(1)
    noise = replace(data, label=np.where(rng.random(len(data.label)) < 0.3, rng.integers(0, 2, len(data.label)), -1))
    assert not self_training_helps(noise, folds)


def test_held_out_labels_are_neither_seen_nor_replaced():
    data, _ = two_clouds()
    fold = inner_folds(data)[0]
    asked = replace(data, self_training=True)
    other = asked.label.copy()
    other[fold.held_out] = np.where(other[fold.held_out] >= 0, 1 - other[fold.held_out], -1)
    one, two = asked.training(fold), replace(asked, label=other).training(fold)
    np.testing.assert_array_equal(one.label, two.label)
    assert (one.label >= 0).all()
    both = asked.training(fold, with_held_out=True)
    rows = np.union1d(fold.train, fold.held_out)
    place = np.searchsorted(rows, fold.held_out)
    np.testing.assert_array_equal(both.label[place], data.label[fold.held_out])


def test_the_default_method_chooses_it_and_keeps_the_choice(tmp_path):
    data, truth = two_clouds(share=0.08)
    quick = {"max_epochs": 3, "vae_epochs": 1, "n_latent": 4, "n_networks": 1}
    method = stc.methods.get_method("stcontrast", options=quick)
    method.fit(data, inner_folds(data))
    assert method.self_training
    right = method.predict_proba(data).argmax(axis=1) == truth
    assert right.mean() > 0.8
    write_state(tmp_path, method.state())
    again = stc.methods.get_method("stcontrast", options=quick)
    again.restore(read_state(tmp_path))
    assert again.self_training
    np.testing.assert_allclose(again.predict_proba(data), method.predict_proba(data), atol=1e-6)


@pytest.mark.parametrize("method", ["ridge", "knn", "kernel", "mlp"])
def test_other_methods_learn_from_given_labels_alone(method):
    data, _ = two_clouds()
    assert not data.self_training
    fold = inner_folds(data)[0]
    np.testing.assert_array_equal(data.training(fold).label, data.label[fold.train])
    assert stc.methods.get_method(method).name == method

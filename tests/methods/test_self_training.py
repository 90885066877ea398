from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from stcontrast._data.folds import inner_folds
from stcontrast.fitted._disk import read_state, write_state
from stcontrast.methods._base import get_method
from stcontrast.methods._linear import LinearClassifier
from stcontrast.methods._network import Network
from stcontrast.methods._targets import pseudo_labels, self_training_helps, with_pseudo_labels
from stcontrast.methods.stcontrast import Stcontrast, _method
from tests.methods.quick import QUICK
from tests.methods.synthetic import training_data

if TYPE_CHECKING:
    from stcontrast._data.spots import Spots


def two_clouds(*, share=0.1, gap=1.4, seed=0):
    """Two classes that differ a little in each of several features; few spots of each donor are annotated."""
    rng = np.random.default_rng(seed)
    data = training_data(n_spots=120)
    truth = rng.integers(0, 2, len(data.slide))
    design = rng.normal(size=(len(truth), 30)).astype(np.float32)
    design[:, :8] += np.float32(gap) * truth[:, None]
    known = rng.random(len(truth)) < share
    known[:2], truth[:2] = True, (0, 1)
    return replace(data, design=design, label=np.where(known, truth, -1)), truth


def test_given_labels_stay_and_the_others_are_filled():
    data, truth = two_clouds()
    label = pseudo_labels(data)
    known = data.label >= 0
    np.testing.assert_array_equal(label[known], data.label[known])
    assert set(label) == {0, 1}
    assert (label == truth).mean() > 0.9


def test_without_labels_or_with_all_of_them_nothing_changes():
    data = training_data()
    none = replace(data, label=np.full(len(data.label), -1))
    assert (pseudo_labels(none) == -1).all()
    everything = replace(data, label=np.zeros(len(data.label), dtype=np.int64))
    np.testing.assert_array_equal(pseudo_labels(everything), everything.label)


def test_unlabelled_spots_make_a_better_classifier():
    """Averaged over draws: accuracy with few annotated spots, and with many unlabelled spots in addition."""
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


def test_it_is_not_used_where_all_spots_are_labelled_or_labels_are_noise():
    data, _ = two_clouds(share=2.0)
    folds = inner_folds(data)
    assert not self_training_helps(data, folds)
    assert not self_training_helps(data, [])
    rng = np.random.default_rng(1)
    noise = replace(data, label=np.where(rng.random(len(data.label)) < 0.3, rng.integers(0, 2, len(data.label)), -1))
    assert not self_training_helps(noise, folds)


def test_held_out_labels_are_neither_seen_nor_replaced():
    data, _ = two_clouds()
    other = data.label.copy()
    held_out = inner_folds(data)[0].held_out
    other[held_out] = np.where(other[held_out] >= 0, 1 - other[held_out], -1)
    one, two = (inner_folds(spots)[0].with_targets(with_pseudo_labels) for spots in (data, replace(data, label=other)))
    np.testing.assert_array_equal(one.training.label, two.training.label)
    assert (one.training.label >= 0).all()
    both, rows = one.together()
    np.testing.assert_array_equal(both.label[rows], data.label[held_out])


@dataclass
class Watched:
    """A fit of the default method, with what its members predicted and its networks learnt from on the way."""

    data: Spots
    truth: np.ndarray
    method: Stcontrast
    predicted: list[np.ndarray]
    trained: list[np.ndarray]


@pytest.fixture(scope="module")
def watched():
    data, truth = two_clouds(share=0.08)
    found = Watched(data, truth, Stcontrast(max_epochs=3, vae_epochs=1, n_latent=4, n_networks=1), [], [])
    stack_proba, fit = _method.stack_proba, Network.fit

    def watched_stack(predictions, label):
        found.predicted.extend(predictions)
        return stack_proba(predictions, label)

    def watched_fit(self, spots, *, held_out=None, **how):
        rows = np.arange(len(spots))
        found.trained.append(spots.label[rows if held_out is None else np.setdiff1d(rows, held_out)])
        return fit(self, spots, held_out=held_out, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_method, "stack_proba", watched_stack)
        patch.setattr(Network, "fit", watched_fit)
        found.method.fit(data, inner_folds(data))
    return found


def test_the_default_method_chooses_it_and_keeps_the_choice(watched, tmp_path):
    data, method = watched.data, watched.method
    assert method.self_training
    right = method.predict_proba(data).argmax(axis=1) == watched.truth
    assert right.mean() > 0.8
    write_state(tmp_path, method.state())
    again = Stcontrast(**method.spec)
    again.restore(read_state(tmp_path))
    assert again.self_training
    np.testing.assert_allclose(again.predict_proba(data), method.predict_proba(data), atol=1e-6)


def test_every_fold_learns_from_pseudo_labels_of_its_own_training_spots(watched):
    """The weights of the members rest on out-of-fold predictions that learnt from the same kind of labels as the fit."""
    data, method = watched.data, watched.method
    out_of_fold = dict(zip(_method.MEMBERS, watched.predicted, strict=True))
    for fold, label in zip(inner_folds(data), watched.trained[:-1], strict=True):
        given, filled = fold.training, with_pseudo_labels(fold.training)
        assert (filled.label >= 0).all()
        np.testing.assert_array_equal(label, filled.label)
        for name, member in method.members.items():
            alone = type(member)(**member.spec)
            if name == "knn":
                alone.class_k = member.class_k
            alone.fit_parts(given if name == "ridge" else filled)
            expected = alone.predict_proba(fold.unseen())
            np.testing.assert_allclose(out_of_fold[name][fold.held_out], expected, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(watched.trained[-1], pseudo_labels(data))


@pytest.mark.parametrize("name", ["ridge", "knn", "kernel", "mlp", "stcontrast"])
def test_other_methods_learn_from_given_labels_alone(name, monkeypatch):
    def fail(spots):
        raise AssertionError("labels were made")

    data, _ = two_clouds()
    monkeypatch.setattr("stcontrast.methods._targets.pseudo_labels", fail)
    expected = pytest.raises(AssertionError, match="labels were made") if name == "stcontrast" else nullcontext()
    with expected:
        get_method(name, options=QUICK[name]).fit(data, inner_folds(data))

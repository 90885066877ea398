from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge
from sklearn.preprocessing import KernelCenterer, StandardScaler

from stcontrast._data import inner_folds
from stcontrast._files import read_state, write_state
from stcontrast.methods._base import get_method
from stcontrast.methods.stcontrast import Stcontrast, _subtypes
from stcontrast.methods.stcontrast._stacking import mixed, stack_proba
from stcontrast.methods.stcontrast._subtypes import PRIOR, Subtypes, choose_on_folds
from tests.methods.quick import QUICK
from tests.methods.synthetic import training_data

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast.methods import Spots


def unit_rows(n: int, d: int = 4, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def two_clouds(*, share: float = 0.1, gap: float = 1.4, seed: int = 0) -> tuple[Spots, NDArray[np.int64]]:
    """Two classes that differ a little in each of several features; few spots of each donor are annotated."""
    rng = np.random.default_rng(seed)
    data = training_data(n_spots=120)
    truth = rng.integers(0, 2, len(data.slide))
    design = rng.normal(size=(len(truth), 30)).astype(np.float32)
    design[:, :8] += np.float32(gap) * truth[:, None]
    known = rng.random(len(truth)) < share
    known[:2], truth[:2] = True, (0, 1)
    return replace(data, design=design, label=np.where(known, truth, -1)), truth


def fitted(spots: Spots, embedding: NDArray[np.float32] | None = None, **options: Any) -> Subtypes:
    subtypes = Subtypes(**options)
    subtypes.fit(spots, embedding)
    return subtypes


class Reference:
    """What the classifiers see, made with scikit-learn: both blocks weigh alike, on the axes of all training spots."""

    def __init__(self, spots: Spots, *embedding: NDArray[np.float32]) -> None:
        self.scaler = StandardScaler().fit(spots.design)
        blocks: list[NDArray] = [self.scaled(spots), *embedding]
        self.centers = [block.mean(axis=0) for block in blocks]
        pairs = zip(blocks, self.centers, strict=True)
        self.spreads = [np.sqrt(((block - center) ** 2).sum(axis=1).mean()) for block, center in pairs]
        joined = self.joined(blocks)
        self.pca = PCA(min(150, *joined.shape), svd_solver="full").fit(joined)

    def scaled(self, spots: Spots) -> NDArray[np.float64]:
        scaled = self.scaler.transform(spots.design)
        return scaled / np.linalg.norm(scaled, axis=1, keepdims=True) * np.sqrt(scaled.shape[1])

    def joined(self, blocks: list[NDArray]) -> NDArray[np.float64]:
        both = zip(blocks, self.centers, self.spreads, strict=True)
        return np.hstack([(block - center) / spread for block, center, spread in both])

    def axes(self, spots: Spots, *embedding: NDArray[np.float32]) -> NDArray[np.float64]:
        return self.joined([self.scaled(spots), *embedding]) @ self.pca.components_.T


def kernel_ridge(x: NDArray, member: NDArray, new: NDArray) -> NDArray[np.float64]:
    """Kernel ridge regression at penalty 1, its mean not penalised, as probabilities of at least 0.001."""
    squared = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    width = np.median(squared[np.tril_indices(len(x), -1)])
    centerer = KernelCenterer()
    kernel = centerer.fit_transform(np.exp(-squared / width))
    between = centerer.transform(np.exp(-((new[:, None] - x[None]) ** 2).sum(axis=2) / width))
    mean = member.mean(axis=0)
    odds = KernelRidge(alpha=1.0, kernel="precomputed").fit(kernel, member - mean).predict(between) + mean
    odds = np.maximum(odds, 1e-3)
    return odds / odds.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("with_embedding", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_each_classifier_is_scikit_learn_s(n_classes, with_embedding):
    data, new = training_data(n_spots=40, n_classes=n_classes), training_data(n_spots=40, seed=1)
    known = np.arange(120) % 3 > 0
    data = replace(data, label=np.where(known, data.label, -1))
    embeddings = [(unit_rows(120),), (unit_rows(120, seed=1),)] if with_embedding else [(), ()]
    train, query = ((*part, None)[0] for part in embeddings)
    found = fitted(data, train).predict_each(new.unseen(), query)
    both, alone = Reference(data, *embeddings[0]), Reference(data)
    x, z = both.axes(data, *embeddings[0])[known], both.axes(new, *embeddings[1])
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(x, data.label[known])
    np.testing.assert_allclose(found["discriminant"], reference.predict_proba(z), atol=1e-3)
    member = np.eye(n_classes)[data.label[known]]
    np.testing.assert_allclose(found["kernel"], kernel_ridge(x, member, z), atol=1e-3)
    if not with_embedding:
        assert found.keys() == {"discriminant", "kernel"}
        return
    expected = kernel_ridge(alone.axes(data)[known], member, alone.axes(new))
    np.testing.assert_allclose(found["kernel of features"], expected, atol=1e-3)
    of_features = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(
        alone.axes(data)[known], data.label[known]
    )
    expected = of_features.predict_proba(alone.axes(new))
    np.testing.assert_allclose(found["discriminant of features"], expected, atol=1e-3)
    for name in ("kernel", "discriminant"):
        assert not np.allclose(found[f"{name} of features"], found[name], atol=1e-4)


def test_the_prediction_is_the_weighted_mean():
    data, embedding = training_data(n_classes=3), unit_rows(90)
    subtypes = fitted(data, embedding)
    subtypes.weights = {"discriminant": 0.2, "kernel": 0.4, "discriminant of features": 0.1, "kernel of features": 0.3}
    each = subtypes.predict_each(data, embedding)
    expected = sum(weight * each[name] for name, weight in subtypes.weights.items())
    np.testing.assert_allclose(subtypes.predict(data, embedding), expected, atol=1e-6)
    np.testing.assert_allclose(subtypes.predict(data, embedding).sum(axis=1), 1, atol=1e-5)


def test_both_blocks_weigh_alike_whatever_their_unit():
    """The embedding in another unit changes nothing, though features have three times the length."""
    data, embedding = training_data(n_classes=3), unit_rows(90)
    one = fitted(data, embedding).predict_each(data, embedding)
    other = fitted(data, 9 * embedding + 2).predict_each(data, 9 * embedding + 2)
    for name in PRIOR:
        np.testing.assert_allclose(other[name], one[name], atol=1e-3)


def test_the_axes_are_those_of_all_training_spots_annotated_or_not():
    data = training_data(n_design=20)
    few = replace(data, label=np.where(np.arange(90) < 30, data.label, -1))
    changed = replace(few, design=np.where(few.label[:, None] < 0, 3 * few.design[:, ::-1], few.design))
    one, other = fitted(few), fitted(changed)
    assert not np.allclose(one.arrays["axes0"], other.arrays["axes0"], atol=1e-3)


def test_absent_classes_get_nothing_of_the_discriminant_and_the_floor_of_the_kernel():
    data = training_data(n_classes=4)
    data = replace(data, label=np.where(np.isin(data.label, [1, 3]), data.label, -1))
    each = fitted(data).predict_each(data, None)
    np.testing.assert_array_equal(each["discriminant"][:, [0, 2]], 0)
    assert (each["kernel"][:, [0, 2]] > 0).all()
    assert (each["kernel"][:, [0, 2]] <= 1e-3).all()
    for part in each.values():
        np.testing.assert_allclose(part.sum(axis=1), 1, atol=1e-5)
    known = data.label >= 0
    assert (each["discriminant"].argmax(axis=1) == data.label)[known].mean() > 0.9


def test_a_single_class_is_certain():
    data = training_data(n_classes=3)
    each = fitted(replace(data, label=np.where(data.label == 1, 1, -1))).predict_each(data, None)
    np.testing.assert_array_equal(each["discriminant"], np.tile([0, 1, 0], (90, 1)))
    assert (each["kernel"][:, 1] > 0.99).all()


@pytest.mark.parametrize("label", [[0], [0, 1], [0, 1, 1], [0, 1, 2], [2, 1, 1, 0]])
def test_very_few_annotated_spots(label):
    data = training_data(n_classes=4)
    few = np.full(90, -1)
    few[: len(label)] = label
    subtypes = fitted(replace(data, label=few))
    each = subtypes.predict_each(data, None)
    for part in each.values():
        np.testing.assert_allclose(part.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(subtypes.predict(data, None)[: len(label)].argmax(axis=1), label)
    np.testing.assert_array_equal(each["discriminant"][:, 3], 0)
    if len(label) == len(set(label)):
        # a class of one spot has no spread that could tell classes apart
        present = np.isin(np.arange(4), label)
        np.testing.assert_allclose(each["discriminant"], np.tile(present / present.sum(), (90, 1)), atol=1e-6)
    else:
        np.testing.assert_array_equal(each["discriminant"][: len(label)].argmax(axis=1), label)


@pytest.mark.parametrize("with_embedding", [False, True])
@pytest.mark.parametrize("self_training", [False, True])
def test_saved_and_read_again(tmp_path, with_embedding, self_training):
    data, embedding = training_data(n_classes=3), unit_rows(90) if with_embedding else None
    data = replace(data, label=np.where(np.arange(90) % 3, data.label, -1))
    subtypes = fitted(data, embedding, self_training=self_training)
    subtypes.weights = {"discriminant": 0.2, "kernel": 0.8}
    if with_embedding:
        subtypes.weights = {
            "discriminant": 0.2, "kernel": 0.4, "discriminant of features": 0.1, "kernel of features": 0.3
        }  # fmt: skip
    write_state(tmp_path, subtypes.state())
    again = Subtypes()
    again.restore(read_state(tmp_path))
    assert (again.weights, again.self_training) == (subtypes.weights, self_training)
    np.testing.assert_array_equal(again.predict(data, embedding), subtypes.predict(data, embedding))


def labels_learnt_from(monkeypatch: pytest.MonkeyPatch, spots: Spots, **options: Any) -> list[NDArray[np.int64]]:
    """Labels that are learnt from in every round: of annotated spots, then of all."""
    seen: list[NDArray[np.int64]] = []
    fit = Subtypes._fit_members

    def watched(self, views, label, **options):
        seen.append(label)
        return fit(self, views, label, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Subtypes, "_fit_members", watched)
        fitted(spots, **options)
    return seen


def test_given_labels_stay_and_the_others_are_filled(monkeypatch):
    data, truth = two_clouds()
    known = data.label >= 0
    first, *rounds = labels_learnt_from(monkeypatch, data, self_training=True)
    np.testing.assert_array_equal(first, data.label[known])
    assert len(rounds) == 4
    for label in rounds:
        np.testing.assert_array_equal(label[known], data.label[known])
        assert set(label) == {0, 1}
    assert (rounds[-1] == truth).mean() > 0.9
    assert len(labels_learnt_from(monkeypatch, data)) == 1


def test_where_all_spots_have_a_label_self_training_changes_nothing():
    data = training_data(n_classes=3)
    one, other = fitted(data), fitted(data, self_training=True)
    np.testing.assert_array_equal(one.predict(data, None), other.predict(data, None))


def test_given_labels_that_the_classifiers_do_not_believe_stay(monkeypatch):
    data, truth = two_clouds(share=0.5, gap=3)
    wrong = np.flatnonzero(data.label >= 0)[5:15]
    label = data.label.copy()
    label[wrong] = 1 - truth[wrong]
    *_, last = labels_learnt_from(monkeypatch, replace(data, label=label), self_training=True)
    np.testing.assert_array_equal(last[wrong], 1 - truth[wrong])


def test_unlabelled_spots_make_a_better_classifier():
    """Averaged over draws: accuracy with few annotated spots, and with many unlabelled spots in addition."""
    gain = []
    for seed in range(8):
        data, truth = two_clouds(share=0.06, seed=seed)
        right = [
            (fitted(data, self_training=on).predict(data, None).argmax(axis=1) == truth).mean() for on in (False, True)
        ]
        gain.append(right[1] - right[0])
    assert np.mean(gain) > 0.02


def test_self_training_is_chosen_where_it_makes_held_out_labels_more_likely():
    data, _ = two_clouds(share=0.3)
    chosen = choose_on_folds(data, None, inner_folds(data, of="labels"), seed=0)
    likelihood = {}
    for on in (False, True):
        each = {name: np.full((360, 2), np.nan, dtype=np.float32) for name in ("discriminant", "kernel")}
        for fold in inner_folds(data, of="labels"):
            for name, proba in fitted(fold.training, self_training=on).predict_each(fold.unseen(), None).items():
                each[name][fold.held_out] = proba
        weights = stack_proba(each, data.label, prior={"discriminant": 0.5, "kernel": 0.5})
        proba = mixed(weights, each)
        rows = np.flatnonzero(data.label >= 0)
        likelihood[on] = np.log(np.maximum(proba[rows, data.label[rows]], 1e-3)).mean(), proba, weights
    best = max(likelihood, key=lambda on: likelihood[on][0])
    assert chosen[2] == best
    np.testing.assert_array_equal(chosen[0], likelihood[best][1])
    assert chosen[1] == likelihood[best][2]
    assert likelihood[True][0] != likelihood[False][0]


def test_it_is_not_used_where_all_spots_are_labelled_or_labels_are_noise():
    data, _ = two_clouds(share=2.0)
    assert not choose_on_folds(data, None, inner_folds(data, of="labels"), seed=0)[2]
    assert not choose_on_folds(data, None, [], seed=0)[2]
    rng = np.random.default_rng(1)
    noise = replace(data, label=np.where(rng.random(len(data)) < 0.4, rng.integers(0, 2, len(data)), -1))
    assert not choose_on_folds(noise, None, inner_folds(noise, of="labels"), seed=0)[2]


def test_with_few_labels_it_is_used_wherever_a_tenth_of_the_spots_has_none():
    data, _ = two_clouds(share=0.08)
    assert 10 < (data.label >= 0).sum() < 100
    proba, weights, chosen = choose_on_folds(data, unit_rows(len(data)), inner_folds(data, of="labels"), seed=0)
    assert chosen
    np.testing.assert_array_equal(np.isfinite(proba).all(axis=1), data.label >= 0)
    few = data.take(np.flatnonzero(data.label >= 0))
    assert not choose_on_folds(few, None, inner_folds(few, of="labels"), seed=0)[2]
    # what is out of the fixed weights has no more than the labels have to say
    n_labels = (data.label >= 0).sum()
    assert weights["discriminant of features"] + weights["kernel of features"] <= n_labels / (n_labels + 100)


def test_without_folds_the_weights_are_fixed():
    data, _ = two_clouds()
    proba, weights, chosen = choose_on_folds(data, None, [], seed=0)
    assert np.isnan(proba).all()
    assert weights == PRIOR
    assert list(PRIOR.values()) == [0.5, 0.5, 0.0, 0.0]
    assert chosen


def test_held_out_labels_and_spots_are_not_learnt_from():
    """Nothing of a held-out donor, labels, features or embedding, changes what the others teach about it."""
    data, _ = two_clouds(share=0.2)
    embedding = unit_rows(360)
    held_out = data.donor == "1"
    changed = replace(data, label=np.where(held_out & (data.label >= 0), 1 - data.label, data.label))
    found = []
    for spots in (data, changed):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_subtypes, "stack_proba", lambda *_, prior: dict(prior))
            patch.setattr(_subtypes, "FEWEST_LABELS", 1000)
            found.append(choose_on_folds(spots, embedding, inner_folds(spots, of="labels"), seed=0)[0])
    np.testing.assert_array_equal(found[0][held_out], found[1][held_out])
    others = ~held_out & (data.label >= 0)
    assert not np.allclose(found[0][others], found[1][others], atol=1e-3)


def test_the_default_method_chooses_it_and_keeps_the_choice(tmp_path):
    data, truth = two_clouds(share=0.08)
    method = Stcontrast(max_epochs=3, n_coordinates=3)
    found = method.fit(data, inner_folds(data))
    assert method.subtypes.self_training
    assert method.summary()["self_training"]
    assert (method.predict_proba(data).argmax(axis=1) == truth).mean() > 0.8
    assert np.isfinite(found.proba[data.label >= 0]).all()
    assert np.isnan(found.proba[data.label < 0]).all()
    write_state(tmp_path, method.state())
    again = Stcontrast(**method.spec)
    again.restore(read_state(tmp_path))
    assert again.subtypes.self_training
    np.testing.assert_array_equal(again.predict_proba(data), method.predict_proba(data))


@pytest.mark.parametrize("name", ["ridge", "knn", "kernel", "mlp"])
def test_other_methods_learn_from_given_labels_alone(name):
    """Features of spots without a label change nothing, once the scale of all features is given."""
    data, _ = two_clouds()
    known = np.flatnonzero(data.label >= 0)
    method, alone = (get_method(name, options=QUICK[name]) for _ in range(2))
    method.fit_parts(data)
    if hasattr(alone, "scaler"):
        scaler = type(method.scaler)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scaler, "fit", lambda self, spots: (self.restore(method.scaler.state()), self)[1])
            alone.fit_parts(data.take(known))
    else:
        alone.fit_parts(data.take(known))
    np.testing.assert_allclose(alone.predict_proba(data), method.predict_proba(data), atol=1e-6)

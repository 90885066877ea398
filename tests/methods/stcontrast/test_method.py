from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import sparse

from stcontrast._data import inner_folds, log_normalize
from stcontrast._files import read_state, write_state
from stcontrast.methods.stcontrast import Stcontrast, _method
from stcontrast.methods.stcontrast._image_to_gene import MEMBERS, ImageToGene
from stcontrast.methods.stcontrast._method import PRIOR
from stcontrast.methods.stcontrast._stacking import CalibrationSlope, StackedWeights, mixed
from stcontrast.methods.stcontrast._subtypes import choose_on_folds
from stcontrast.metrics import gene_correlation, mean_slide_correlation
from tests.methods.synthetic import training_data, with_gene_side

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stcontrast.methods import Fold, Prediction, Spots


def quick(**options: Any) -> Stcontrast:
    return Stcontrast(**{"max_epochs": 3, "n_coordinates": 3, "penalty": 30.0} | options)


@dataclass
class Fitted:
    """A fit, its data, its out-of-fold predictions, and what the classifiers were given."""

    data: Spots
    folds: list[Fold]
    method: Stcontrast
    found: Prediction
    embedding: NDArray[np.float32]


def fit(data: Spots, **options: Any) -> Fitted:
    """Fit, and watch what the classifiers are given."""
    given: list[NDArray[np.float32]] = []

    def watched(spots, embedding, folds, *, seed):
        given.append(embedding)
        return choose_on_folds(spots, embedding, folds, seed=seed)

    method, folds = quick(**options), inner_folds(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_method, "choose_on_folds", watched)
        found = method.fit(data, folds)
    return Fitted(data, folds, method, found, given[0] if given else np.zeros(0, dtype=np.float32))


def parts_of(fold: Fold, **options: Any) -> ImageToGene:
    """What a fold fits, made without the method."""
    part = ImageToGene(**quick(**options)._part_options())
    part.fit(fold.training)
    return part


@pytest.fixture(scope="module")
def four():
    return fit(training_data(donors=4, n_spots=40))


@pytest.fixture(scope="module")
def new():
    return training_data(donors=2, n_spots=40, seed=1)


def test_the_prediction_is_the_weighted_mean_of_coordinates_decoded_and_drawn_by_the_slope(four, new):
    method = four.method
    each = method.parts.predict(new.unseen())
    assert tuple(each) == tuple(method.weights) == MEMBERS
    assert sum(method.weights.values()) == pytest.approx(1)
    coordinates = sum(method.weights[name] * each[name].astype(np.float64) for name in MEMBERS)
    space = method.parts.space
    expression = (coordinates @ space.axes.T) * space.scale + four.data.slide_means()[0]
    mean = four.data.slide_means()[0]
    expected = mean + method.slope * (expression - mean)
    np.testing.assert_allclose(method.predict_expression(new.unseen()), expected, atol=1e-4)


def test_out_of_fold_predictions_weights_and_slopes_by_hand(four):
    """Of a fold: parts without its donors, weights and slopes of the other folds."""
    data, method = four.data, four.method
    weights, slopes = StackedWeights(PRIOR), CalibrationSlope()
    parts = [parts_of(fold) for fold in four.folds]
    each = [part.predict(fold.unseen()) for part, fold in zip(parts, four.folds, strict=True)]
    for fold, part, predicted in zip(four.folds, parts, each, strict=True):
        weights.add(predicted, part.space.encode(data.take(fold.held_out)), data.slide[fold.held_out])
    expression = []
    for i, fold in enumerate(four.folds):
        expression.append(parts[i].decode(mixed(weights.found(n_donors=4, without=i), each[i])))
        slopes.add(expression[-1], data.observed[fold.held_out], data.slide[fold.held_out])
    for i, fold in enumerate(four.folds):
        level = data.take(fold.train).slide_means()[0]
        expected = level + slopes.found(without=i) * (expression[i] - level)
        np.testing.assert_allclose(four.found.expression[fold.held_out], expected, atol=1e-4)
    assert method.weights == pytest.approx(weights.found(n_donors=4), abs=1e-6)
    np.testing.assert_allclose(method.slope, slopes.found(), rtol=1e-4)
    assert method.weights_rest_on.startswith("out-of-fold predictions of 4 donors")
    assert method.weights != PRIOR


@pytest.mark.parametrize("donors", [1, 2, 3])
@pytest.mark.parametrize("slides", [1, 3])
def test_weights_are_fixed_with_fewer_than_three_donors(donors, slides):
    one = fit(training_data(donors=donors, slides=slides, n_spots=20), max_epochs=1)
    fixed = one.method.weights == PRIOR
    assert fixed == (donors < 3)
    assert fixed == (one.method.weights_rest_on == "fixed weights: fewer than three donors")
    assert np.isfinite(one.found.expression).all()
    assert np.isfinite(one.found.proba).all()


def test_the_weights_of_the_data_count_with_the_donors(four, monkeypatch):
    """D / (D + 6) of those of the data: with 4 donors four tenths."""
    asked = []
    found = StackedWeights.found

    def watched(self, *, n_donors, without=None):
        asked.append((n_donors, without))
        return found(self, n_donors=n_donors, without=without)

    monkeypatch.setattr(StackedWeights, "found", watched)
    quick(max_epochs=1).fit(four.data, four.folds)
    assert asked == [(4, 0), (4, 1), (4, 2), (4, 3), (4, None)]
    for weight in four.method.weights.values():
        assert weight >= 0.6 * 0.7 / 3 - 1e-9


def changed_donor(data: Spots, donor: str, seed: int = 0) -> Spots:
    """The same spots with unrelated counts of a donor, with an image and without."""

    def changed(spots: Spots) -> Spots:
        rows = np.flatnonzero(spots.donor == donor)
        counts = spots.counts.toarray()
        rng = np.random.default_rng(seed)
        counts[rows] = rng.poisson(rng.gamma(0.5, 200, spots.n_genes), (len(rows), spots.n_genes)) + 1
        depth = counts.sum(axis=1).astype(np.float64)
        expression = log_normalize(sparse.csr_matrix(counts), depth)
        depth[~spots.measured] = 0
        return replace(spots, counts=sparse.csr_matrix(counts), depth=depth, observed=expression, target=expression)

    other = changed(data)
    return other if data.gene_side is None else replace(other, gene_side=changed(data.gene_side))


@pytest.fixture(scope="module")
def with_both():
    """Donors 0 to 3 with an image each; donors 0, 1 and 4 with a slide on the gene side, donor 4 with another."""
    data = training_data(donors=5, slides=2, n_spots=14).with_genes(np.arange(5))
    return with_gene_side(data.take(np.flatnonzero(~np.isin(data.slide, [5, 7]))), 1, 3, 8, 9)


def watched_folds(monkeypatch: pytest.MonkeyPatch, data: Spots, **options: Any) -> tuple[list[dict[str, Any]], Fitted]:
    """What the parts of every fold predict, before weights and slopes; the last part is that of all spots."""
    seen: list[dict[str, Any]] = []
    predict = ImageToGene.predict

    def watched(self, spots):
        found = predict(self, spots)
        seen.append({**found, "level": self.level, "embedding": self.embed_image(spots)})
        return found

    with monkeypatch.context() as patch:
        patch.setattr(ImageToGene, "predict", watched)
        done = fit(data, **options)
    return seen, done


@pytest.mark.parametrize("gene_space", ["axes", "vae"])
@pytest.mark.parametrize("donor", ["0", "2"])
def test_the_counts_of_a_donor_have_no_part_in_what_its_fold_predicts(monkeypatch, with_both, donor, gene_space):
    """With an image (donor 2) and on the gene side too (donor 0)."""
    options = {"gene_space": gene_space, "max_epochs": 1, "vae_epochs": 1}
    other = changed_donor(with_both, donor)
    assert not np.allclose(other.target[with_both.donor == donor], with_both.target[with_both.donor == donor], atol=1)
    (before, one), (after, two) = (watched_folds(monkeypatch, data, **options) for data in (with_both, other))
    for fold, first, second in zip(one.folds, before, after, strict=True):
        same = donor in set(with_both.donor[fold.held_out])
        for name in first:
            assert np.array_equal(first[name], second[name]) == same, name
    # folds that learn from the donor predict differently, and so does the fit on all
    assert not np.allclose(
        one.method.predict_expression(with_both), two.method.predict_expression(with_both), atol=1e-3
    )


@pytest.mark.parametrize("donor", ["0", "2"])
def test_with_weights_and_slopes_given_the_counts_of_a_donor_change_none_of_its_predictions(
    monkeypatch, with_both, donor
):
    """Four weights and a slope per gene rest on the other folds, which learnt from the donor; nothing else does."""
    monkeypatch.setattr(
        StackedWeights, "found", lambda *_, **__: {"linear": 0.1, "contrast": 0.2, "joint": 0.3, "features": 0.4}
    )
    monkeypatch.setattr(CalibrationSlope, "found", lambda *_, **__: np.full(5, 0.5, dtype=np.float32))
    one, two = (fit(data, max_epochs=1) for data in (with_both, changed_donor(with_both, donor)))
    here = with_both.donor == donor
    np.testing.assert_array_equal(two.found.expression[here], one.found.expression[here])
    assert not np.allclose(two.found.expression[~here], one.found.expression[~here], atol=1e-3)


@pytest.mark.parametrize("donor", ["0", "2"])
def test_predicting_out_of_fold_alone_the_counts_of_a_donor_change_nothing(with_both, donor):
    other = changed_donor(with_both, donor)
    one, two = (quick(max_epochs=1).predict_out_of_fold(data, inner_folds(data)) for data in (with_both, other))
    here = with_both.donor == donor
    np.testing.assert_array_equal(two.expression[here], one.expression[here])
    np.testing.assert_array_equal(two.proba[here], one.proba[here])
    assert not np.allclose(two.expression[~here], one.expression[~here], atol=1e-3)


def test_labels_of_a_donor_change_no_expression_and_none_of_its_own_subtypes(monkeypatch):
    monkeypatch.setattr("stcontrast.methods.stcontrast._subtypes.stack_proba", lambda *_, prior: dict(prior))
    data = training_data(donors=4, n_spots=20)
    here = data.donor == "1"
    one = fit(data, max_epochs=1)
    two = fit(replace(data, label=np.where(here, 1 - data.label, data.label)), max_epochs=1)
    np.testing.assert_array_equal(two.found.expression, one.found.expression)
    np.testing.assert_array_equal(two.found.proba[here], one.found.proba[here])
    assert not np.allclose(two.found.proba[~here], one.found.proba[~here], atol=1e-3)


def test_the_gene_side_changes_the_axes(with_both):
    one, two = (fit(data, max_epochs=1) for data in (with_both, replace(with_both, gene_side=None)))
    axes = [part.method.parts.space.axes for part in (one, two)]
    assert not np.allclose(*axes, atol=1e-3)
    mean = with_both.slide_means()[0]
    for part in (one, two):
        # the level is that of slides with an image
        np.testing.assert_allclose(part.method.parts.level, mean, atol=1e-5)


def test_classifiers_are_given_an_embedding_that_did_not_learn_from_the_spot(four):
    """Of each fold the embedding of its own parts, turned as a whole onto that of all spots."""
    final = four.method.parts.embed_image(four.data)
    np.testing.assert_allclose(np.linalg.norm(four.embedding, axis=1), 1, atol=1e-4)
    for fold in four.folds:
        own = parts_of(fold).embed_image(four.data)
        # the rotation that brings the spots that this fold learnt from nearest to where all spots put them
        left, _, right = np.linalg.svd(own[fold.train].T.astype(np.float64) @ final[fold.train])
        expected = own[fold.held_out] @ left @ right
        np.testing.assert_allclose(four.embedding[fold.held_out], expected, atol=1e-3)
        assert not np.allclose(four.embedding[fold.held_out], final[fold.held_out], atol=1e-2)


def test_a_spot_whose_counts_nobody_learnt_from_has_the_embedding_of_the_last_fit():
    data = training_data(donors=3, n_spots=20)
    unmeasured = data.donor == "1"
    done = fit(replace(data, depth=data.depth * ~unmeasured), max_epochs=1)
    final = done.method.parts.embed_image(data)
    np.testing.assert_array_equal(done.embedding[unmeasured], final[unmeasured])
    assert np.isnan(done.found.expression[unmeasured]).all()
    assert np.isfinite(done.found.expression[~unmeasured]).all()


def test_a_prediction_does_not_depend_on_the_other_spots(four, new):
    """A spot from its own row alone: a slide can be predicted in parts."""
    method = four.method
    assert method.spotwise
    together = method.predict_expression(new.unseen()), method.predict_proba(new.unseen())
    order = np.random.default_rng(0).permutation(len(new))
    for rows in (order[:50], order[50:51], order[51:]):
        part = new.take(rows).unseen()
        np.testing.assert_allclose(method.predict_expression(part), together[0][rows], atol=1e-5)
        np.testing.assert_allclose(method.predict_proba(part), together[1][rows], atol=1e-5)


def test_it_learns_what_donors_share(new):
    data = training_data(donors=3, n_spots=60)
    done = fit(data, max_epochs=20)
    assert mean_slide_correlation(done.found.expression, data.observed, data.slide) > 0.6
    predicted = done.method.predict_expression(new.unseen())
    assert mean_slide_correlation(predicted, new.observed, new.slide) > 0.6
    assert gene_correlation(predicted, new.observed).min() > 0.3
    assert (done.method.predict_proba(new.unseen()).argmax(axis=1) == new.label).mean() > 0.8
    assert (done.found.proba.argmax(axis=1) == data.label).mean() > 0.8


def test_embeddings(four, new):
    measured = np.arange(len(new)) % 7 > 0
    found = four.method.embed(replace(new, depth=new.depth * measured))
    assert set(found) == {"X_stc_image", "X_stc_gene"}
    gene, image = found["X_stc_gene"], found["X_stc_image"]
    assert np.isnan(gene[~measured]).all()
    assert gene.shape == image.shape == (len(new), 64)
    np.testing.assert_allclose(np.linalg.norm(gene[measured], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, atol=1e-5)
    assert set(four.method.embed(new.unseen())) == {"X_stc_image"}


def test_neighbours_are_training_spots_with_counts(four, new):
    found = four.method.neighbors(new.unseen())
    assert found.ids.shape == (len(new), 20)
    assert found.ids.max() < four.data.measured.sum()
    np.testing.assert_allclose(found.weights.sum(axis=1), 1)


def restored(method: Stcontrast, folder: Path) -> Stcontrast:
    write_state(folder, method.state())
    again = Stcontrast(**method.spec)
    again.restore(read_state(folder))
    return again


@pytest.mark.parametrize("gene_space", ["axes", "vae"])
@pytest.mark.parametrize("absent", ["nothing", "counts", "labels"])
def test_saved_and_read_again(tmp_path, new, gene_space, absent):
    data = training_data(donors=3, n_spots=20)
    if absent == "counts":
        data = replace(data, depth=np.zeros(60))
    if absent == "labels":
        data = replace(data, label=np.full(60, -1))
    done = fit(data, gene_space=gene_space, max_epochs=1, vae_epochs=1)
    again = restored(done.method, tmp_path)
    assert again.summary() == done.method.summary()
    for name, missing in (("predict_expression", "counts"), ("predict_proba", "labels")):
        if absent == missing:
            for method in (done.method, again):
                with pytest.raises(ValueError, match=f"without {missing}"):
                    getattr(method, name)(new.unseen())
        else:
            expected = getattr(done.method, name)(new.unseen())
            np.testing.assert_allclose(getattr(again, name)(new.unseen()), expected, atol=1e-6)
    one, other = again.embed(new), done.method.embed(new)
    assert set(one) == set(other) == (set() if absent == "counts" else SLOTS[gene_space])
    for slot in one:
        np.testing.assert_allclose(one[slot], other[slot], atol=1e-5)


SLOTS = {"axes": {"X_stc_image", "X_stc_gene"}, "vae": {"X_stc_image", "X_stc_gene", "X_stc_vae"}}


def test_what_is_saved_is_all_there_is(four, tmp_path):
    """Every array that fitting sets comes back: nothing is computed again, and nothing is left out."""

    def flat(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in state.items():
            found |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
        return found

    again = flat(restored(four.method, tmp_path).state())
    expected = flat(four.method.state())
    assert again.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    arrays = {name for name, value in expected.items() if isinstance(value, np.ndarray)}
    assert {"slope", "parts/space/axes", "parts/linear/arrays/rotation", "parts/arrays/bank", "parts/level"} <= arrays
    assert {
        "subtypes/arrays/coefficients",
        "subtypes/kernels/kernel/arrays/dual",
        "subtypes/kernels/kernel of features/arrays/dual",
    } <= arrays


def test_a_vae_as_gene_space(new):
    done = fit(training_data(donors=3, n_spots=20), gene_space="vae", n_coordinates=None, vae_epochs=1, max_epochs=1)
    method = done.method
    assert method.latent is method.parts.space
    assert method.embed(new)["X_stc_vae"].shape == (len(new), 16)
    expression = method.predict_expression(new.unseen())
    assert expression.shape == new.target.shape
    mean = done.data.slide_means()[0]
    each = method.parts.predict(new.unseen())
    decoded = method.parts.space.decode(mixed(method.weights, each)) - method.parts.reference + mean
    np.testing.assert_allclose(expression, mean + method.slope * (decoded - mean), atol=1e-4)
    assert quick().latent is None


def test_by_default_eight_axes():
    data = training_data(n_genes=12)
    method = Stcontrast(max_epochs=1)
    method.fit_parts(data)
    assert method.parts.space.axes.shape == (12, 8)


def test_labels_alone(tmp_path):
    data = training_data()
    nothing = np.zeros((90, 0), dtype=np.float32)
    data = replace(data, depth=np.zeros(90), counts=data.counts[:, :0], target=nothing, observed=nothing)
    method = quick()
    found = method.fit(data, inner_folds(data))
    assert method.embed(data) == {}
    assert (found.proba.argmax(axis=1) == data.label).mean() > 0.7
    assert (method.predict_proba(data.unseen()).argmax(axis=1) == data.label).mean() > 0.8
    again = restored(method, tmp_path)
    np.testing.assert_array_equal(again.predict_proba(data), method.predict_proba(data))
    with pytest.raises(ValueError, match="without counts"):
        method.neighbors(data)


def test_counts_alone(new):
    done = fit(replace(training_data(n_spots=20), label=np.full(60, -1)), max_epochs=1)
    assert np.isnan(done.found.proba).all()
    assert "self_training" not in done.method.summary()
    with pytest.raises(ValueError, match="without labels"):
        done.method.predict_proba(new.unseen())
    assert np.isfinite(done.method.predict_expression(new.unseen())).all()


def test_labels_of_a_single_donor():
    """Slides or blocks of that donor are held out for the classifiers, while the counts allow donors."""
    data = training_data(donors=3, n_spots=40)
    here = data.donor == "1"
    done = fit(replace(data, label=np.where(here, data.label, -1)), max_epochs=1)
    assert done.method.summary()["class_unit"] == "block"
    assert np.isfinite(done.found.proba[here]).all()
    assert np.isnan(done.found.proba[~here]).all()
    proba = done.method.predict_proba(data.unseen())
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    assert (proba.argmax(axis=1) == data.label)[here].mean() > 0.8


def test_a_single_label():
    data = training_data(n_spots=20)
    done = fit(replace(data, label=np.where(np.arange(60) == 7, 1, -1)), max_epochs=1)
    assert done.method.summary()["class_unit"] == "nothing: too few labels to hold any out"
    assert np.isnan(done.found.proba).all()
    assert (done.method.predict_proba(data.unseen()).argmax(axis=1) == 1).all()


def test_a_donor_of_one_spot_is_no_obstacle():
    """While the other donor is held out, a single spot would be left to learn from."""
    data = training_data(donors=2, n_spots=20)
    done = fit(replace(data, depth=data.depth * (np.arange(40) < 21)), max_epochs=1)
    assert np.isfinite(done.found.expression[20]).all()
    assert np.isnan(done.found.expression[:20]).all()
    assert np.isfinite(done.method.predict_expression(data.unseen())).all()


def test_a_second_fit_forgets_the_first(new):
    data = training_data(n_spots=20)
    twice, once = quick(max_epochs=1), quick(max_epochs=1)
    twice.fit(training_data(seed=5, n_spots=30), inner_folds(training_data(seed=5, n_spots=30)))
    for method in (twice, once):
        method.fit(data, inner_folds(data))
    np.testing.assert_array_equal(twice.predict_expression(new), once.predict_expression(new))
    np.testing.assert_array_equal(twice.predict_proba(new), once.predict_proba(new))
    bare = replace(data, depth=np.zeros(60))
    twice.fit(bare, inner_folds(bare))
    with pytest.raises(ValueError, match="without counts"):
        twice.predict_expression(new)
    once.fit_parts(bare)
    assert once.embed(new) == {}


def test_the_seed_decides_everything_and_the_options_reach_the_parts(new):
    data = training_data(n_spots=20)
    first, second, third = (fit(data, max_epochs=1, seed=seed).method.predict_expression(new) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)
    method = quick(loss="sigmoid", contrastive_weight=0.5, temperature=0.3, penalty=7.0, seed=3)
    method.fit_parts(data)
    spec = method.parts.model.spec
    assert (spec["loss"], spec["contrastive_weight"], spec["temperature"]) == ("sigmoid", 0.5, 0.3)
    assert (spec["max_epochs"], spec["seed"], spec["n_gene"]) == (3, 3, 3)
    assert method.parts.penalty == 7.0
    np.testing.assert_array_equal(
        method.parts.predict(new)["linear"], method.parts.linear.predict(method.parts.scaler.scaled(new), 7.0)
    )


def test_nothing_fitted():
    with pytest.raises(ValueError, match="without labels"):
        Stcontrast().predict_proba(training_data().unseen())
    with pytest.raises(ValueError, match="without counts"):
        Stcontrast().predict_expression(training_data().unseen())


def test_folds_with_features_of_their_own_are_embedded_and_classified_by_these():
    """An encoder that was tuned in every fold: its features have other axes than those of the encoder of all spots."""
    data = training_data(donors=3, n_spots=60)
    tuned = replace(data, design=data.design[:, ::-1] * 3 + 1)
    folds = [replace(fold, spots=data) for fold in inner_folds(tuned)]
    given = []

    def watched(spots, embedding, by_label, *, seed):
        given.append((embedding, by_label))
        return choose_on_folds(spots, embedding, by_label, seed=seed)

    method = quick(max_epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_method, "choose_on_folds", watched)
        method.fit(tuned, folds)
    embedding, by_label = given[0]
    assert [fold.held_out.tolist() for fold in by_label] == [fold.held_out.tolist() for fold in folds]
    assert all(fold.spots is data for fold in by_label)
    final = method.parts.embed_image(tuned)
    for fold in folds:
        own = parts_of(fold, max_epochs=1).embed_image(data)
        left, _, right = np.linalg.svd(own[fold.train].T.astype(np.float64) @ final[fold.train])
        np.testing.assert_allclose(embedding[fold.held_out], own[fold.held_out] @ left @ right, atol=1e-3)


def test_weights_rest_on_what_was_measured_not_on_completed_targets(monkeypatch):
    """Targets of all spots are completed with those that a fold holds out."""
    data = training_data(donors=3, n_spots=20)
    completed = replace(data, target=data.target + np.random.default_rng(0).random(data.target.shape, dtype=np.float32))
    truths = []
    monkeypatch.setattr(StackedWeights, "add", lambda self, predicted, observed, slide: truths.append(observed))
    folds = inner_folds(data)
    quick(max_epochs=1).fit(completed, folds)
    for fold, truth in zip(folds, truths, strict=True):
        expected = parts_of(fold, max_epochs=1).space.encode(data.take(fold.held_out))
        np.testing.assert_array_equal(truth, expected)

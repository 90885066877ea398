from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from stcontrast.metrics import gene_correlation
from stcontrast.models import ContrastiveModel
from tests.models.contrastive.synthetic import pairs

SMALL = {
    "n_image": 10,
    "n_gene": 5,
    "n_targets": 12,
    "n_classes": 2,
    "n_embedding": 16,
    "max_epochs": 4,
    "batch_size": 60,
}


def small(**hyper) -> ContrastiveModel:
    return ContrastiveModel(**{**SMALL, **hyper})


def weights(model: ContrastiveModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_planted_signal_is_learnt(trained):
    new = pairs(seed=1)
    assert gene_correlation(trained.predict_expression(new["image"]), new["target"]).mean() > 0.7
    assert (trained.predict_proba(new["image"]).argmax(axis=1) == new["label"]).mean() > 0.9


def test_unseen_pairs_find_each_other(trained):
    new = pairs(100, seed=1)
    similarity = trained.embed_image(new["image"]) @ trained.embed_genes(new["gene"]).T
    rank = (similarity > np.diag(similarity)[:, None]).sum(axis=1)
    # by chance 5 of 100 pairs are among the first five
    assert (rank < 5).mean() > 0.5


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_similarity_targets_learn_too(weight):
    model = small(loss="similarity_target", contrastive_weight=weight, max_epochs=15, learning_rate=1e-2)
    model.train(**pairs())
    new = pairs(seed=1)
    assert gene_correlation(model.predict_expression(new["image"]), new["target"]).mean() > 0.6
    assert ("train_contrastive" in model.history) == (weight > 0)


def test_embeddings_have_unit_length(trained):
    data = pairs(20)
    for embedding in (trained.embed_image(data["image"]), trained.embed_genes(data["gene"])):
        assert embedding.shape == (20, 32)
        assert embedding.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)


def test_an_untrained_model_predicts_the_mean():
    assert not small().predict_expression(pairs(5)["image"]).any()


def test_the_best_epoch_is_kept(trained):
    history = trained.history
    assert trained.n_epochs == history.loc[history["validation_loss"].idxmin(), "epoch"]
    held = pairs()
    rows = held["group"] == 3
    error = ((trained.predict_expression(held["image"][rows]) - held["target"][rows]) ** 2).mean()
    assert error == pytest.approx(history["validation_expression"].loc[history["validation_loss"].idxmin()], rel=1e-4)


def test_training_stops_when_held_out_groups_stop_getting_better():
    data = pairs(60)
    rng = np.random.default_rng(0)
    data["target"] = rng.normal(size=data["target"].shape).astype(np.float32)
    model = small(n_classes=0, max_epochs=200)
    model.train(data["image"], gene=data["gene"], target=data["target"], group=data["group"], held_out=[3])
    assert len(model.history) == model.n_epochs + 20 < 200


def test_held_out_groups_are_never_trained_on():
    """Their targets say when to stop and nothing else: with the epoch given, the weights are the same."""
    data = pairs()
    held = data["group"] == 3
    changed = {name: value.copy() for name, value in data.items()}
    changed["target"][held] *= -5
    changed["label"][held] = 1 - changed["label"][held]
    changed["image"][held] += 7
    # one epoch: there is no other to choose
    one, other = small(max_epochs=1), small(max_epochs=1)
    one.train(**data, held_out=[3])
    other.train(**changed, held_out=[3])
    assert same(weights(one), weights(other))
    one, other = small(), small()
    one.train(**data, held_out=[3])
    other.train(**changed, held_out=[3])
    np.testing.assert_array_equal(one.history["train_loss"], other.history["train_loss"])
    assert (one.history["validation_loss"] != other.history["validation_loss"]).all()


def test_stop_epoch_stops_the_same_schedule():
    full, stopped = small(max_epochs=6), small(max_epochs=6)
    full.train(**pairs())
    stopped.train(**pairs(), stop_epoch=3)
    assert (full.n_epochs, stopped.n_epochs) == (6, 3)
    np.testing.assert_allclose(full.history["train_loss"][:3], stopped.history["train_loss"], rtol=1e-6)
    assert not same(weights(full), weights(stopped))


def test_a_seed_decides_everything():
    models = [small(seed=0), small(seed=0), small(seed=1)]
    for i, model in enumerate(models):
        torch.manual_seed(i)
        np.random.seed(i)  # noqa: NPY002
        model.train(**pairs())
    assert same(weights(models[0]), weights(models[1]))
    assert not same(weights(models[0]), weights(models[2]))


def test_the_session_s_random_numbers_are_left_alone():
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.random(), float(torch.rand(1))  # noqa: NPY002

    def start() -> None:
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)

    start()
    expected = draw()
    start()
    small().train(**pairs())
    assert draw() == expected
    assert torch.is_grad_enabled()


def test_spots_without_counts_and_label_are_ignored():
    data = pairs()
    nothing = np.arange(240) % 5 == 0
    measured, label = ~nothing, np.where(nothing, -1, data["label"])
    one = small()
    one.train(data["image"], gene=data["gene"], target=data["target"], label=label, measured=measured)
    kept = {name: data[name][~nothing] for name in ("image", "gene", "target", "label")}
    other = small()
    other.train(**kept)
    assert same(weights(one), weights(other))


def test_each_spot_contributes_what_it_has():
    data = pairs()
    measured, label = np.arange(240) < 150, np.where(np.arange(240) >= 120, data["label"], -1)
    gene, target = data["gene"].copy(), data["target"].copy()
    model = small(max_epochs=15, learning_rate=1e-2)
    model.train(data["image"], gene=gene, target=target, label=label, measured=measured)
    gene[~measured], target[~measured] = 99, -99
    again = small(max_epochs=15, learning_rate=1e-2)
    again.train(data["image"], gene=gene, target=target, label=label, measured=measured)
    assert same(weights(model), weights(again))
    new = pairs(seed=1)
    assert gene_correlation(model.predict_expression(new["image"]), new["target"]).mean() > 0.5
    assert (model.predict_proba(new["image"]).argmax(axis=1) == new["label"]).mean() > 0.8


def test_labels_only():
    data = pairs()
    model = ContrastiveModel(n_image=10, n_classes=2, n_embedding=16, max_epochs=20, batch_size=60, learning_rate=1e-2)
    model.train(data["image"], label=data["label"], group=data["group"], held_out=[0])
    assert (model.predict_proba(pairs(seed=1)["image"]).argmax(axis=1) == pairs(seed=1)["label"]).mean() > 0.8
    with pytest.raises(ValueError, match="without counts: it has no gene tower"):
        model.embed_genes(data["gene"])
    with pytest.raises(ValueError, match="without counts: it predicts no expression"):
        model.predict_expression(data["image"])


def test_counts_only():
    model = small(n_classes=0)
    data = pairs()
    model.train(data["image"], gene=data["gene"], target=data["target"])
    with pytest.raises(ValueError, match="without labels"):
        model.predict_proba(data["image"])


def test_one_spot_is_enough_to_run():
    data = {name: value[:1] for name, value in pairs().items()}
    model = small(max_epochs=2)
    model.train(**data)
    assert np.isfinite(model.predict_expression(data["image"])).all()


def test_saved_and_read_again(trained, tmp_path):
    trained.save(tmp_path / "model")
    again = ContrastiveModel.load(tmp_path / "model")
    data = pairs(30, seed=1)
    assert again.config == trained.config
    assert again.n_epochs == trained.n_epochs
    for name, key in (
        ("embed_image", "image"), ("embed_genes", "gene"), ("predict_expression", "image"), ("predict_proba", "image"),
    ):  # fmt: skip
        np.testing.assert_allclose(getattr(again, name)(data[key]), getattr(trained, name)(data[key]), atol=1e-6)
    with pytest.raises(FileExistsError, match="`overwrite=True`"):
        trained.save(tmp_path / "model")
    trained.save(tmp_path / "model", overwrite=True)


def test_loading_executes_nothing_and_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        ContrastiveModel.load(tmp_path)


def test_a_contrast_at_chance_is_reported(caplog):
    data = pairs()
    data["gene"] = np.zeros_like(data["gene"])
    small(max_epochs=12).train(**data)
    assert "are not being aligned" in caplog.text


def test_a_contrast_that_works_is_not(trained, caplog):
    small(max_epochs=12, contrastive_weight=1.0, learning_rate=1e-2).train(**pairs())
    assert "aligned" not in caplog.text


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"loss": "triplet"}, "Unknown loss 'triplet'. Valid options are"),
        ({"n_image": 0}, "needs image features, found 0"),
        ({"n_targets": 0, "n_classes": 0}, "Nothing to learn"),
        ({"temperature": 0.0}, "must be positive"),
        ({"max_epochs": 0}, "at least 1"),
        ({"batch_size": 1}, "at least 2"),
    ],
)
def test_parameters_out_of_range(hyper, message):
    with pytest.raises(ValueError, match=message):
        small(**hyper)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": [9]}, r"absent: \[9\]. Groups: \[0, 1, 2, 3\]"),
        ({"held_out": [0, 1, 2, 3]}, "Nothing is left to train on"),
        ({"gene": None}, r"`gene` must have shape \(240, 5\), found None"),
        ({"target": np.zeros((240, 3), np.float32)}, r"`target` must have shape \(240, 12\), found \(240, 3\)"),
        ({"image": np.zeros((240, 9), np.float32)}, r"`image` must have shape \(240, 10\)"),
        ({"label": np.full(240, 2)}, "below 2 classes"),
        ({"label": np.zeros(3, np.int64)}, r"`label` must have shape \(240,\)"),
        (
            {"measured": np.zeros(240, bool), "label": np.full(240, -1)},
            "None of the 240 spots to train on has what the model learns from",
        ),
        (
            {"measured": np.arange(240) < 180, "label": np.full(240, -1), "held_out": [3]},
            "None of the 60 spots held out has",
        ),
    ],
)
def test_data_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        small().train(**{**pairs(), **changes})

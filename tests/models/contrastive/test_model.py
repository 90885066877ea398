from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from stcontrast._models.contrastive import model as model_module
from stcontrast._training import seeded
from stcontrast.metrics import gene_correlation
from stcontrast.models import ContrastiveModel
from stcontrast.nn import SpotTable, soft_target_loss
from tests.models.contrastive.synthetic import pairs

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SMALL = {"n_image": 10, "n_gene": 5, "n_hidden": 12, "n_embedding": 16, "max_epochs": 4, "batch_size": 60}
LOSSES = ("soft_target", "info_nce", "similarity_target", "sigmoid")


def small(**options: Any) -> ContrastiveModel:
    return ContrastiveModel(**{**SMALL, **options})


def quick_learner(**options: Any) -> ContrastiveModel:
    return small(**{"max_epochs": 20, "input_dropout": 0.1, "dropout": 0.1, **options})


def weights(model: ContrastiveModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_planted_signal_is_learnt(trained):
    new = pairs(seed=1)
    assert gene_correlation(trained.predict_gene(new["image"]), new["gene"]).mean() > 0.9


def test_unseen_pairs_find_each_other(trained):
    new = pairs(100, seed=1)
    similarity = trained.embed_image(new["image"]) @ trained.embed_genes(new["gene"]).T
    rank = (similarity > np.diag(similarity)[:, None]).sum(axis=1)
    # by chance 5 of 100 pairs are among the first five
    assert (rank < 5).mean() > 0.5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_every_loss_learns(loss, weight):
    model = quick_learner(loss=loss, contrastive_weight=weight)
    model.train(**pairs())
    new = pairs(seed=1)
    assert gene_correlation(model.predict_gene(new["image"]), new["gene"]).mean() > 0.7
    history = model.history
    assert list(history["epoch"]) == list(range(1, 21))
    assert ("contrastive" in history) == (weight > 0)
    assert history["squared_error"].iloc[-1] < history["squared_error"].iloc[0]
    if weight:
        assert history["contrastive"].iloc[-1] < history["contrastive"].iloc[0]
        assert history["contrastive"].iloc[-1] < 0.98 * history["chance"].iloc[-1]


def test_without_a_contrast_the_gene_tower_stays_as_it_was():
    model = small(contrastive_weight=0.0, weight_decay=0.0)
    before = weights(model)
    model.train(**pairs())
    after = weights(model)
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith(("gene_tower", "contrast")), name


def test_embeddings_have_unit_length(trained):
    data = pairs(20)
    for embedding in (trained.embed_image(data["image"]), trained.embed_genes(data["gene"])):
        assert embedding.shape == (20, 32)
        assert embedding.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)
    predicted = trained.predict_gene(data["image"])
    assert predicted.shape == (20, 5)
    assert predicted.dtype == np.float32
    assert trained.embed_image(data["image"][:0]).shape == (0, 32)


def test_what_is_read_out_is_the_product_of_the_towers_written_out(trained):
    """One hidden layer with GELU, a linear embedding, a linear read-out; dropout has no part in a prediction."""
    image = torch.as_tensor(pairs(20)["image"])
    w = trained.module.state_dict()
    hidden = torch.nn.functional.gelu(image @ w["image_tower.1.weight"].T + w["image_tower.1.bias"])
    embedding = hidden @ w["image_tower.4.weight"].T + w["image_tower.4.bias"]
    read = embedding @ w["read_out.weight"].T + w["read_out.bias"]
    np.testing.assert_allclose(trained.predict_gene(image.numpy()), read, atol=1e-4)
    expected = embedding / embedding.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(trained.embed_image(image.numpy()), expected, atol=1e-5)
    gene = torch.as_tensor(pairs(20)["gene"])
    expected = gene @ w["gene_tower.weight"].T + w["gene_tower.bias"]
    found = trained.embed_genes(gene.numpy())
    np.testing.assert_allclose(found, expected / expected.norm(dim=1, keepdim=True), atol=1e-5)


def test_chunks_do_not_matter(trained, monkeypatch):
    data = pairs(50)
    whole = trained.embed_image(data["image"]), trained.predict_gene(data["image"])
    monkeypatch.setattr(model_module, "EMBEDDED_AT_ONCE", 7)
    np.testing.assert_allclose(trained.embed_image(data["image"]), whole[0], atol=1e-6)
    np.testing.assert_allclose(trained.predict_gene(data["image"]), whole[1], atol=1e-5)


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


def table_of(data: dict[str, NDArray]) -> SpotTable:
    return SpotTable.of(data["image"], data["slide"], np.zeros((len(data["slide"]), 2)), gene=data["gene"])


@pytest.mark.parametrize("batch_size", [2, 7, 25, 60, 1000])
def test_spots_of_two_slides_are_never_in_one_batch(batch_size):
    data = pairs(120)
    data["slide"] = np.repeat([5, 0, 2], [20, 70, 30])
    with seeded(0):
        epochs = [small().module.batches(table_of(data), batch_size) for _ in range(3)]
    for parts in epochs:
        for rows in parts:
            assert len(set(data["slide"][rows])) == 1
            assert len(rows) <= batch_size
        assert sorted(torch.cat(parts).tolist()) == list(range(120))
        lengths = {code: [len(rows) for rows in parts if data["slide"][rows[0]] == code] for code in (0, 2, 5)}
        # batches of a slide have the same size, give or take a spot
        assert all(max(each) - min(each) <= 1 for each in lengths.values())
    orders = [torch.cat(parts).tolist() for parts in epochs]
    assert orders[0] != orders[1] != orders[2]
    if batch_size < 70:
        # batches of the slides are mixed
        assert any(np.diff(data["slide"][order]).nonzero()[0].size > 2 for order in orders)


def test_other_slides_have_no_part_in_the_contrast():
    """What sets a slide apart is the same for all that a spot is compared with."""
    data = pairs()
    module, table = small().module, table_of(data)
    with seeded(0):
        parts = module.batches(table, 1000)
    with torch.no_grad():
        found = [float(module.losses(table, rows)["contrastive"]) for rows in parts]
        moved = table_of({**data, "gene": data["gene"] + np.float32([3, 0, -2, 5, 1])})
        again = [
            float(module.contrast(module.embed_genes(table, r), module.embed_image(table, r), moved, r)) for r in parts
        ]
    np.testing.assert_allclose(again, found, rtol=1e-4)


@pytest.mark.parametrize("max_epochs", [1, 4, 5])
def test_the_weights_are_the_mean_over_the_second_half(max_epochs):
    """The same training in a plain loop that averages: one batch an epoch, in whatever order, and nothing is dropped."""
    data = {**pairs(60), "slide": np.zeros(60, dtype=np.int64)}
    options = {"max_epochs": max_epochs, "input_dropout": 0.0, "dropout": 0.0, "contrastive_weight": 0.7}
    trained, plain = (small(**options) for _ in range(2))
    trained.train(**data)
    module, table = plain.module.train(), table_of(data)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.1)
    kept = []
    for _ in range(max_epochs):
        image, gene = (
            tower(part) for tower, part in ((module.image_tower, table.image), (module.gene_tower, table.gene))
        )
        centered = table.gene - table.gene.mean(dim=0)
        contrast = soft_target_loss(gene, image, targets_from=centered, temperature=0.1, target_temperature=0.3)
        error = ((module.read_out(image) - table.gene) ** 2).mean()
        optimizer.zero_grad()
        (0.7 * contrast + error).backward()
        optimizer.step()
        kept.append(weights(plain))
        assert trained.history["contrastive"][len(kept) - 1] == pytest.approx(contrast.item(), rel=1e-3)
        assert trained.history["squared_error"][len(kept) - 1] == pytest.approx(error.item(), rel=1e-3)
    second_half = kept[max_epochs // 2 :]
    for name, value in weights(trained).items():
        expected = sum(part[name] for part in second_half) / len(second_half)
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)
    if max_epochs > 1:
        name = "image_tower.4.weight"
        assert not torch.allclose(weights(trained)[name], kept[-1][name], atol=1e-3)


@pytest.mark.parametrize(("n", "batch_size", "epochs"), [(40, 1024, 60), (240, 20, 33), (240, 4, 10)])
def test_by_default_about_400_steps_within_10_to_60_epochs(monkeypatch, n, batch_size, epochs):
    seen = []
    monkeypatch.setattr(model_module, "train_pairs", lambda *_, **options: seen.append(options))
    small(max_epochs=None, batch_size=batch_size).train(**pairs(n))
    assert seen[0]["max_epochs"] == epochs
    assert seen[0]["average"]


def test_slides_may_have_any_numbers_and_one_is_the_default():
    data = pairs(60)
    one, other = small(), small()
    one.train(**data)
    other.train(**{**data, "slide": np.array([7, 9, 10, 300])[data["slide"]]})
    assert same(weights(one), weights(other))
    alone, unnamed = small(), small()
    alone.train(**{**data, "slide": np.zeros(60, dtype=np.int64)})
    unnamed.train(data["image"], data["gene"])
    assert same(weights(alone), weights(unnamed))
    assert not same(weights(one), weights(alone))


def test_a_slide_of_one_spot_is_no_obstacle():
    data = pairs(21)
    data["slide"] = np.repeat([0, 1], [20, 1])
    for loss in LOSSES:
        model = small(loss=loss)
        model.train(**data)
        assert np.isfinite(model.predict_gene(data["image"])).all()
        assert np.isfinite(model.embed_genes(data["gene"])).all()


def test_saved_and_read_again(trained, tmp_path):
    trained.save(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"model.json", "state.json", "arrays.safetensors"}
    again = ContrastiveModel.load(tmp_path / "model")
    data = pairs(30, seed=1)
    assert again.spec == trained.spec
    for name, key in (("embed_image", "image"), ("embed_genes", "gene"), ("predict_gene", "image")):
        np.testing.assert_array_equal(getattr(again, name)(data[key]), getattr(trained, name)(data[key]))
    with pytest.raises(FileExistsError, match="`overwrite=True`"):
        trained.save(tmp_path / "model")
    small().save(tmp_path / "model", overwrite=True)
    assert ContrastiveModel.load(tmp_path / "model").spec["n_embedding"] == 16


def test_the_spec_is_every_argument(tmp_path: Path):
    options: dict[str, Any] = {
        "n_image": 3, "n_gene": 2, "n_hidden": 4, "n_embedding": 5, "input_dropout": 0.2, "dropout": 0.3,
        "loss": "sigmoid", "contrastive_weight": 0.5, "temperature": 0.2, "target_temperature": 0.4,
        "learning_rate": 1e-3, "weight_decay": 0.01, "max_epochs": 3, "batch_size": 9, "seed": 7,
    }  # fmt: skip
    model = ContrastiveModel(**options)
    assert model.spec == options
    model.save(tmp_path)
    assert ContrastiveModel.load(tmp_path).spec == options
    contrast = model.module.contrast
    assert (contrast.loss, contrast.target_temperature) == ("sigmoid", 0.4)
    assert contrast.temperature.item() == pytest.approx(0.2)
    assert model.module.weights == {"contrastive": 0.5, "squared_error": 1.0}
    assert [m.p for m in model.module.modules() if isinstance(m, torch.nn.Dropout)] == [0.2, 0.3]
    optimizer = model._optimizer(model.module)[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (1e-3, 0.01)


def test_loading_executes_nothing_and_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        ContrastiveModel.load(tmp_path)


@pytest.mark.parametrize("loss", ["soft_target", "info_nce"])
def test_a_contrast_at_chance_is_reported(caplog, loss):
    data = pairs()
    data["gene"] = np.zeros_like(data["gene"])
    small(loss=loss, max_epochs=12).train(**data)
    assert "are not being aligned" in caplog.text


@pytest.mark.parametrize("loss", LOSSES)
def test_a_contrast_that_works_is_not(caplog, loss):
    quick_learner(loss=loss).train(**pairs())
    assert "aligned" not in caplog.text


def test_an_image_that_tells_a_tenth_of_the_coordinates_is_aligned(caplog):
    """Of soft targets the least loss is near chance: a small fall is all there is to gain."""
    rng = np.random.default_rng(0)
    gene = rng.normal(size=(600, 5)).astype(np.float32)
    noise = 3 * rng.normal(size=(600, 10)).astype(np.float32)
    noise[:, :5] += gene
    model = quick_learner(max_epochs=60, batch_size=600)
    model.train(noise / noise.std(), gene)
    assert model.history["contrastive"].iloc[-1] > 0.98 * model.history["chance"].iloc[-1]
    assert "aligned" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "triplet"}, "`loss` must be one of .soft_target., .*found .triplet."),
        ({"n_image": 0}, "must be a whole number of at least 1"),
        ({"n_gene": 0}, "must be a whole number of at least 1"),
        ({"n_hidden": 0}, "must be a whole number of at least 1"),
        ({"temperature": 0.0}, "must be a finite number above 0"),
        ({"target_temperature": -1.0}, "must be a finite number above 0"),
        ({"learning_rate": -1.0}, "must be a finite number of at least 0"),
        ({"contrastive_weight": -1.0}, "must be a finite number of at least 0"),
        ({"weight_decay": -1.0}, "must be a finite number of at least 0"),
        ({"max_epochs": -1}, "`max_epochs` must be a whole number of at least 0"),
        ({"batch_size": 1}, "`batch_size` must be a whole number of at least 2"),
        ({"dropout": 1.5}, "`dropout` must be a finite number of at least 0 and below 1"),
    ],
)
def test_parameters_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gene": np.zeros((240, 3), np.float32)}, r"`gene` must have shape \(240, 5\), found \(240, 3\)"),
        ({"gene": np.zeros((24, 5), np.float32)}, r"`gene` must have shape \(240, 5\), found \(24, 5\)"),
        ({"image": np.zeros((240, 9), np.float32)}, r"`image` must have shape \(240, 10\)"),
        ({"slide": np.zeros(3, np.int64)}, r"`slide` must have shape \(240,\), found \(3,\)"),
    ],
)
def test_data_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        small().train(**{**pairs(), **changes})


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_spots(n):
    with pytest.raises(ValueError, match=f"{n} spots are too few"):
        small().train(**{name: value[:n] for name, value in pairs().items()})


def test_no_epochs_leave_the_towers_untrained():
    model, untouched = small(max_epochs=0), small(max_epochs=0)
    model.train(**pairs())
    assert model.history is None
    image = pairs()["image"]
    np.testing.assert_array_equal(model.embed_image(image), untouched.embed_image(image))
    np.testing.assert_allclose(np.linalg.norm(model.embed_image(image), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("learning_rate", [100.0, 1e30])
def test_a_loss_that_is_no_number_stops_the_training(learning_rate):
    with pytest.raises(FloatingPointError, match=r"loss of the contrastive network is (nan|inf) in epoch \d+: "):
        small(learning_rate=learning_rate).train(**pairs())

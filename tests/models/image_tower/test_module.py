from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from stcontrast._models.image_tower import TowerOptions
from stcontrast._models.image_tower.batches import TowerTargets
from stcontrast._models.image_tower.module import ImageTower, TowerBatch, TowerHeads, adapt_batch_norm
from stcontrast._models.image_tower.training import tower_groups
from tests.models.image_tower.synthetic import QUICK, encoder, spots

OPTIONS = TowerOptions(**{**QUICK, "contrastive_weight": 0.3, "class_weight": 2.0})


def batch(n: int = 12) -> TowerBatch:
    rng = torch.Generator().manual_seed(0)
    return TowerBatch(
        torch.zeros(n, 1, 4, 4, 3, dtype=torch.uint8), torch.randn(n, 4, generator=rng), torch.arange(n) % 4 > 0,
        torch.arange(n) % 3 - 1, torch.arange(n) // 6, torch.rand(n, 2, generator=rng),
    )  # fmt: skip


def heads(*, center: bool = True) -> TowerHeads:
    torch.manual_seed(1)
    return TowerHeads(n_features=5, n_components=4, n_classes=2, center=center, options=OPTIONS)


def test_losses_start_at_chance() -> None:
    given = batch()
    module = heads()
    parts = module.losses(torch.zeros(12, 5), given)
    # the mean is predicted; all images are alike
    expected = given.gene[given.measured].square().sum(dim=1).mean()
    torch.testing.assert_close(parts["expression"], expected)
    assert float(parts["contrastive"].detach()) >= math.log(9) - 1e-4
    total = parts["expression"] + 0.3 * parts["contrastive"] + 2.0 * parts["class"]
    torch.testing.assert_close(module.total(parts), total)


def test_spots_without_counts_or_label_have_no_part_in_those_losses() -> None:
    given, features = batch(), torch.randn(12, 5)
    module = heads()
    assert module.expression is not None
    nn.init.normal_(module.expression.weight)
    before = module.losses(features, given)
    components, label = given.gene.clone(), given.label.clone()
    components[~given.measured] = 99.0
    after = module.losses(features, given._replace(gene=components))
    assert all(torch.equal(before[name], after[name]) for name in before)
    label[:] = -1
    assert "class" not in module.losses(features, given._replace(label=label))
    nothing = torch.zeros(12, dtype=torch.bool)
    assert set(module.losses(features, given._replace(measured=nothing))) == {"class"}


@pytest.mark.parametrize("center", [True, False])
def test_a_shift_of_a_slide_is_seen_only_where_features_are_not_centred(center: bool) -> None:
    given, features = batch(), torch.randn(12, 5)
    module = heads(center=center)
    shifted = features + given.slide[:, None] * torch.tensor([3.0, -2.0, 5.0, 0.5, 1.0])
    one, other = (module.losses(part, given)["class"] for part in (features, shifted))
    assert torch.allclose(one, other, atol=1e-4) == center


def test_every_field_goes_through_the_same_network() -> None:
    base = encoder()
    tower = ImageTower(base._model, mean=base.mean or (), std=base.std or (), options=OPTIONS).eval()
    crops = np.random.default_rng(0).integers(0, 256, (3, 2, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        found = tower(torch.from_numpy(crops)).numpy()
    np.testing.assert_allclose(found, np.concatenate([base(crops[:, 0]), base(crops[:, 1])], axis=1), atol=1e-5)


def test_mean_and_deviation_may_be_whole_numbers() -> None:
    """(0, 0, 0) and (1, 1, 1), for networks that were trained on pixels of 0 to 1."""
    base, crops = encoder(), torch.randint(256, (3, 1, 32, 32, 3), dtype=torch.uint8)
    towers = [
        ImageTower(base._model, mean=(number(0),) * 3, std=(number(1),) * 3, options=OPTIONS).eval()
        for number in (int, float)
    ]
    torch.testing.assert_close(*(tower(crops) for tower in towers))
    # features get the type of these
    assert towers[0].mean.dtype == towers[0].std.dtype == torch.float32


def test_adapted_statistics_are_those_of_the_crops() -> None:
    backbone = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1))
    tower = ImageTower(backbone, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), options=OPTIONS)
    crops = torch.randint(256, (20, 1, 8, 8, 3), dtype=torch.uint8)
    adapt_batch_norm(tower, crops.split(10))
    expected = ((crops / 255 - 0.5) / 0.25).mean(dim=(0, 1, 2, 3))
    torch.testing.assert_close(backbone[0].running_mean, expected)
    assert backbone[0].momentum == 0.1
    tower.train()
    assert not backbone[0].training
    assert backbone[1].training


def test_the_nearer_to_the_crop_the_slower_a_block_learns() -> None:
    backbone = encoder()._model.requires_grad_()
    groups = tower_groups(backbone, TowerOptions(learning_rate=1.0, layer_decay=0.5))
    rate = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    assert set(rate) == {id(weight) for weight in backbone.parameters()}
    assert rate[id(backbone.conv1[0].weight)] == 0.5 ** (len(set(rate.values())) - 1)
    assert max(rate.values()) == 1.0
    assert rate[id(backbone.layer4[-1].conv2.weight)] > rate[id(backbone.layer1[0].conv1.weight)]
    decayed = {id(weight) for group in groups if group["weight_decay"] > 0 for weight in group["params"]}
    assert decayed == {id(weight) for weight in backbone.parameters() if weight.ndim > 1}


def test_components_are_those_of_the_training_rows_and_see_nothing_else() -> None:
    data = spots(n_spots=30)
    rows = np.flatnonzero(data.donor < "2")
    targets = TowerTargets.of(data, rows, n_components=3)
    seen = rows[data.measured[rows]]
    centered = np.concatenate([
        data.observed[part] - data.observed[part].mean(axis=0)
        for part in (seen[data.slide[seen] == code] for code in (0, 1))
    ]).astype(np.float64)  # fmt: skip
    scores = PCA(3, svd_solver="full").fit_transform(centered / centered.std(axis=0))
    scores /= np.sqrt(scores.var(axis=0).sum())
    np.testing.assert_allclose(np.abs(targets.gene[seen]), np.abs(scores), atol=1e-4)
    assert not targets.gene[~data.measured].any()
    data.observed[data.donor == "2"] += 7 * np.random.default_rng(0).random((30, 6), dtype=np.float32)
    again = TowerTargets.of(data, rows, n_components=3)
    np.testing.assert_array_equal(again.gene[rows], targets.gene[rows])


def test_without_counts_or_labels_there_is_no_such_target() -> None:
    data = spots()
    rows = np.arange(48)
    data.depth[:], data.label[:] = 0, -1
    targets = TowerTargets.of(data, rows, n_components=3)
    assert targets.gene.shape == (48, 0)
    assert targets.n_classes == 0

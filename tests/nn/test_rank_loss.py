from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stcontrast.nn import Contrast, DeepSets, DualScalePair, FieldPair, MomentumPair, SpotTable, ThreeViews, rank_loss


def spots(n: int, n_genes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    predicted, target = torch.randn(2, n, n_genes, generator=generator, dtype=torch.float64)
    return predicted, target


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_mean_over_pairs_of_a_slide_and_genes():
    predicted, target = spots(6, 2, 0)
    slide = [0, 1, 0, 1, 0, 2]
    losses = []
    for i, j in combinations(range(6), 2):
        if slide[i] == slide[j]:
            for g in range(2):
                share, guess = (
                    sigmoid(float(target[i, g] - target[j, g])),
                    sigmoid(float(predicted[i, g] - predicted[j, g])),
                )
                losses.append(-share * math.log(guess) - (1 - share) * math.log(1 - guess))
    assert len(losses) == 2 * 4
    assert rank_loss(predicted, target, torch.tensor(slide)).item() == pytest.approx(np.mean(losses))


def test_of_counts_it_is_the_share_of_the_pair():
    counts = torch.tensor([[3.0], [1.0]])
    guess = torch.tensor([[0.7], [0.0]])
    expected = -0.75 * math.log(sigmoid(0.7)) - 0.25 * math.log(1 - sigmoid(0.7))
    assert rank_loss(guess, counts.log(), torch.zeros(2)).item() == pytest.approx(expected)


@given(st.integers(2, 8), st.floats(-5, 5), st.integers(0, 99))
def test_a_shift_of_a_slide_changes_nothing(n, shift, seed):
    predicted, target = spots(2 * n, 3, seed)
    slide = torch.arange(2 * n) % 2
    before = rank_loss(predicted, target, slide).item()
    assert rank_loss(predicted, target + shift * slide[:, None], slide).item() == pytest.approx(before)
    assert rank_loss(predicted + shift * slide[:, None], target, slide).item() == pytest.approx(before)


def test_least_where_the_differences_are_right():
    _, target = spots(7, 3, 1)
    predicted = (target + 2.0).requires_grad_()
    loss = rank_loss(predicted, target, torch.zeros(7))
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert gradient.abs().max() < 1e-12
    worse = rank_loss(target + 0.1 * torch.randn(7, 3), target, torch.zeros(7))
    assert worse > loss.detach()


def test_constant_predictions_give_ln_2():
    _, target = spots(5, 2, 2)
    assert rank_loss(torch.zeros(5, 2), target, torch.zeros(5)).item() == pytest.approx(math.log(2))


def test_without_a_pair_there_is_no_loss_but_a_gradient():
    predicted = torch.randn(3, 2, requires_grad=True)
    loss = rank_loss(predicted, torch.randn(3, 2), torch.arange(3))
    loss.backward()
    assert loss.item() == 0
    assert predicted.grad is not None


def test_a_sample_of_the_pairs_estimates_the_mean_over_all():
    predicted, target = spots(30, 4, 3)
    slide = torch.zeros(30)
    whole = rank_loss(predicted, target, slide, max_pairs=435).item()
    torch.manual_seed(0)
    drawn = [rank_loss(predicted, target, slide, max_pairs=40).item() for _ in range(200)]
    assert np.std(drawn) > 0
    assert np.mean(drawn) == pytest.approx(whole, rel=0.03)


SIZES: dict[str, Any] = {"n_image": 5, "n_targets": 3}
PAIR: dict[str, Any] = {**SIZES, "n_gene": 3, "n_embedding": 8, "dropout": 0.0}
REGRESSORS = {
    "three views": lambda: ThreeViews(
        **SIZES, n_model=8, n_heads=2, n_layers=1, dropout=0.0, distillation=0.0, max_sequence=50
    ),
    "deep sets": lambda: DeepSets(**SIZES, n_hidden=4, dropout=0.0, n_members=1),
    "dual scale": lambda: DualScalePair(
        Contrast(), variant="paper", **PAIR, n_layers=1, n_heads=2, query_weight=1.0, neighbor_weight=1.0
    ),
    "fields": lambda: FieldPair(Contrast(), **PAIR, n_fields=2, bandwidth=0.2, weights={}),
    "momentum": lambda: MomentumPair(
        Contrast(), **PAIR, n_fields=2, n_layers=1, n_heads=2, momentum=0.9, queue_size=0, distillation=0.0, weights={}
    ),
}


@pytest.mark.parametrize("name", REGRESSORS)
def test_every_regression_of_a_network_can_minimise_it(name):
    rng = np.random.default_rng(0)
    xy = np.array([(x, y) for y in range(3) for x in range(4)], dtype=np.float64)
    image, both = rng.normal(size=(12, 5)).astype(np.float32), rng.normal(size=(12, 3)).astype(np.float32)
    table = SpotTable.of(image, np.repeat([0, 1], 6), xy, n_nearest=4, gene=both, target=both)
    rows = torch.arange(12)
    torch.manual_seed(0)
    module = REGRESSORS[name]().eval()
    squared = module.losses(table, rows)["expression"].item()
    module.expression_loss = "rank"
    found, predicted = module.losses(table, rows)["expression"].item(), module.regress(table, rows)
    expected = rank_loss(predicted, table.target, table.slide).item()
    if name == "fields":
        # its error has a further part, the correlation over the batch
        correlation = [np.corrcoef(predicted[:, g].detach(), both[:, g])[0, 1] for g in range(3)]
        expected += 1 - np.mean(correlation)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found != pytest.approx(squared, rel=1e-3)

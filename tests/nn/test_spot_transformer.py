from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import erf

from stcontrast.nn import SpotTransformer

N_GENES, N_HEADS, N_PER_HEAD, N_POSITIONS = 3, 2, 2, 16


def make(n_layers: int = 2) -> SpotTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = SpotTransformer(
            N_GENES, n_layers=n_layers, n_heads=N_HEADS, n_per_head=N_PER_HEAD, n_positions=N_POSITIONS
        ).double()
        for parameter in module.parameters():
            # norms and biases too: with ones and zeros half of the formula would not show
            torch.nn.init.normal_(parameter)
    return module.eval()


def spots(n: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    expression = torch.randn(n, N_GENES, generator=generator, dtype=torch.float64)
    return expression, torch.randint(0, 14, (n, 2), generator=generator) / 2


def array(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().numpy()


def layer_norm(x: np.ndarray, norm: torch.nn.LayerNorm) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * array(norm.weight) + array(norm.bias)


def linear(x: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    return x @ array(layer.weight).T + (0 if layer.bias is None else array(layer.bias))


def plain(module: SpotTransformer, expression: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    x = expression.copy()
    for i, (column, row) in enumerate(lattice):
        x[i] += array(module.x_position.weight)[int(2 * column)] + array(module.y_position.weight)[int(2 * row)]
    inner = N_HEADS * N_PER_HEAD
    blocks: Any = module.blocks
    for block in blocks:
        all_parts = linear(layer_norm(x, block.attention_norm), block.query_key_value)
        query, key, value = all_parts[:, :inner], all_parts[:, inner : 2 * inner], all_parts[:, 2 * inner :]
        attended = np.zeros((len(x), inner))
        for head in range(N_HEADS):
            own = slice(head * N_PER_HEAD, (head + 1) * N_PER_HEAD)
            for i in range(len(x)):
                odds = np.array([math.exp(query[i, own] @ key[j, own] / math.sqrt(N_PER_HEAD)) for j in range(len(x))])
                attended[i, own] = odds / odds.sum() @ value[:, own]
        x = x + linear(attended, block.output)
        norm, first, _, second = block.feed_forward
        hidden = linear(layer_norm(x, norm), first)
        x = x + linear(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, second)
    return x


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("n_spots", [1, 5])
def test_is_the_published_formula(n_layers, n_spots):
    module, (expression, lattice) = make(n_layers), spots(n_spots)
    expected = plain(module, expression.numpy(), lattice.numpy())
    np.testing.assert_allclose(module(expression, lattice).detach().numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("n_genes", "n_layers", "n_heads", "n_per_head", "n_positions"), [(3, 2, 2, 2, 16), (50, 1, 8, 64, 512)]
)
def test_number_of_parameters(n_genes, n_layers, n_heads, n_per_head, n_positions):
    module = SpotTransformer(
        n_genes, n_layers=n_layers, n_heads=n_heads, n_per_head=n_per_head, n_positions=n_positions
    )
    inner = n_heads * n_per_head
    attention = 2 * n_genes + 3 * inner * n_genes + inner * n_genes + n_genes
    feed_forward = 2 * n_genes + 2 * (n_genes**2 + n_genes)
    expected = 2 * n_positions * n_genes + n_layers * (attention + feed_forward)
    assert sum(p.numel() for p in module.parameters()) == expected


@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
def test_the_order_of_the_spots_does_not_matter(order, seed):
    order = list(order)
    module, (expression, lattice) = make(), spots(6, seed)
    torch.testing.assert_close(module(expression[order], lattice[order]), module(expression, lattice)[order])


def test_the_other_spots_matter():
    module, (expression, lattice) = make(), spots()
    changed = expression.clone()
    changed[4, 0] += 1
    assert float((module(changed, lattice) - module(expression, lattice))[:4].detach().abs().max()) > 1e-3


@pytest.mark.parametrize("axis", [0, 1])
def test_the_position_matters_to_half_a_pitch(axis):
    module, (expression, lattice) = make(), spots()
    moved = lattice.clone()
    moved[2, axis] += 0.5
    before, after = module(expression, lattice), module(expression, moved)
    assert float((before - after)[2].detach().abs().max()) > 1e-3
    jittered = lattice + 0.2 * torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(expression, jittered), before)


def test_columns_and_rows_have_separate_tables():
    module, (expression, lattice) = make(), spots()
    swapped = module(expression, lattice.flip(1))
    assert float((swapped - module(expression, lattice)).detach().abs().max()) > 1e-3


def test_positions_beyond_the_tables_are_read_as_their_end():
    module, (expression, lattice) = make(), spots()
    far, end = lattice.clone(), lattice.clone()
    far[1], end[1] = 1e6, (N_POSITIONS - 1) / 2
    torch.testing.assert_close(module(expression, far), module(expression, end))


def test_a_large_slide_fits_the_tables_and_positions_start_small():
    module = SpotTransformer(4)
    assert module.x_position.num_embeddings == module.y_position.num_embeddings == 512
    assert 0.01 < float(module.x_position.weight.detach().std()) < 0.03

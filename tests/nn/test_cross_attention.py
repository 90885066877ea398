from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import erf

from stcontrast.nn import CrossEncoder

N_MODEL, N_HEADS = 4, 2


def make(n_layers: int = 1, mlp_ratio: float = 1.0, dropout: float = 0.5) -> CrossEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = CrossEncoder(
            N_MODEL, n_layers=n_layers, n_heads=N_HEADS, mlp_ratio=mlp_ratio, dropout=dropout
        ).double()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
    return module.eval()


def tokens(n: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, n_tokens, N_MODEL, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def array(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().numpy()


def layer_norm(x: np.ndarray, norm: torch.nn.LayerNorm) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * array(norm.weight) + array(norm.bias)


def linear(x: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    return x @ array(layer.weight).T + array(layer.bias)


def plain_attention(query: np.ndarray, context: np.ndarray, block: Any) -> np.ndarray:
    q, k, v = (
        x @ array(part.weight).T for part, x in ((block.query, query), (block.key, context), (block.value, context))
    )
    width = N_MODEL // N_HEADS
    attended = np.zeros_like(q)
    for head in range(N_HEADS):
        own = slice(head * width, (head + 1) * width)
        odds = np.exp(q[:, own] @ k[:, own].T / math.sqrt(width))
        attended[:, own] = odds / odds.sum(axis=1, keepdims=True) @ v[:, own]
    return linear(attended, block.output[0])


def plain(module: CrossEncoder, query: np.ndarray, context: np.ndarray) -> np.ndarray:
    blocks: Any = module.blocks
    for block in blocks:
        norm = block.attention_norm
        query = query + plain_attention(layer_norm(query, norm), layer_norm(context, norm), block)
        norm, first, _, _, second, _ = block.feed_forward
        hidden = linear(layer_norm(query, norm), first)
        query = query + linear(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, second)
    return layer_norm(query, module.norm)


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("mlp_ratio", [1.0, 2.0])
@pytest.mark.parametrize(("n_query", "n_context"), [(1, 1), (1, 9), (3, 2)])
def test_is_the_published_formula(n_layers, mlp_ratio, n_query, n_context):
    module, query, context = make(n_layers, mlp_ratio), tokens(3, n_query), tokens(3, n_context, seed=1)
    found = module(query, context).detach().numpy()
    for one, q, c in zip(found, query.numpy(), context.numpy(), strict=True):
        np.testing.assert_allclose(one, plain(module, q, c), atol=1e-9)


def test_one_token_of_context_leaves_attention_no_choice():
    """The softmax of one logit is 1: what attention adds is a linear map of the context, whatever the query."""
    (block,) = make().blocks
    query, context = tokens(3, 1), tokens(3, 1, seed=1)
    attended = [block.attended(q, context) for q in (query, 5 - query)]
    torch.testing.assert_close(attended[0], attended[1])
    torch.testing.assert_close(attended[0], block.output(context @ block.value.weight.T))
    two = torch.cat([context, tokens(3, 1, seed=2)], dim=1)
    choices = [block.attended(q, two) for q in (query, 5 - query)]
    assert float((choices[0] - choices[1]).detach().abs().max()) > 1e-3


@given(order=st.permutations(range(5)), seed=st.integers(0, 99))
def test_the_order_of_the_context_does_not_matter(order, seed):
    module, query, context = make(), tokens(2, 1, seed), tokens(2, 5, seed + 1)
    torch.testing.assert_close(module(query, context[:, list(order)]), module(query, context))


def test_pairs_of_a_batch_do_not_mix():
    module, query, context = make(), tokens(3, 1), tokens(3, 4, seed=1)
    torch.testing.assert_close(module(query, context)[1:2], module(query[1:2], context[1:2]))


def test_dropout_acts_in_training_only():
    module, query, context = make(), tokens(3, 1), tokens(3, 4, seed=1)
    assert torch.equal(module(query, context), module(query, context))
    module.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(module(query, context), module(query, context))


def test_dropout_is_on_the_output_of_attention_and_not_on_its_weights():
    """Dropout of a weight would scale what a head finds; of the output, it zeroes single numbers of it."""
    (block,) = make(dropout=0.5).train().blocks
    query, context = tokens(50, 1), tokens(50, 4, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = block.attended(query, context)
    expected = 2 * block.eval().attended(query, context)
    kept = found != 0
    torch.testing.assert_close(found[kept], expected[kept])
    assert 0.3 < float(kept.double().mean()) < 0.7


@pytest.mark.parametrize(("n_layers", "mlp_ratio"), [(1, 1.0), (2, 2.0)])
def test_number_of_parameters(n_layers, mlp_ratio):
    d, hidden = N_MODEL, int(mlp_ratio * N_MODEL)
    attention = 4 * d * d + d
    feed_forward = 2 * d + (d * hidden + hidden) + (hidden * d + d)
    expected = n_layers * (2 * d + attention + feed_forward) + 2 * d
    assert sum(p.numel() for p in make(n_layers, mlp_ratio).parameters()) == expected

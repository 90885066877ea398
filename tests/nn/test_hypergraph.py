from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stcontrast.nn import HypergraphConvolution, HypergraphEncoder, hyperedges


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_incidence(features: np.ndarray, n_similar: int) -> np.ndarray:
    n = len(features)
    incidence = np.zeros((n, n))
    for edge in range(n):
        cosines = []
        for node in range(n):
            if node != edge:
                lengths = math.sqrt((features[node] ** 2).sum() * (features[edge] ** 2).sum())
                cosines.append((features[node] @ features[edge] / lengths, node))
        incidence[edge, edge] = 1
        for _, node in sorted(cosines, reverse=True)[:n_similar]:
            incidence[node, edge] = 1
    return incidence


def plain_convolution(nodes: np.ndarray, incidence: np.ndarray, layer: HypergraphConvolution) -> np.ndarray:
    of_node, of_edge = np.diag(1 / incidence.sum(axis=1)), np.diag(1 / incidence.sum(axis=0))
    theta, bias = layer.linear.weight.detach().numpy().T, layer.bias.detach().numpy()
    return of_node @ incidence @ of_edge @ incidence.T @ nodes @ theta + bias


def encoder() -> HypergraphEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = HypergraphEncoder(5, 8, 4).double()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
    return module


@given(seed=st.integers(0, 999), n_nodes=st.integers(2, 10), n_similar=st.integers(1, 4))
def test_hyperedges_are_those_of_a_loop(seed, n_nodes, n_similar):
    features = normal(3, n_nodes, 5, seed=seed)
    found = hyperedges(features, n_similar=n_similar).numpy()
    for one, nodes in zip(found, features.numpy(), strict=True):
        np.testing.assert_array_equal(one, brute_incidence(nodes, n_similar))


def test_every_hyperedge_joins_a_node_with_three_others():
    incidence = hyperedges(normal(4, 9, 6))
    assert incidence.shape == (4, 9, 9)
    assert bool((incidence.diagonal(dim1=1, dim2=2) == 1).all())
    assert bool((incidence.sum(dim=1) == 4).all())
    assert set(incidence.unique().tolist()) == {0.0, 1.0}
    # similarity is not mutual: a node may lie in many hyperedges or in its own alone
    assert not torch.equal(incidence, incidence.transpose(1, 2))


def test_length_does_not_make_similar():
    features = normal(1, 9, 6)
    assert torch.equal(hyperedges(features), hyperedges(features * torch.arange(1, 10)[:, None]))


@pytest.mark.parametrize("n_nodes", [1, 2, 3, 4])
def test_small_neighbourhoods_are_one_hyperedge(n_nodes):
    assert torch.equal(hyperedges(normal(2, n_nodes, 5)), torch.ones(2, n_nodes, n_nodes, dtype=torch.float64))


def test_nodes_without_features_and_nodes_that_repeat():
    features = normal(1, 9, 6)
    features[0, 4:] = features[0, 0]
    features[0, 1] = 0
    incidence = hyperedges(features)
    assert bool((incidence.sum(dim=1) == 4).all())
    assert bool((incidence.diagonal(dim1=1, dim2=2) == 1).all())


@given(seed=st.integers(0, 999))
def test_convolution_is_the_matrix_product(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = HypergraphConvolution(5, 3).double()
        torch.nn.init.normal_(layer.bias)
    nodes, incidence = normal(4, 9, 5, seed=seed), hyperedges(normal(4, 9, 6, seed=seed + 1))
    found = layer(nodes, incidence).detach().numpy()
    for one, x, h in zip(found, nodes.numpy(), incidence.numpy(), strict=True):
        np.testing.assert_allclose(one, plain_convolution(x, h, layer), atol=1e-10)


def test_encoder_is_two_convolutions_each_with_a_relu():
    module, nodes, incidence = encoder(), normal(2, 9, 5), hyperedges(normal(2, 9, 6, seed=1))
    for one, x, h in zip(module(nodes, incidence).detach().numpy(), nodes.numpy(), incidence.numpy(), strict=True):
        hidden = np.maximum(plain_convolution(x, h, module.first), 0)
        np.testing.assert_allclose(one, np.maximum(plain_convolution(hidden, h, module.second), 0), atol=1e-10)


def test_number_of_parameters():
    module = HypergraphEncoder(7, 20, 10)
    assert sum(p.numel() for p in module.parameters()) == 7 * 20 + 20 + 20 * 10 + 10


@given(order=st.permutations(range(9)), seed=st.integers(0, 99))
def test_the_order_of_the_nodes_does_not_matter(order, seed):
    order = list(order)
    module, nodes, features = encoder(), normal(2, 9, 5, seed=seed), normal(2, 9, 6, seed=seed + 1)
    incidence, shuffled = hyperedges(features), hyperedges(features[:, order])
    assert torch.equal(shuffled, incidence[:, order][:, :, order])
    torch.testing.assert_close(module(nodes[:, order], shuffled), module(nodes, incidence)[:, order])


def test_nodes_that_are_the_same_stay_the_same():
    """Every step is a mean over a hyperedge and one over hyperedges."""
    module, node = encoder(), normal(5)
    out = module(node.expand(1, 9, 5), hyperedges(normal(1, 9, 6)))
    torch.testing.assert_close(out, out[:, :1].expand_as(out))


@given(n_input=st.integers(1, 40), n_output=st.integers(1, 40))
def test_weights_start_as_glorot_s(n_input, n_output):
    layer = HypergraphConvolution(n_input, n_output)
    bound = math.sqrt(6 / (n_input + n_output))
    assert float(layer.linear.weight.detach().abs().max()) <= bound
    assert not layer.bias.detach().any()


def test_weights_start_wider_than_a_linear_layer_s():
    weight = HypergraphConvolution(400, 100).linear.weight.detach()
    # uniform up to b: deviation b / √3
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / 500), rel=0.02)


def test_a_node_in_many_places_goes_through_the_weights_once():
    torch.manual_seed(0)
    encoder, different = HypergraphEncoder(4, 6, 3), torch.randn(5, 4)
    place = torch.tensor([[0, 1, 2], [2, 0, 4], [3, 3, 1]])
    incidence = hyperedges(different[place], n_similar=1)
    found = encoder(different, incidence, place)
    torch.testing.assert_close(found, encoder(different[place], incidence))
    gradients = [
        torch.autograd.grad(out.square().sum(), encoder.first.linear.weight)[0]
        for out in (encoder(different, incidence, place), encoder(different[place], incidence))
    ]
    torch.testing.assert_close(*gradients)

"""Hypergraphs over the neighbourhood of a spot."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["HypergraphConvolution", "HypergraphEncoder", "hyperedges"]


def hyperedges(features: Tensor, *, n_similar: int = 3) -> Tensor:
    """Join every node with those most similar to it, by cosine.

    Parameters
    ----------
    features
        Features of the nodes (n, n_nodes, n_features).
    n_similar
        Most similar other nodes that join a node's hyperedge.

    Returns
    -------
    Incidence (n, n_nodes, n_nodes), float: ``[:, v, e]`` is 1 where node v lies in hyperedge e. Hyperedge e holds
    node e and its most similar ones.

    References
    ----------
    Qu et al. 2025 (NH²ST).
    """
    n_nodes = features.shape[1]
    unit = functional.normalize(features, dim=-1)
    itself = torch.eye(n_nodes, dtype=torch.bool, device=features.device)
    similarity = (unit @ unit.transpose(1, 2)).masked_fill(itself, -torch.inf)
    similar = similarity.topk(min(n_similar, n_nodes - 1), dim=-1).indices
    joined = torch.zeros_like(similarity).scatter_(-1, similar, 1.0) + itself
    return joined.clamp(max=1.0).transpose(1, 2)


class HypergraphConvolution(nn.Module):
    r"""One step along the hyperedges: :math:`D^{-1} H B^{-1} H^\top X \Theta + b`.

    D has the degrees of the nodes, B those of the hyperedges.

    Parameters
    ----------
    n_input, n_output
        Features of a node before and after.

    References
    ----------
    Bai et al. 2021 (Hypergraph convolution and hypergraph attention), without attention.
    """

    def __init__(self, n_input: int, n_output: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_input, n_output, bias=False)
        self.bias = nn.Parameter(torch.zeros(n_output))

    def forward(self, nodes: Tensor, incidence: Tensor) -> Tensor:
        """Nodes (n, n_nodes, n_input) with their incidence (n, n_nodes, n_edges), to (n, n_nodes, n_output)."""
        of_edge = incidence.transpose(1, 2) @ self.linear(nodes) / incidence.sum(dim=1).unsqueeze(-1)
        out: Tensor = incidence @ of_edge / incidence.sum(dim=2).unsqueeze(-1) + self.bias
        return out


class HypergraphEncoder(nn.Module):
    """Two convolutions, each followed by a ReLU.

    Parameters
    ----------
    n_input, n_hidden, n_output
        Features of a node: before, between, after.
    """

    def __init__(self, n_input: int, n_hidden: int, n_output: int) -> None:
        super().__init__()
        self.first = HypergraphConvolution(n_input, n_hidden)
        self.second = HypergraphConvolution(n_hidden, n_output)

    def forward(self, nodes: Tensor, incidence: Tensor) -> Tensor:
        """Nodes (n, n_nodes, n_input) to (n, n_nodes, n_output)."""
        hidden = functional.relu(self.first(nodes, incidence))
        return functional.relu(self.second(hidden, incidence))

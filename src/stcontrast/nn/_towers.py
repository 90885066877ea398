"""Encoders of one modality: projection head, transformer, cross-attention, hypergraph."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "N_POSITIONS",
    "CrossEncoder",
    "HypergraphConvolution",
    "HypergraphEncoder",
    "ProjectionHead",
    "SpotTransformer",
    "hyperedges",
]


class ProjectionHead(nn.Module):
    """Two linear layers with a residual and a layer norm.

    ``p = Linear(x)``, ``h = Dropout(Linear(GELU(p)))``, ``out = LayerNorm(h + p)``.

    Parameters
    ----------
    n_input
        Number of input features.
    n_output
        Dimension of the embedding.
    dropout
        Dropout after the second layer.
    input_dropout
        Dropout on the input.

    References
    ----------
    Used in BLEEP (Xie et al. 2023), mclSTExp (Min et al. 2024) and methods derived from them.
    """

    def __init__(self, n_input: int, n_output: int, *, dropout: float = 0.1, input_dropout: float = 0.0) -> None:
        super().__init__()
        self.projection = nn.Linear(n_input, n_output)
        self.hidden = nn.Linear(n_output, n_output)
        self.norm = nn.LayerNorm(n_output)
        self.dropout = nn.Dropout(dropout)
        self.input_dropout = nn.Dropout(input_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (n, n_input) into (n, n_output)."""
        projected = self.projection(self.input_dropout(x))
        hidden: Tensor = self.dropout(self.hidden(functional.gelu(projected)))
        normed: Tensor = self.norm(hidden + projected)
        return normed


class _CrossBlock(nn.Module):
    def __init__(self, n_model: int, *, n_heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = int(mlp_ratio * n_model)
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(n_model)
        self.query = nn.Linear(n_model, n_model, bias=False)
        self.key = nn.Linear(n_model, n_model, bias=False)
        self.value = nn.Linear(n_model, n_model, bias=False)
        self.output = nn.Sequential(nn.Linear(n_model, n_model), nn.Dropout(dropout))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(n_model), nn.Linear(n_model, hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, n_model), nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        query = query + self.attended(self.attention_norm(query), self.attention_norm(context))
        out: Tensor = query + self.feed_forward(query)
        return out

    def attended(self, query: Tensor, context: Tensor) -> Tensor:
        """What the queries (n, n_query, n_model) find in the context (n, n_context, n_model), both normed."""
        found: Tensor = self.value(context)
        if context.shape[1] == 1:  # the weight of a single token is 1, whatever is asked
            found = found.expand_as(query)
        else:
            inputs = self.query(query), self.key(context), found
            heads = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in inputs)
            found = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        attended: Tensor = self.output(found)
        return attended


class CrossEncoder(nn.Module):
    """Pre-norm cross-attention and feed-forward with residuals, and a layer norm at the end.

    One layer norm of a block serves query and context; queries, keys and values have no bias; dropout acts on the output
    of the attention and in the feed-forward, not on the weights of the attention.

    Parameters
    ----------
    n_model
        Dimension of the tokens.
    n_layers, n_heads
        Blocks and heads.
    mlp_ratio
        Width of the feed-forward, in model dimensions.
    dropout
        Dropout of both outputs, and in the feed-forward.

    References
    ----------
    Qu et al. 2025 (NH²ST), as in the published code.
    """

    def __init__(
        self, n_model: int, *, n_layers: int = 1, n_heads: int = 8, mlp_ratio: float = 1.0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _CrossBlock(n_model, n_heads=n_heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(n_model)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """Tokens (n, n_query, n_model), after attention to a context (n, n_context, n_model)."""
        for block in self.blocks:
            query = block(query, context)
        out: Tensor = self.norm(query)
        return out


# half pitches along a side; 78 rows of Visium take 135 of them
N_POSITIONS: Final = 512


class _SelfBlock(nn.Module):
    def __init__(self, n_genes: int, *, n_heads: int, n_per_head: int) -> None:
        super().__init__()
        inner = n_heads * n_per_head
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(n_genes)
        self.query_key_value = nn.Linear(n_genes, 3 * inner, bias=False)
        self.output = nn.Linear(inner, n_genes)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(n_genes), nn.Linear(n_genes, n_genes), nn.GELU(), nn.Linear(n_genes, n_genes)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(self.attention_norm(x)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.n_heads, -1)).transpose(0, 1) for part in parts)
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
        x = x + self.output(attended)
        out: Tensor = x + self.feed_forward(x)
        return out


class SpotTransformer(nn.Module):
    """Spot encoder of mclSTExp: expression and learnt positions, with self-attention over the spots of one slide.

    ``e = expression + Emb_x[x] + Emb_y[y]``, then blocks of pre-norm self-attention (queries, keys and values
    without bias) and a pre-norm feed-forward of the same width, both with a residual. The model dimension is the
    number of genes.

    Parameters
    ----------
    n_genes
        Number of genes.
    n_layers, n_heads, n_per_head
        Blocks, heads, and dimensions of a head.
    n_positions
        Number of positions along each axis.

    References
    ----------
    Min et al. 2024 (mclSTExp, Briefings in Bioinformatics bbae551).
    """

    def __init__(
        self, n_genes: int, *, n_layers: int = 2, n_heads: int = 8, n_per_head: int = 64, n_positions: int = N_POSITIONS
    ) -> None:
        super().__init__()
        self.x_position = nn.Embedding(n_positions, n_genes)
        self.y_position = nn.Embedding(n_positions, n_genes)
        for table in (self.x_position, self.y_position):
            # the default deviation of 1 is as large as expression itself and would hide it
            nn.init.normal_(table.weight, std=0.02)
        blocks = [_SelfBlock(n_genes, n_heads=n_heads, n_per_head=n_per_head) for _ in range(n_layers)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, expression: Tensor, lattice: Tensor) -> Tensor:
        """Encode the spots of one slide.

        Parameters
        ----------
        expression
            (n_spots, n_genes).
        lattice
            Positions from the corner of the slide, in pitches (n_spots, 2); rounded to half a pitch.

        Returns
        -------
        (n_spots, n_genes).
        """
        position = (2 * lattice).round().long().clamp(0, self.x_position.num_embeddings - 1)
        informed: Tensor = self.blocks(expression + self.x_position(position[:, 0]) + self.y_position(position[:, 1]))
        return informed


def hyperedges(features: Tensor, *, n_similar: int = 3) -> Tensor:
    """Join every node with the nodes most similar to it, by cosine.

    Parameters
    ----------
    features
        Features of the nodes (n, n_nodes, n_features).
    n_similar
        Number of most similar other nodes in the hyperedge of a node.

    Returns
    -------
    Incidence (n, n_nodes, n_nodes), float: ``[:, v, e]`` is 1 if node v is in hyperedge e, that is node e and the
    nodes most similar to it.

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


def field_widths(n_image: int, n_fields: int) -> list[int]:
    """Widths of the parts that image features are cut into, as ``tensor_split`` does; at most as many as features."""
    return [len(part) for part in torch.arange(n_image).tensor_split(min(n_fields, n_image))]


class HypergraphConvolution(nn.Module):
    r"""One step along the hyperedges: :math:`D^{-1} H B^{-1} H^\top X \Theta + b`.

    D contains the degrees of the nodes, B those of the hyperedges. The weights start as Glorot's, uniform.

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
        nn.init.xavier_uniform_(self.linear.weight)
        self.bias = nn.Parameter(torch.zeros(n_output))

    def forward(self, nodes: Tensor, incidence: Tensor, place: Tensor | None = None) -> Tensor:
        """Map nodes to (n, n_nodes, n_output).

        Parameters
        ----------
        nodes
            (n, n_nodes, n_input); or different nodes (n_different, n_input), where `place` says which of them is where.
        incidence
            (n, n_nodes, n_edges).
        place
            Rows of `nodes` (n, n_nodes): a node that is in many places goes through the weights once.
        """
        mapped = self.linear(nodes)
        if place is not None:
            mapped = mapped.index_select(0, place.flatten()).unflatten(0, place.shape)
        of_edge = incidence.transpose(1, 2) @ mapped / incidence.sum(dim=1).unsqueeze(-1)
        out: Tensor = incidence @ of_edge / incidence.sum(dim=2).unsqueeze(-1) + self.bias
        return out


class HypergraphEncoder(nn.Module):
    """Two convolutions, each followed by a ReLU.

    Parameters
    ----------
    n_input, n_hidden, n_output
        Features of a node before, between and after the convolutions.
    """

    def __init__(self, n_input: int, n_hidden: int, n_output: int) -> None:
        super().__init__()
        self.first = HypergraphConvolution(n_input, n_hidden)
        self.second = HypergraphConvolution(n_hidden, n_output)

    def forward(self, nodes: Tensor, incidence: Tensor, place: Tensor | None = None) -> Tensor:
        """Map nodes to (n, n_nodes, n_output); parameters as in :class:`HypergraphConvolution`."""
        hidden = functional.relu(self.first(nodes, incidence, place))
        return functional.relu(self.second(hidden, incidence))

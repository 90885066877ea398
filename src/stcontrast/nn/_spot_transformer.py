"""The spot tower of mclSTExp: expression plus learnt positions, and attention over the spots of one slide."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["N_POSITIONS", "SpotTransformer"]

# half pitches along a side: 78 rows of Visium are 135 of them
N_POSITIONS: Final = 512


class _Block(nn.Module):
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
    """Expression of the spots of one slide, each informed by the others.

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
        Rows of each table of positions.

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
            # the default deviation of 1 would drown expression, which is of that size
            nn.init.normal_(table.weight, std=0.02)
        blocks = [_Block(n_genes, n_heads=n_heads, n_per_head=n_per_head) for _ in range(n_layers)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, expression: Tensor, lattice: Tensor) -> Tensor:
        """Inform the spots of one slide.

        Parameters
        ----------
        expression
            (n_spots, n_genes).
        lattice
            Positions from the slide's corner, in pitches (n_spots, 2); read to half a pitch.

        Returns
        -------
        (n_spots, n_genes).
        """
        position = (2 * lattice).round().long().clamp(0, self.x_position.num_embeddings - 1)
        informed: Tensor = self.blocks(expression + self.x_position(position[:, 0]) + self.y_position(position[:, 1]))
        return informed

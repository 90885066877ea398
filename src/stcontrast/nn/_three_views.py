"""The network of TRIPLEX: a spot, its neighbourhood and its slide, fused, and each taught by the fusion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn import functional

from stcontrast._data import sequences
from stcontrast.nn._pairs import SpotModule, SpotTable, slide_batches

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OffsetAttention", "ThreeViews"]

# half pitches from a spot, either way, that are told apart; what is farther counts as that far
REACH: Final = 10
# nearest spots, the spot included, of the positional generator
AROUND: Final = 9


def offset_codes(offset: Tensor) -> Tensor:
    """Index (…,) of an offset (…, 2) in pitches, rounded to half a pitch, among (2 · 10 + 1)² of them."""
    place = (2 * offset).round().long().clamp(-REACH, REACH) + REACH
    return place[..., 0] * (2 * REACH + 1) + place[..., 1]


class _Attention(nn.Module):
    """Attention with a residual and a feed-forward, the layer norms first."""

    def __init__(self, n_model: int, *, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query_norm, self.context_norm = nn.LayerNorm(n_model), nn.LayerNorm(n_model)
        self.query = nn.Linear(n_model, n_model, bias=False)
        self.key_value = nn.Linear(n_model, 2 * n_model, bias=False)
        self.output = nn.Sequential(nn.Linear(n_model, n_model), nn.Dropout(dropout))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(n_model), nn.Linear(n_model, n_model), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(n_model, n_model), nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, query: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        """Tokens (n, n_query, d) after a look at a context (n, n_context, d); bias of the logits (n, heads, …)."""
        seen = self.context_norm(context)
        parts = self.query(self.query_norm(query)), *self.key_value(seen).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts)
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        query = query + self.output(found)
        out: Tensor = query + self.feed_forward(query)
        return out


class OffsetAttention(nn.Module):
    """Self-attention over spots near one another, with a learnt bias for how one lies to the other.

    Parameters
    ----------
    n_model, n_heads, dropout
        Of the attention.
    """

    def __init__(self, n_model: int, *, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention(n_model, n_heads=n_heads, dropout=dropout)
        self.bias = nn.Embedding((2 * REACH + 1) ** 2, n_heads)
        nn.init.normal_(self.bias.weight, std=0.02)

    def forward(self, tokens: Tensor, lattice: Tensor) -> Tensor:
        """Tokens (n, n_tokens, d) at places (n, n_tokens, 2), in pitches."""
        offset = lattice[:, None, :, :] - lattice[:, :, None, :]
        out: Tensor = self.attention(tokens, tokens, self.bias(offset_codes(offset)).permute(0, 3, 1, 2))
        return out


class ThreeViews(SpotModule):
    """A token of the spot, tokens of the spots around it and of all spots of its slide, and a head for each and for all.

    Parameters
    ----------
    n_image, n_targets
        Image features, and genes to predict.
    n_model, n_heads, dropout
        Width of the tokens, and of the attention.
    n_layers
        Layers of the attention over the neighbourhood, and of that over the slide.
    distillation
        Share of the fused prediction in what the three heads learn; the rest is the expression.
    max_sequence
        Most spots of a slide that attend to one another; longer slides are halved, again and again.
    """

    def __init__(
        self,
        *,
        n_image: int,
        n_targets: int,
        n_model: int,
        n_heads: int,
        n_layers: int,
        dropout: float,
        distillation: float,
        max_sequence: int,
    ) -> None:
        super().__init__()
        self.distillation = distillation
        self.max_sequence = max_sequence
        how: dict[str, Any] = {"n_heads": n_heads, "dropout": dropout}
        self.target, self.near, self.whole = (nn.Linear(n_image, n_model) for _ in range(3))
        self.near_layers = nn.ModuleList(OffsetAttention(n_model, **how) for _ in range(n_layers))
        self.whole_layers = nn.ModuleList(_Attention(n_model, **how) for _ in range(n_layers))
        # depth-wise: every dimension of a token has a weight of its own for every place around it
        self.positions = nn.Embedding((2 * REACH + 1) ** 2, n_model)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.target_fusion, self.near_fusion = (_Attention(n_model, **how) for _ in range(2))
        self.norm = nn.LayerNorm(n_model)
        heads = ("fused", "target", "near", "whole")
        self.heads = nn.ModuleDict({name: nn.Linear(n_model, n_targets) for name in heads})

    def views(self, table: SpotTable, rows: Tensor) -> dict[str, Tensor]:
        """Expression (n, n_targets) from each of the three views, and fused."""
        target = self.target(table.image[rows])[:, None]
        around = table.near[rows]
        near, places = self.near(table.image[around]), table.lattice[around]
        for layer in self.near_layers:
            near = layer(near, places)
        whole = self._whole(table, rows)[:, None]
        fused = self.target_fusion(whole, target) + self.near_fusion(whole, near)
        tokens = {
            "fused": self.norm(fused)[:, 0], "target": target[:, 0], "near": near.mean(dim=1), "whole": whole[:, 0],
        }  # fmt: skip
        return {name: self.heads[name](token) for name, token in tokens.items()}

    def losses(self, table: SpotTable, rows: Tensor) -> dict[str, Tensor]:
        """Error of the fused prediction; and of each view, against expression and fused prediction."""
        found = self.views(table, rows)
        fused, expression, share = found.pop("fused"), table.target[rows], self.distillation
        slide = table.slide[rows]
        of_views = [
            (1 - share) * self.expression_error(one, expression, slide)
            + share * self.expression_error(one, fused, slide)
            for one in found.values()
        ]
        of_fused = self.expression_error(fused, expression, slide)
        return {"expression": of_fused, "views": torch.stack(of_views).sum()}

    def regress(self, table: SpotTable, rows: Tensor) -> Tensor:
        """The fused prediction (n, n_targets)."""
        return self.views(table, rows)["fused"]

    def batches(self, table: SpotTable, batch_size: int) -> list[Tensor]:
        """Spots of one slide a step: a step computes the tokens of its whole slide."""
        return slide_batches(table, batch_size)

    def _whole(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Tokens (n, d) of spots after attention over their slides."""
        slides = torch.unique(table.slide[rows])
        here = torch.where(torch.isin(table.slide, slides))[0]
        parts = sequences(
            table.lattice[here].cpu().numpy(), table.slide[here].cpu().numpy(), max_length=self.max_sequence
        )
        tokens = table.image.new_zeros((len(table), self.norm.normalized_shape[0]))
        asked = torch.zeros(len(table), dtype=torch.bool, device=rows.device).index_fill(0, rows, value=True)
        for part in (here[torch.as_tensor(part, device=rows.device)] for part in parts):
            if not bool(asked[part].any()):
                continue
            informed = self._positioned(table, part)[None]
            for layer in self.whole_layers:
                informed = layer(informed, informed)
            tokens = tokens.index_copy(0, part, informed[0])
        return tokens[rows]

    def _positioned(self, table: SpotTable, part: Tensor) -> Tensor:
        """Tokens (n, d) of some spots plus a depth-wise convolution over the spots around each."""
        around = table.near[part][:, :AROUND]
        offset = table.lattice[around] - table.lattice[part][:, None]
        weights = self.positions(offset_codes(offset))
        positioned: Tensor = self.whole(table.image[part]) + (weights * self.whole(table.image[around])).sum(dim=1)
        return positioned

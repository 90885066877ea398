"""Cross-attention: tokens that look at other tokens."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["CrossEncoder"]


class _Block(nn.Module):
    def __init__(self, n_model: int, *, n_heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = int(mlp_ratio * n_model)
        self.query_norm = nn.LayerNorm(n_model)
        self.context_norm = nn.LayerNorm(n_model)
        self.attention = nn.MultiheadAttention(n_model, n_heads, dropout=dropout, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(n_model), nn.Linear(n_model, hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, n_model), nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        context = self.context_norm(context)
        attended = self.attention(self.query_norm(query), context, context, need_weights=False)[0]
        query = query + attended
        out: Tensor = query + self.feed_forward(query)
        return out


class CrossEncoder(nn.Module):
    """Pre-norm cross-attention and feed-forward with residuals, and a layer norm at the end.

    Parameters
    ----------
    n_model
        Dimension of the tokens.
    n_layers, n_heads
        Blocks and heads.
    mlp_ratio
        Width of the feed-forward, in model dimensions.
    dropout
        Dropout in attention and feed-forward.

    References
    ----------
    Qu et al. 2025 (NH²ST).
    """

    def __init__(
        self, n_model: int, *, n_layers: int = 1, n_heads: int = 8, mlp_ratio: float = 1.0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Block(n_model, n_heads=n_heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(n_model)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """Tokens (n, n_query, n_model) that look at a context (n, n_context, n_model)."""
        for block in self.blocks:
            query = block(query, context)
        out: Tensor = self.norm(query)
        return out

"""Towers: what turns a modality's input into an embedding."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ProjectionHead"]


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
    The head that BLEEP (Xie et al. 2023), mclSTExp (Min et al. 2024) and their descendants share.
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

"""The network of DeepSpot: deep sets over a spot and its neighbours, and an ensemble of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from stcontrast.nn._pairs import SpotModule, SpotTable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DeepSets"]


class _DeepSet(nn.Module):
    """``ρ([φ(spot), max over its neighbours of ψ(neighbour)])``."""

    def __init__(self, n_image: int, n_hidden: int, n_targets: int, *, dropout: float) -> None:
        super().__init__()
        self.of_spot = nn.Sequential(nn.Dropout(dropout), nn.Linear(n_image, n_hidden), nn.ReLU())
        self.of_neighbor = nn.Sequential(nn.Dropout(dropout), nn.Linear(n_image, n_hidden), nn.ReLU())
        self.of_both = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * n_hidden, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_targets)
        )

    def forward(self, spot: Tensor, around: Tensor) -> Tensor:
        """Expression (n, n_targets) of spots (n, n_image) with neighbours (n, n_neighbors, n_image)."""
        both = torch.cat([self.of_spot(spot), self.of_neighbor(around).amax(dim=1)], dim=1)
        found: Tensor = self.of_both(both)
        return found


class DeepSets(SpotModule):
    """An ensemble of deep sets over a spot and its nearest spots, whose median is the prediction.

    Member m does not learn from rows m, m + n_members, m + 2 n_members, … of the table.

    Parameters
    ----------
    n_image, n_targets
        Image features, and genes to predict.
    n_hidden, dropout
        Width of every layer, and dropout before it.
    n_members
        Networks of the ensemble; one learns from all rows.

    References
    ----------
    Zaheer et al. 2017 (Deep sets, arXiv 1703.06114); Nonchev et al. 2025 (DeepSpot).
    """

    def __init__(self, *, n_image: int, n_targets: int, n_hidden: int, dropout: float, n_members: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(_DeepSet(n_image, n_hidden, n_targets, dropout=dropout) for _ in range(n_members))

    def losses(self, table: SpotTable, rows: Tensor) -> dict[str, Tensor]:
        """Error of every member on its own spots, summed: no member learns from another."""
        n = len(self.members)
        errors = []
        for i, member in enumerate(self.members):
            own = rows if n == 1 else rows[rows % n != i]
            if len(own):
                errors.append(self.expression_error(self._of(member, table, own), table.target[own], table.slide[own]))
        return {"expression": torch.stack(errors).sum()}

    def regress(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Median of the members (n, n_targets); of an even number, the mean of the middle two."""
        found = torch.stack([self._of(member, table, rows) for member in self.members])
        return found.quantile(0.5, dim=0)

    @staticmethod
    def _of(member: nn.Module, table: SpotTable, rows: Tensor) -> Tensor:
        # a slide of one spot has itself as neighbour
        around = table.near[rows][:, 1:] if table.near.shape[1] > 1 else table.near[rows]
        found: Tensor = member(table.image[rows], table.image[around])
        return found

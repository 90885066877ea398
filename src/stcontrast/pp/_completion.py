"""Spot completion: what dropped out of a spot's counts, from its other genes and from its neighbours."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import nn

from stcontrast._data import TIES
from stcontrast._progress import steps
from stcontrast._slides import rows_by_slide
from stcontrast._training import check_loss, one_thread, seeded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    type Neighbors = tuple[NDArray[np.intp], NDArray[np.bool_]]

__all__ = ["Completer", "masked_mse", "median_complete"]

# where none of the neighbours has a gene, so many times as many are asked
REACH: Final = (1, 4)
# entries whose medians are taken at once
CHUNK: Final = 2**17
# spots that are only watched, at most; steps between two looks; steps without a better one until training stops
WATCHED: Final = 512
EVERY: Final = 20
PATIENCE: Final = 100


class Completer:
    """Fill the zeros of expression with a transformer over a spot and its neighbours (SpaCKLE).

    A zero is taken as missing. Training hides some of the measured entries of a spot and asks for them; completing
    asks for the zeros. What is filled is smooth: for training targets only, never for what is scored.

    Parameters
    ----------
    n_neighbors
        Nearest spots of the same slide; more where others are just as near as the last of them, fewer on small slides.
    n_model
        Width of the network.
    mask_fraction
        Share of the measured entries that is hidden; drawn again in every step.
    max_steps, batch_size, learning_rate
        Training with Adam. A tenth of the spots is only watched; the weights that did best there are kept, and training
        stops if nothing better is found for 100 steps.
    seed
        Seed of everything random.

    References
    ----------
    Mejía et al. 2024 (SpaCKLE, arXiv 2407.13027).
    """

    def __init__(
        self,
        *,
        n_neighbors: int = 18,
        n_model: int = 128,
        mask_fraction: float = 0.3,
        max_steps: int = 1000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        if not 0 < mask_fraction < 1:
            msg = f"`mask_fraction` must lie between 0 and 1, found {mask_fraction}."
            raise ValueError(msg)
        if not 0 <= seed < 2**32:
            msg = f"seed is {seed}; it must lie between 0 and 2**32 - 1."
            raise ValueError(msg)
        self.n_neighbors, self.n_model, self.mask_fraction = n_neighbors, n_model, mask_fraction
        self.max_steps, self.batch_size, self.learning_rate, self.seed = max_steps, batch_size, learning_rate, seed
        for name in ("n_neighbors", "n_model", "max_steps", "batch_size"):
            if getattr(self, name) < 1:
                msg = f"`{name}` must be at least 1, found {getattr(self, name)}."
                raise ValueError(msg)
        self.losses: list[float] = []
        self._network: _Network | None = None

    def fit(self, expression: NDArray[np.float32], slide: NDArray[np.int64], xy: NDArray[np.float64]) -> Self:
        """Train on expression (n_spots, n_genes), not negative, with slide (n_spots,) and centre (n_spots, 2)."""
        _check(expression, slide, xy)
        measured = expression > 0
        if not measured.any():
            msg = "Nothing to learn from: no entry of the expression is above zero."
            raise ValueError(msg)
        mean = expression.sum(axis=0, dtype=np.float64) / np.maximum(measured.sum(axis=0), 1)
        spots = _Spots(expression, slide, xy, mean.astype(np.float32), self.n_neighbors)
        with seeded(self.seed), one_thread():
            self._train(spots, torch.from_numpy(np.flatnonzero(measured.any(axis=1))))
        return self

    def _train(self, spots: _Spots, teaches: Tensor) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = _Network(len(spots.mean), self.n_model).to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        watched, taught = teaches[torch.randperm(len(teaches))].tensor_split([min(len(teaches) // 10, WATCHED)])
        # the same entries every time, so that losses compare
        asked = self._draw(spots, watched)
        batches = _batches(taught, self.batch_size)
        best, best_step, state = np.inf, 0, network.state_dict()
        self.losses = []
        for step in steps(range(1, self.max_steps + 1), "completion", unit="steps"):
            rows = next(batches)
            loss = spots.loss(network, rows, self._draw(spots, rows), device)
            check_loss(float(loss.detach()), of="completion", at=f"step {step}")
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            self.losses.append(float(loss.detach()))
            if len(watched) and (step % EVERY == 0 or step == self.max_steps):
                network.eval()
                with torch.no_grad():
                    watched_loss = float(spots.loss(network, watched, asked, device))
                network.train()
                if watched_loss < best:
                    best, best_step, state = watched_loss, step, copy.deepcopy(network.state_dict())
                elif step - best_step >= PATIENCE:
                    break
        network.load_state_dict(state)
        self._network, self._mean = network.cpu().eval(), spots.mean

    def _draw(self, spots: _Spots, rows: Tensor) -> Tensor:
        known = spots.measured[rows]
        return known & (torch.rand(known.shape) < self.mask_fraction)

    def complete(
        self, expression: NDArray[np.float32], slide: NDArray[np.int64], xy: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Fill the zeros; what is above zero stays as it is, bit by bit. Slides are completed one by one."""
        _check(expression, slide, xy)
        if self._network is None:
            msg = "The completer is not fitted; call `fit` first."
            raise ValueError(msg)
        if expression.shape[1] != len(self._mean):
            msg = f"The completer was fitted on {len(self._mean)} genes, found {expression.shape[1]}."
            raise ValueError(msg)
        completed = expression.copy()
        with one_thread(), torch.inference_mode():
            for rows in rows_by_slide(slide):
                # one order whatever the caller's: sums of floats depend on it
                ordered = rows[np.lexsort(xy[rows].T)]
                spots = _Spots(expression[ordered], slide[ordered], xy[ordered], self._mean, self.n_neighbors)
                for start in range(0, len(ordered), self.batch_size):
                    part = torch.arange(start, min(start + self.batch_size, len(ordered)))
                    known = spots.measured[part]
                    filled = self._network(spots.values[part], ~known, *spots.around(part)).numpy() + self._mean
                    here = ordered[part.numpy()]
                    # of a gene that training never saw, the network knows nothing
                    filled = np.maximum(filled, 0.0) * (self._mean > 0)
                    completed[here] = np.where(known.numpy(), expression[here], filled)
        return completed


def masked_mse(predicted: Tensor, target: Tensor, asked: Tensor) -> Tensor:
    """Mean squared error of the entries that are asked for, 0 where none is."""
    return ((predicted - target).square() * asked).sum() / asked.sum().clamp(min=1)


def median_complete(
    expression: NDArray[np.float32], slide: NDArray[np.int64], xy: NDArray[np.float64], n_neighbors: int = 18
) -> NDArray[np.float32]:
    """Fill every zero with the median of what its neighbours have above zero: the baseline.

    Where none of the nearest `n_neighbors` has the gene, four times as many are asked, then the slide. What nobody
    on the slide has stays zero.
    """
    _check(expression, slide, xy)
    spot, gene = np.nonzero(expression <= 0)
    completed = expression.copy()
    completed[spot, gene] = np.nan_to_num(_medians(expression, slide, xy, n_neighbors, (spot, gene)))
    for rows in rows_by_slide(slide):
        for column in np.flatnonzero((completed[rows] <= 0).any(axis=0)):
            values = expression[rows, column]
            seen = values[values > 0]
            left = rows[completed[rows, column] <= 0]
            completed[left, column] = np.median(seen) if len(seen) else 0.0
    return completed


class _Network(nn.Module):
    def __init__(self, n_genes: int, n_model: int) -> None:
        super().__init__()
        self.embed = nn.Linear(n_genes, n_model)
        # what is hidden at the centre; its bias tells the centre from the neighbours
        self.mask = nn.Linear(n_genes, n_model)
        layer = nn.TransformerEncoderLayer(n_model, nhead=1, dim_feedforward=2 * n_model, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.decode = nn.Linear(n_model, n_genes)

    def forward(self, values: Tensor, hidden: Tensor, around: Tensor, absent: Tensor) -> Tensor:
        center = self.embed(values.masked_fill(hidden, 0.0)) + self.mask(hidden.float())
        tokens = torch.cat([center[:, None], self.embed(around)], dim=1)
        padding = torch.cat([torch.zeros_like(absent[:, :1]), absent], dim=1) if absent.shape[1] else None
        return self.decode(self.encoder(tokens, src_key_padding_mask=padding)[:, 0])


class _Spots:
    """Values less the genes' means, and the neighbourhood of a batch of spots."""

    def __init__(
        self, expression: NDArray[np.float32], slide: NDArray[np.int64], xy: NDArray[np.float64],
        mean: NDArray[np.float32], n_neighbors: int,
    ) -> None:  # fmt: skip
        self.mean = mean
        self.measured = torch.from_numpy(expression > 0)
        self.values = torch.from_numpy(expression - mean).masked_fill_(~self.measured, 0.0)
        # The holes of all neighbours get the median around the centre, which leaves the centre out: the median around
        # the neighbour would hold the very entry that is asked for.
        fill = _medians(expression, slide, xy, n_neighbors) - mean
        self.fill = torch.from_numpy(np.nan_to_num(fill, copy=False))
        self.index, self.present = (torch.from_numpy(part) for part in _neighbors(slide, xy, n_neighbors))

    def loss(self, network: _Network, rows: Tensor, asked: Tensor, device: torch.device) -> Tensor:
        """Loss of some spots, of which some measured entries are asked for."""
        target, hidden = self.values[rows].to(device), (asked | ~self.measured[rows]).to(device)
        around, absent = (part.to(device) for part in self.around(rows))
        return masked_mse(network(target, hidden, around, absent), target, asked.to(device))

    def around(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (n, n_neighbors, n_genes) without holes, and which of them are padding."""
        index = self.index[rows]
        return torch.where(self.measured[index], self.values[index], self.fill[rows][:, None]), ~self.present[rows]


def _batches(rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    while True:
        order = rows[torch.randperm(len(rows))]
        yield from (order[start : start + batch_size] for start in range(0, len(rows), batch_size))


def _neighbors(slide: NDArray[np.int64], xy: NDArray[np.float64], n_neighbors: int) -> Neighbors:
    """Neighbours (n_spots, most of any spot), and which of the columns are some; ties as in ``neighbor_means``."""
    index = np.zeros((len(slide), n_neighbors + TIES), dtype=np.intp)
    present = np.zeros(index.shape, dtype=np.bool_)
    for rows in rows_by_slide(slide):
        k = min(n_neighbors, len(rows) - 1)
        if k < 1:
            continue
        distance, nearest = cKDTree(xy[rows]).query(xy[rows], k=min(len(rows), k + 1 + TIES))
        distance[nearest == np.arange(len(rows))[:, None]] = np.inf
        last = np.partition(distance, k - 1, axis=1)[:, k - 1]
        is_neighbor = distance <= last[:, None] * (1 + 1e-6)
        # by row, not by distance: rounding would change the order within a ring; unused columns are cut off
        order = np.argsort(np.where(is_neighbor, nearest, len(rows)), axis=1)[:, : index.shape[1]]
        index[rows, : order.shape[1]] = rows[np.take_along_axis(nearest, order, axis=1)]
        present[rows, : order.shape[1]] = np.take_along_axis(is_neighbor, order, axis=1)
    width = present.sum(axis=1).max(initial=0)
    return index[:, :width], present[:, :width]


def _medians(
    expression: NDArray[np.float32], slide: NDArray[np.int64], xy: NDArray[np.float64], n_neighbors: int,
    where: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None,
) -> NDArray[np.float32]:  # fmt: skip
    """Medians of what the neighbours have, of every entry or of some (spot, gene); NaN where they have nothing."""
    spot, gene = (part.ravel() for part in np.indices(expression.shape)) if where is None else where
    medians = np.full(len(spot), np.nan, dtype=np.float32)
    for reach in REACH:
        index, present = _neighbors(slide, xy, reach * n_neighbors)
        left = np.flatnonzero(np.isnan(medians))
        if index.shape[1] == 0:
            break
        for some in np.array_split(left, len(left) // CHUNK + 1):
            values = expression[index[spot[some]], gene[some, None]]
            values[~present[spot[some]] | (values <= 0)] = np.inf
            values.sort(axis=1)
            n = np.isfinite(values).sum(axis=1)[:, None]
            low, high = (np.take_along_axis(values, i, axis=1) for i in (np.maximum(n - 1, 0) // 2, n // 2))
            medians[some] = np.where(n > 0, (low + high) / 2, np.nan).ravel()
    return medians if where is not None else medians.reshape(expression.shape)


def _check(expression: NDArray[np.float32], slide: NDArray[np.int64], xy: NDArray[np.float64]) -> None:
    n = len(expression)
    if expression.ndim != 2 or slide.shape != (n,) or xy.shape != (n, 2):
        msg = f"Expression {expression.shape}, slide {slide.shape} and xy {xy.shape} do not match."
        raise ValueError(msg)
    if not np.isfinite(expression).all() or (expression < 0).any() or not np.isfinite(xy).all():
        msg = "Expression must be finite and not negative, and positions finite."
        raise ValueError(msg)

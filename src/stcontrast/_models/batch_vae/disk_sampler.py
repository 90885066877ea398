"""The order in which annbatch reads the spots of a set. Imported only where annbatch is installed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from annbatch.abc import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ChosenRows"]


class ChosenRows(Sampler):
    """Every row of a set once per pass, in minibatches of which only the last may be smaller.

    The samplers of annbatch take one contiguous range of rows; the spots of the training donors are rarely contiguous.

    Parameters
    ----------
    rows
        Ascending row numbers of the set.
    batch_size
        Rows in a minibatch.
    chunk_size
        Neighbours in the set that are read together.
    n_in_memory
        Rows that are read at once and shuffled; at least one minibatch.
    rng
        Draws a new order for each pass. ``None`` (default): the rows keep their order.
    """

    def __init__(
        self,
        rows: np.ndarray[Any, Any],
        *,
        batch_size: int,
        chunk_size: int,
        n_in_memory: int,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._chunk_size = chunk_size
        # whole minibatches, so that not every read ends in a small one
        self._n_read = max(1, n_in_memory // batch_size) * batch_size
        self._rng = rng

    @property
    def batch_size(self) -> int:
        """Rows in a minibatch."""
        return self._batch_size

    @property
    def shuffle(self) -> bool:
        """Whether a new order is drawn for each pass."""
        return self._rng is not None

    def n_batches(self, n_obs: int) -> int:
        """Number of minibatches in a pass; `n_obs`, the number of all rows, does not matter."""
        return math.ceil(len(self._rows) / self._batch_size)

    def validate(self, n_obs: int) -> None:
        """Accept any data: the rows come from the columns of the data."""

    def _sample(self, n_obs: int) -> Iterator[dict[str, Any]]:
        order = self._order()
        for start in range(0, len(order), self._n_read):
            rows = order[start : start + self._n_read]
            places = np.arange(len(rows)) if self._rng is None else self._rng.permutation(len(rows))
            yield {
                "requests": rows,
                "splits": np.split(places, np.arange(self._batch_size, len(rows), self._batch_size)),
            }

    def _order(self) -> np.ndarray[Any, Any]:
        if self._rng is None:
            return self._rows
        chunks = np.split(self._rows, np.arange(self._chunk_size, len(self._rows), self._chunk_size))
        return np.concatenate([chunks[i] for i in self._rng.permutation(len(chunks))])

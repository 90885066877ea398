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
    """Every row of a set once a pass, in minibatches that are full but for the last.

    annbatch's own samplers take one contiguous range of rows; the spots of the donors to train on are seldom that.

    Parameters
    ----------
    rows
        Row numbers of the set, ascending.
    batch_size
        Rows in a minibatch.
    chunk_size
        Neighbours in the set that are read together.
    n_in_memory
        Rows that are read at once, and shuffled; at least one minibatch.
    rng
        Source of the order; a new one is drawn for each pass. ``None`` (default): the rows come as they lie.
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
        # Whole minibatches, or every read would end in a small one.
        self._n_read = max(1, n_in_memory // batch_size) * batch_size
        self._rng = rng

    @property
    def batch_size(self) -> int:
        """Rows in a minibatch."""
        return self._batch_size

    @property
    def shuffle(self) -> bool:
        """Whether the order is drawn anew for each pass."""
        return self._rng is not None

    def n_batches(self, n_obs: int) -> int:
        """Number of minibatches in a pass.

        Parameters
        ----------
        n_obs
            Number of rows of the data, in the set or not.

        Returns
        -------
        int
            Number of minibatches.
        """
        return math.ceil(len(self._rows) / self._batch_size)

    def validate(self, n_obs: int) -> None:
        """Nothing to check: the rows come from the data's own columns.

        Parameters
        ----------
        n_obs
            Number of rows of the data.
        """

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

"""Decoding by retrieval: the training spots whose gene embedding is nearest to an image embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from scipy.spatial.distance import cdist

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Distance", "Neighbors", "Weighting", "combine", "most_similar", "retrieve"]

type Distance = Literal["cosine", "l2", "l1"]
type Weighting = Literal["uniform", "inverse_square", "exponential", "similarity"]

# numbers in the table of distances that is made at once: 128 MiB of float64
CHUNK: Final = 2**24
# the same of the cosines in single precision: 16 MiB
SMALL_CHUNK: Final = 2**22


@dataclass(frozen=True, slots=True)
class Neighbors:
    """What a prediction by retrieval is made of.

    Attributes
    ----------
    ids
        Rows of the bank (n_queries, k), nearest first; of those equally near, the lower row.
    weights
        Their weights (n_queries, k), summing to 1.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float64]

    @property
    def effective_k(self) -> NDArray[np.float64]:
        """How many spots a prediction really rests on (n_queries,): 1 / Σ weights²."""
        return 1.0 / (self.weights**2).sum(axis=1)

    def histogram(self, group: NDArray[np.int64], n_groups: int) -> NDArray[np.float64]:
        """Weight that comes from each group, such as donors (n_queries, n_groups), given that of the bank's rows."""
        shares = np.zeros((len(self.ids), n_groups))
        np.add.at(shares, (np.arange(len(self.ids))[:, None], group[self.ids]), self.weights)
        return shares


def retrieve(
    query: NDArray[np.float32],
    bank: NDArray[np.float32],
    *,
    k: int,
    metric: Distance = "cosine",
    weights: Weighting = "uniform",
    weight_metric: Distance = "l2",
) -> Neighbors:
    """The k rows of a bank that are nearest to each query; exact, in chunks.

    Parameters
    ----------
    query
        Embeddings (n_queries, d).
    bank
        Embeddings (n_bank, d).
    k
        How many; all, where the bank is smaller.
    metric
        What nearest means: ``"cosine"``, ``"l2"`` or ``"l1"``.
    weights
        ``"uniform"``; ``"inverse_square"``, 1 / d² (where some are at distance 0, those share all the weight);
        ``"exponential"``, exp(-(d² - d²_min)); ``"similarity"``, the cosine, negative ones counting as 0.
    weight_metric
        Distance d of the weights, on the embeddings as they are: ``"l2"`` or ``"l1"``.

    Returns
    -------
    Rows and weights.
    """
    k = min(k, len(bank))
    step = max(1, CHUNK // max(len(bank), 1))
    ids = np.empty((len(query), k), dtype=np.int64)
    of_row = np.empty((len(query), k))
    for start in range(0, len(query), step):
        part = query[start : start + step].astype(np.float64)
        chosen = _smallest(_distance(part, bank, metric), k)
        ids[start : start + step] = chosen
        of_row[start : start + step] = _weights(part, bank, chosen, weights, weight_metric)
    return Neighbors(ids, of_row)


def most_similar(
    query: NDArray[np.float32], bank: NDArray[np.float32], *, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows of a bank with the largest cosine, by a matrix product of single precision, in chunks.

    Parameters
    ----------
    query
        Unit-length embeddings (n_queries, d).
    bank
        Unit-length embeddings (n_bank, d).
    k
        How many; all, where the bank is smaller.

    Returns
    -------
    Rows (n_queries, k), most similar first, of equally similar ones the lower row; and their cosines.
    """
    k = min(k, len(bank))
    step = max(1, SMALL_CHUNK // max(len(bank), 1))
    ids = np.empty((len(query), k), dtype=np.int64)
    similarity = np.empty((len(query), k), dtype=np.float32)
    for start in range(0, len(query), step):
        cosine = query[start : start + step] @ bank.T
        chosen = _smallest(-cosine, k)
        ids[start : start + step] = chosen
        similarity[start : start + step] = np.take_along_axis(cosine, chosen, axis=1)
    return ids, similarity


def combine(neighbors: Neighbors, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weighted mean of the values (n_bank, m) of each query's neighbours (n_queries, m)."""
    out = np.empty((len(neighbors.ids), values.shape[1]), dtype=np.float32)
    k = neighbors.ids.shape[1]
    step = max(1, CHUNK // max(k * values.shape[1], 1))
    for start in range(0, len(out), step):
        part = slice(start, start + step)
        out[part] = np.einsum("qk,qkm->qm", neighbors.weights[part], values[neighbors.ids[part]])
    return out


def _distance(query: NDArray[np.float64], bank: NDArray[np.float32], metric: Distance) -> NDArray[np.float64]:
    names = {"cosine": "cosine", "l2": "sqeuclidean", "l1": "cityblock"}
    if metric != "cosine":
        return cdist(query, bank, names[metric])
    # an embedding of length 0 is as far from everything as can be, not "not a number"
    distance: NDArray[np.float64] = 1.0 - _unit(query) @ _unit(bank.astype(np.float64)).T
    # equal rows may differ in the last digit of the product, and would not tie
    return distance.round(12)


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _smallest(distance: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Columns of the k smallest values of each row, in order; of equal values the lower column first."""
    if k == distance.shape[1]:
        return np.argsort(distance, axis=1, kind="stable")
    chosen = np.sort(np.argpartition(distance, k - 1, axis=1)[:, :k], axis=1)
    values = np.take_along_axis(distance, chosen, axis=1)
    last = values.max(axis=1, keepdims=True)
    # a partition takes any of those that tie for the last place
    tied = np.flatnonzero((distance == last).sum(axis=1) > (values == last).sum(axis=1))
    for row in tied:
        below = np.flatnonzero(distance[row] < last[row])
        at = np.flatnonzero(distance[row] == last[row])
        chosen[row] = np.sort(np.concatenate([below, at[: k - len(below)]]))
        values[row] = distance[row, chosen[row]]
    order = np.argsort(values, axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)


def _weights(
    query: NDArray[np.float64],
    bank: NDArray[np.float32],
    ids: NDArray[np.int64],
    weights: Weighting,
    metric: Distance,
) -> NDArray[np.float64]:
    if weights == "uniform":
        raw = np.ones(ids.shape)
    elif weights == "similarity":
        similarity = 1.0 - np.take_along_axis(_distance(query, bank, "cosine"), ids, axis=1)
        raw = np.maximum(similarity, 0.0)
        # nothing is similar: no reason to prefer one
        raw[raw.sum(axis=1) == 0] = 1.0
    else:
        distance = np.take_along_axis(_distance(query, bank, metric), ids, axis=1)
        squared = distance**2 if metric == "l1" else distance
        if weights == "exponential":
            raw = np.exp(-(squared - squared.min(axis=1, keepdims=True)))
        else:
            exact = squared == 0
            raw = np.where(exact.any(axis=1, keepdims=True), exact, 1.0 / np.where(exact, 1.0, squared))
    return raw / raw.sum(axis=1, keepdims=True)

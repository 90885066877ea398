"""The nearest-neighbour baseline: the mean of the training spots whose image features are most alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from stcontrast._arguments import checked
from stcontrast._state import fitted
from stcontrast.methods._base import ChosenOnFolds
from stcontrast.methods._linear import Scaler
from stcontrast.methods._retrieval import Neighbors, combine, retrieve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data import Spots

__all__ = ["Knn"]

GRID: Final = (5, 10, 20, 50, 100, 200)


class Knn(ChosenOnFolds):
    """Nearest neighbours among the image features of the training spots, by Euclidean distance.

    Features are standardised over the training spots. Expression is the mean of the neighbours', each centred within
    its slide; classes are their votes. Inner folds choose how many neighbours.

    Parameters
    ----------
    k
        Neighbours for expression and for classes where nothing is chosen on folds.
    seed
        Not used: nothing is random.
    """

    name: ClassVar[str] = "knn"
    spotwise: ClassVar[bool] = True
    reference: ClassVar[str] = "k nearest neighbours of the image features, k chosen on inner donors"
    learnt: ClassVar[tuple[str, ...]] = ("k", "class_k", "scaler", "arrays")
    grid: ClassVar[tuple[float, ...]] = GRID
    choices: ClassVar[tuple[str, ...]] = ("k", "class_k")

    @checked()
    def __init__(self, *, k: int = 50, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.k = k
        self.class_k = k
        self.scaler = Scaler()
        self.arrays: dict[str, NDArray[Any]] = {}

    def class_score(self, proba: NDArray[np.float32], label: NDArray[np.int64]) -> float:
        """Accuracy: of few neighbours some class has no vote, and no likelihood."""
        return float((proba.argmax(axis=1) == label).mean())

    def fit_parts(self, spots: Spots) -> None:
        """Keep the spots."""
        bank = self.scaler.fit(spots).scaled(spots)
        self.arrays = {}
        if spots.has_counts:
            self.arrays |= {"bank": bank[spots.measured], "values": spots.level_target()[spots.measured]}
        if spots.has_labels:
            known = spots.label >= 0
            votes = np.eye(spots.n_classes, dtype=np.float32)[spots.label[known]]
            self.arrays |= {"labelled": bank[known], "votes": votes}

    def neighbors(self, spots: Spots) -> Neighbors:
        """Training spots (rows among those with counts) that a prediction of expression is made of."""
        return self._nearest(spots, fitted(self.arrays.get("bank"), needs="counts"), self.k)

    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        return combine(self.neighbors(spots), self.arrays["values"])

    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """Share of the votes for every class (n_spots, n_classes)."""
        labelled = fitted(self.arrays.get("labelled"), needs="labels")
        return combine(self._nearest(spots, labelled, self.class_k), self.arrays["votes"])

    def _nearest(self, spots: Spots, bank: NDArray[np.float32], k: int) -> Neighbors:
        return retrieve(self.scaler.scaled(spots), bank, k=k, metric="l2")

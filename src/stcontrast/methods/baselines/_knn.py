"""The baseline that copies: the mean of the training spots whose image features are most alike."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from stcontrast._data.spots import Held
from stcontrast.methods._arrays import load_arrays, save_arrays
from stcontrast.methods._base import Method
from stcontrast.methods._network import standardiser
from stcontrast.methods._retrieval import Neighbors, combine, retrieve
from stcontrast.metrics import mean_slide_correlation

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stcontrast._data.folds import Folds
    from stcontrast._data.spots import TrainingData, View

__all__ = ["Knn"]

GRID: Final = (5, 10, 20, 50, 100, 200)


class Knn(Method):
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

    def __init__(self, *, k: int = 50, seed: int = 0) -> None:
        super().__init__(seed=seed)
        if k < 1:
            msg = f"`k` must be at least 1, found {k}."
            raise ValueError(msg)
        self.k = k
        self.class_k = k
        self.arrays: dict[str, NDArray[Any]] = {}

    @property
    def hyper(self) -> dict[str, Any]:
        """Arguments that make the same method again."""
        return {"k": self.k, "seed": self.seed}

    def fit(self, data: TrainingData, folds: Folds) -> Held:
        """Choose the numbers of neighbours on the inner folds, then keep all training spots."""
        held = {k: Held.empty(data) for k in GRID}
        for fold in folds.folds:
            part = Knn(seed=self.seed)
            train, view = data.training(fold), data.held_out(fold)
            part.fit_parts(train)
            for k in GRID:
                part.k = part.class_k = k
                if train.measured.any():
                    held[k].expression[fold.held_out] = part.predict_expression(view)
                if train.has_labels:
                    held[k].proba[fold.held_out] = part.predict_proba(view)
        chosen = Held.empty(data)
        if data.measured.any():
            scores = {k: mean_slide_correlation(held[k].expression, data.observed, data.slide) for k in GRID}
            self.k = max(scores, key=lambda k: scores[k])
            chosen.expression = held[self.k].expression
        labelled = np.flatnonzero(np.isfinite(held[GRID[0]].proba).all(axis=1) & (data.label >= 0))
        if len(labelled):
            right = {k: (held[k].proba[labelled].argmax(axis=1) == data.label[labelled]).mean() for k in GRID}
            self.class_k = max(right, key=lambda k: right[k])
            chosen.proba = held[self.class_k].proba
        self.fit_parts(data.prepared())
        return chosen

    def fit_parts(self, data: TrainingData) -> None:
        """Keep the spots."""
        center, scale = standardiser(data.design)
        self.arrays = {"center": center, "scale": scale}
        bank = (data.design - center) / scale
        if data.measured.any():
            self.arrays |= {"bank": bank[data.measured], "values": data.level_target()[data.measured]}
        if data.has_labels:
            known = data.label >= 0
            votes = np.eye(data.n_classes, dtype=np.float32)[data.label[known]]
            self.arrays |= {"labelled": bank[known], "votes": votes}

    def neighbors(self, view: View) -> Neighbors:
        """Training spots (rows among those with counts) that a prediction of expression is made of."""
        return self._nearest(view, "bank", self.k)

    def predict_expression(self, view: View) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        if "bank" not in self.arrays:
            msg = "The model was trained without counts: it predicts no expression."
            raise ValueError(msg)
        return combine(self.neighbors(view), self.arrays["values"])

    def predict_proba(self, view: View) -> NDArray[np.float32]:
        """Share of the votes for every class (n_spots, n_classes)."""
        if "votes" not in self.arrays:
            msg = "The model was trained without labels: it predicts no subtype."
            raise ValueError(msg)
        return combine(self._nearest(view, "labelled", self.class_k), self.arrays["votes"])

    def save_parts(self, folder: Path) -> None:
        """Write the spots."""
        (folder / "knn.json").write_text(json.dumps({"k": self.k, "class_k": self.class_k}))
        save_arrays(folder / "knn.npz", self.arrays)

    def load_parts(self, folder: Path) -> None:
        """Read the spots."""
        chosen = json.loads((folder / "knn.json").read_text())
        self.k, self.class_k = chosen["k"], chosen["class_k"]
        self.arrays = load_arrays(folder / "knn.npz")

    def _nearest(self, view: View, bank: str, k: int) -> Neighbors:
        scaled = (view.design - self.arrays["center"]) / self.arrays["scale"]
        return retrieve(scaled, self.arrays[bank], k=k, metric="l2")

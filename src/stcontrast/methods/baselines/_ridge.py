"""The baseline that embarrasses the field: ridge (and logistic) regression on the same features."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stcontrast._data.spots import Held
from stcontrast.methods._base import Method
from stcontrast.methods._linear import PENALTIES, Classifier, LinearClassifier, RidgePath
from stcontrast.metrics import mean_slide_correlation

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stcontrast._data.folds import Folds
    from stcontrast._data.spots import TrainingData, View

__all__ = ["Ridge"]


class Ridge(Method):
    """Scale, principal components, ridge: one penalty for all genes, chosen on inner folds of donors.

    Parameters
    ----------
    penalty
        Penalty where none is chosen on folds.
    classifier
        For subtypes ``"logistic"`` regression or linear ``"discriminant"`` analysis with shrinkage.
    seed
        Not used: nothing is random.

    Raises
    ------
    ValueError
        If there is no such classifier.
    """

    name: ClassVar[str] = "ridge"
    spotwise: ClassVar[bool] = True
    reference: ClassVar[str] = "Jaume et al. 2024 (HEST-Bench), with the penalty chosen on inner donors"

    def __init__(self, *, penalty: float = 300.0, classifier: Classifier = "logistic", seed: int = 0) -> None:
        super().__init__(seed=seed)
        if classifier not in ("logistic", "discriminant"):
            msg = f"Unknown classifier {classifier!r}. Valid options are 'logistic' and 'discriminant'."
            raise ValueError(msg)
        self.penalty = penalty
        self.kind = classifier
        self.path: RidgePath | None = None
        self.classifier: LinearClassifier | None = None

    @property
    def hyper(self) -> dict[str, Any]:
        """Arguments that make the same method again."""
        return {"penalty": self.penalty, "classifier": self.kind, "seed": self.seed}

    def seen(self, view: View) -> NDArray[np.float32]:
        """What the regressions look at (n_spots, n_inputs)."""
        return view.design

    def fit(self, data: TrainingData, folds: Folds) -> Held:
        """Choose the penalty on the inner folds, then fit on all training spots."""
        held = Held.empty(data)
        paths, held_out = {}, {}
        for i, fold in enumerate(folds.folds):
            train, image = data.training(fold), self.seen(data.in_fold(fold))
            held_out[i] = image[fold.held_out]
            if train.measured.any():
                paths[i] = RidgePath().fit(image[fold.train], train)
            if train.has_labels:
                classifier = LinearClassifier(self.kind).fit(image[fold.train], train)
                held.proba[fold.held_out] = classifier.predict_proba(held_out[i])
        best = -np.inf
        for penalty in PENALTIES if paths else ():
            expression = np.full_like(held.expression, np.nan)
            for i, path in paths.items():
                expression[folds.folds[i].held_out] = path.predict(held_out[i], penalty)
            score = mean_slide_correlation(expression, data.observed, data.slide)
            if score > best:
                best, self.penalty, held.expression = score, penalty, expression
        self.fit_parts(data.prepared())
        return held

    def fit_parts(self, data: TrainingData) -> None:
        """Fit both regressions on these spots."""
        image = self.seen(data)
        self.path = RidgePath().fit(image, data) if data.measured.any() else None
        self.classifier = LinearClassifier(self.kind).fit(image, data) if data.has_labels else None

    def predict_expression(self, view: View) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        if self.path is None:
            msg = "The model was trained without counts: it predicts no expression."
            raise ValueError(msg)
        return self.path.predict(self.seen(view), self.penalty)

    def predict_proba(self, view: View) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        if self.classifier is None:
            msg = "The model was trained without labels: it predicts no subtype."
            raise ValueError(msg)
        return self.classifier.predict_proba(self.seen(view))

    def save_parts(self, folder: Path) -> None:
        """Write the fitted arrays."""
        (folder / "ridge.json").write_text(json.dumps({"penalty": self.penalty}))
        if self.path is not None:
            self.path.save(folder / "ridge.npz")
        if self.classifier is not None:
            self.classifier.save(folder / "logistic.npz")

    def load_parts(self, folder: Path) -> None:
        """Read the fitted arrays."""
        self.penalty = json.loads((folder / "ridge.json").read_text())["penalty"]
        self.path = RidgePath.load(folder / "ridge.npz") if (folder / "ridge.npz").exists() else None
        logistic = folder / "logistic.npz"
        self.classifier = LinearClassifier.load(logistic) if logistic.exists() else None

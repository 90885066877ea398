"""The linear baseline: ridge regression of expression, logistic regression of subtypes, on the same features."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from stcontrast._arguments import checked
from stcontrast.methods._base import ChosenOnFolds
from stcontrast.methods._linear import PENALTIES, LinearClassifier, RidgePath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stcontrast._data.spots import Spots

__all__ = ["Ridge"]


class Ridge(ChosenOnFolds):
    """Scale, principal components, ridge: one penalty for all genes, chosen on inner folds of donors.

    Parameters
    ----------
    penalty
        Penalty where none is chosen on folds.
    seed
        Not used: nothing is random.
    """

    name: ClassVar[str] = "ridge"
    spotwise: ClassVar[bool] = True
    reference: ClassVar[str] = "Jaume et al. 2024 (HEST-Bench), with the penalty chosen on inner donors"
    learnt: ClassVar[tuple[str, ...]] = ("penalty", "path", "model")
    grid: ClassVar[tuple[float, ...]] = PENALTIES
    choices: ClassVar[tuple[str, ...]] = ("penalty",)

    @checked()
    def __init__(self, *, penalty: float = 300.0, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.penalty = penalty
        self.path = RidgePath()
        self.model = LinearClassifier()

    def seen(self, spots: Spots) -> NDArray[np.float32]:
        """What the regressions look at (n_spots, n_inputs)."""
        return spots.design

    def fit_parts(self, spots: Spots) -> None:
        """Fit both regressions on these spots."""
        image = self.seen(spots)
        weights = spots.column_weights if image is spots.design else None
        self.path, self.model = RidgePath(), LinearClassifier()
        if spots.has_counts:
            self.path.fit(image, spots, weights=weights)
        if spots.has_labels:
            self.model.fit(image, spots, weights=weights)

    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        return self.path.predict(self.seen(spots), self.penalty)

    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        return self.model.predict_proba(self.seen(spots))

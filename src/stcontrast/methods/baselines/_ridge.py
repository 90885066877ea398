"""The linear baseline: ridge regression of expression, logistic regression of subtypes, on the same features."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np

from stcontrast._arguments import checked, one_of
from stcontrast.methods._base import ChosenOnFolds
from stcontrast.methods._linear import PENALTIES, LinearClassifier, RidgePath

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stcontrast._data import Fold, Prediction, Spots

__all__ = ["HEST_PENALTY", "Ridge"]

PENALTY: Final = 300.0
# 100 / (256 components · 50 genes), as in HEST-Bench
HEST_PENALTY: Final = 100 / (256 * 50)


class Ridge(ChosenOnFolds):
    """Scale, principal components, ridge: one penalty for all genes, chosen on inner folds of donors.

    Parameters
    ----------
    recipe
        ``"folds"``: the design of all methods, expression centred within its slide, a penalty chosen on inner folds.
        ``"hest"``: that of HEST-Bench. The features of the spot alone, not standardised within the slide; the logarithm
        of raw counts plus one, not centred within slides; no intercept; a fixed penalty. Its predictions are brought to
        the mean and deviation of every gene over the training spots, in the unit of all methods.
    penalty
        Penalty where none is chosen on folds; by default 300, and 0.0078 for ``"hest"``.
    seed
        Not used: nothing is random.
    """

    name: ClassVar[str] = "ridge"
    spotwise: ClassVar[bool] = True
    reference: ClassVar[str] = "Jaume et al. 2024 (HEST-Bench), with the penalty chosen on inner donors"
    learnt: ClassVar[tuple[str, ...]] = ("penalty", "path", "model")
    grid: ClassVar[tuple[float, ...]] = PENALTIES
    choices: ClassVar[tuple[str, ...]] = ("penalty",)

    @checked(recipe=one_of("folds", "hest"))
    def __init__(
        self, *, recipe: Literal["folds", "hest"] = "folds", penalty: float | None = None, seed: int = 0
    ) -> None:
        super().__init__(seed=seed)
        self.recipe = recipe
        self.uses_features = recipe == "hest"
        self.penalty = penalty or (HEST_PENALTY if recipe == "hest" else PENALTY)
        self.path = RidgePath()
        self.model = LinearClassifier()

    def seen(self, spots: Spots) -> NDArray[np.float32]:
        """What the regressions look at (n_spots, n_inputs)."""
        return spots.features if self.recipe == "hest" else spots.design

    def fit(self, spots: Spots, folds: Sequence[Fold]) -> Prediction:
        """Choose the penalty on the inner folds, if the recipe does, then fit on all training spots."""
        return super(ChosenOnFolds, self).fit(spots, folds) if self.recipe == "hest" else super().fit(spots, folds)

    def fit_parts(self, spots: Spots) -> None:
        """Fit both regressions on these spots."""
        image = self.seen(spots)
        weights = spots.column_weights if image is spots.design else None
        self.path, self.model = RidgePath(), LinearClassifier()
        if spots.has_counts:
            self.path.fit(image, self._taught(spots), weights=weights)
            if self.recipe == "hest":
                self._to_unit(spots)
        if spots.has_labels:
            self.model.fit(image, spots, weights=weights)

    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        return self.path.predict(self.seen(spots), self.penalty)

    def _taught(self, spots: Spots) -> Spots:
        """The spots with what the recipe makes of their counts; one slide: nothing is centred within slides."""
        if self.recipe != "hest":
            return spots
        return replace(spots, target=_log_counts(spots), slide=np.zeros_like(spots.slide))

    def _to_unit(self, spots: Spots) -> None:
        """Let the predictions have mean and scale of log(1 + counts per 10 000), not of log(1 + counts)."""
        counted, observed = _log_counts(spots)[spots.measured], spots.observed[spots.measured]
        scale = observed.std(axis=0) / np.maximum(counted.std(axis=0), np.float32(1e-6))
        self.path.arrays["covariance"] = self.path.arrays["covariance"] * scale
        self.path.arrays["mean"] = observed.mean(axis=0, dtype=np.float64)

    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        return self.model.predict_proba(self.seen(spots))


def _log_counts(spots: Spots) -> NDArray[np.float32]:
    counts: NDArray[np.float32] = np.log1p(spots.counts.toarray()).astype(np.float32)
    return counts

"""Ridge regression over a grid of penalties, linear classifiers, and the scale of their inputs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from stcontrast.methods._state import Learns, fitted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data.spots import Spots

__all__ = ["PENALTIES", "Classifier", "LinearClassifier", "RidgePath", "standardizer"]

PENALTIES: Final = tuple(float(value) for value in np.logspace(0, 5, 11))
MAX_COMPONENTS: Final = 256
N_DISCRIMINANT: Final = 150
SHRINKAGE: Final = 0.3


def standardizer(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation of every column (n_columns,); a constant column keeps its scale."""
    deviation = values.std(axis=0)
    return values.mean(axis=0), np.where(deviation < 1e-6, 1.0, deviation).astype(np.float32)


def _solver(values: NDArray[np.float64]) -> str:
    return "covariance_eigh" if values.shape[1] <= 1024 else "randomized"


class RidgePath(Learns):
    """Standardise, rotate to principal components, and solve ridge for every penalty at once.

    Expression is centred within its slide before the fit; the mean over slides is added back to the prediction.
    As in HEST-Bench (Jaume et al. 2024), with the penalty chosen rather than fixed.
    """

    learnt: ClassVar[tuple[str, ...]] = ("arrays",)

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[np.float64]] = {}

    def fit(self, image: NDArray[np.float32], spots: Spots) -> RidgePath:
        """Fit on the measured spots of `spots`, seen through `image` (n_spots, n_image)."""
        x = image[spots.measured].astype(np.float64)
        mean, of_spot = spots.slide_means()
        y = (spots.target - of_spot)[spots.measured].astype(np.float64)
        center, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale < 1e-8] = 1.0
        scaled = (x - center) / scale
        n_components = min(MAX_COMPONENTS, *scaled.shape)
        pca = PCA(n_components, svd_solver=_solver(scaled), random_state=0)
        scores = pca.fit_transform(scaled)
        self.arrays = {
            "center": center, "scale": scale, "pca_center": pca.mean_, "rotation": pca.components_.T,
            "variance": (scores**2).sum(axis=0), "covariance": scores.T @ y, "mean": mean.astype(np.float64),
        }  # fmt: skip
        return self

    def predict(self, image: NDArray[np.float32], penalty: float) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes) at one penalty."""
        a = fitted(self.arrays or None, needs="counts")
        scores = ((image - a["center"]) / a["scale"] - a["pca_center"]) @ a["rotation"]
        coefficients = a["covariance"] / (a["variance"] + penalty)[:, None]
        return (scores @ coefficients + a["mean"]).astype(np.float32)


type Classifier = Literal["logistic", "discriminant"]


class LinearClassifier(Learns):
    """A linear classifier on standardised features, kept as arrays.

    Parameters
    ----------
    kind
        ``"logistic"``: multinomial logistic regression. ``"discriminant"``: linear discriminant analysis of the first
        principal components, its covariance shrunk to their mean variance: surer where spots are few and features many.
    strength
        Inverse of the logistic regression's penalty.
    shrinkage
        Share of the mean variance in the discriminant's covariance.
    """

    learnt: ClassVar[tuple[str, ...]] = ("arrays",)

    def __init__(self, kind: Classifier = "logistic", *, strength: float = 0.03, shrinkage: float = SHRINKAGE) -> None:
        self.kind = kind
        self.strength = strength
        self.shrinkage = shrinkage
        self.arrays: dict[str, NDArray[np.float64]] = {}

    def fit(self, image: NDArray[np.float32], spots: Spots) -> LinearClassifier:
        """Fit on the annotated spots of `spots`, seen through `image` (n_spots, n_image)."""
        rows = spots.label >= 0
        x, y = image[rows].astype(np.float64), spots.label[rows]
        center, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale < 1e-8] = 1.0
        weights, offsets = np.zeros((x.shape[1], spots.n_classes)), np.full(spots.n_classes, -np.inf)
        present = np.unique(y)
        if len(present) == 1:
            offsets[present] = 0.0
        else:
            coefficients, intercepts = self._coefficients((x - center) / scale, y)
            # two classes come back as one row of coefficients, for the second
            both = len(present) == 2
            weights[:, present] = np.hstack([-coefficients / 2, coefficients / 2]) if both else coefficients
            offsets[present] = np.concatenate([-intercepts / 2, intercepts / 2]) if both else intercepts
        self.arrays = {"center": center, "scale": scale, "weights": weights, "offsets": offsets}
        return self

    def _coefficients(
        self, scaled: NDArray[np.float64], y: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of every class that is there (n_image, n_present), (n_present,); of two classes the second alone."""
        # a discriminant needs a class of two spots at least to know of any spread
        if self.kind == "logistic" or len(y) == len(np.unique(y)):
            logistic = LogisticRegression(C=self.strength, max_iter=1000).fit(scaled, y)
            return logistic.coef_.T, logistic.intercept_
        pca = PCA(min(N_DISCRIMINANT, *scaled.shape), svd_solver=_solver(scaled), random_state=0)
        scores = pca.fit_transform(scaled)
        with warnings.catch_warnings():
            # a class of one spot adds nothing to the covariance, and should not
            warnings.filterwarnings("ignore", message="Only one sample available", category=UserWarning)
            discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=self.shrinkage).fit(scores, y)
        coefficients = pca.components_.T @ discriminant.coef_.T
        return coefficients, discriminant.intercept_ - pca.mean_ @ coefficients

    def predict_proba(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        a = fitted(self.arrays or None, needs="labels")
        logits = ((image - a["center"]) / a["scale"]) @ a["weights"] + a["offsets"]
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)

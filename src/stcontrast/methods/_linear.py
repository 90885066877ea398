"""Ridge regression over a grid of penalties, logistic regression, and the scale of their inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
from scipy.special import softmax

from stcontrast._data import column_parts
from stcontrast._state import Learns, fitted

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression

    from stcontrast._data import Spots

__all__ = ["PENALTIES", "LinearClassifier", "RidgePath", "Scaler", "of_every_class", "standardizer"]

PENALTIES: Final = tuple(float(value) for value in np.logspace(0, 5, 11))
MAX_COMPONENTS: Final = 256
# rows or columns up to which all components are computed
MAX_EXACT: Final = 1024
CHUNK: Final = 1024


def standardizer(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation of every column (n_columns,); a constant column keeps its scale."""
    center, deviation = np.empty((2, values.shape[1]), dtype=np.float32)
    for part in column_parts(*values.shape):
        center[part], deviation[part] = values[:, part].mean(axis=0), values[:, part].std(axis=0)
    return center, np.where(deviation < 1e-6, np.float32(1.0), deviation)


class Scaler(Learns):
    """The design of training spots standardised by column, and the same for other spots.

    Parameters
    ----------
    unit
        Bring every spot to the same length too: a slide of another contrast then looks the same.
    """

    learnt: ClassVar[tuple[str, ...]] = ("center", "factor")

    def __init__(self, *, unit: bool = False) -> None:
        self.unit = unit
        self.center = self.factor = np.zeros(0, dtype=np.float32)

    def fit(self, spots: Spots) -> Scaler:
        """Learn mean and deviation of every column; blocks of features weigh alike."""
        self.center, scale = standardizer(spots.design)
        self.factor = spots.column_weights / scale
        return self

    def scaled(
        self, spots: Spots, rows: NDArray[np.intp] | None = None, *, overwrite: bool = False
    ) -> NDArray[np.float32]:
        """Design (n_spots, n_design), standardised; of all spots, or of some rows; in its own memory with `overwrite`."""
        design = spots.design if rows is None else spots.design[rows]
        # (rows are a copy already)
        scaled = np.subtract(design, self.center, out=design if overwrite or rows is not None else None)
        scaled *= self.factor
        if self.unit:
            for start in range(0, len(scaled), CHUNK):
                part = scaled[start : start + CHUNK]
                length = np.linalg.norm(part, axis=1, keepdims=True)
                part *= np.float32(np.sqrt(scaled.shape[1])) / np.maximum(length, np.float32(1e-6))
        return scaled


def _principal(gram: NDArray[np.float64], n_components: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest eigenvalues of a Gram matrix (n_components,), and their vectors (n_columns, n_components)."""
    if len(gram) <= MAX_EXACT:
        values, vectors = np.linalg.eigh(gram)
        return values[::-1][:n_components].clip(0), vectors[:, ::-1][:, :n_components]
    from sklearn.utils.extmath import randomized_svd

    vectors, values, _ = randomized_svd(gram, n_components, random_state=0)
    return values, vectors


def _chunks(rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


class RidgePath(Learns):
    """Standardise, rotate to principal components, and solve ridge for every penalty at once.

    Expression is centred within its slide before the fit; the mean over slides is added back to the prediction.
    As in HEST-Bench (Jaume et al. 2024), with the penalty chosen rather than fixed.
    """

    learnt: ClassVar[tuple[str, ...]] = ("arrays",)

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[np.float64]] = {}

    def fit(self, image: NDArray[np.float32], spots: Spots, *, weights: NDArray[np.float32] | None = None) -> RidgePath:
        """Fit on the measured spots of `spots`.

        Parameters
        ----------
        image
            What the regression sees of all spots (n_spots, n_image).
        spots
            The spots and their target.
        weights
            Factor of every column, once it is standardised (n_image,); 1 by default.
        """
        rows = np.flatnonzero(spots.measured)
        mean, of_spot = spots.slide_means()
        n_columns = image.shape[1]
        center, squares = np.zeros((2, n_columns))
        for part in _chunks(rows):
            center += image[part].sum(axis=0, dtype=np.float64) / len(rows)
        for part in _chunks(rows):
            squares += ((image[part] - center) ** 2).sum(axis=0)
        scale = np.sqrt(squares / len(rows))
        scale[scale < 1e-8] = 1.0
        if weights is not None:
            scale = scale / weights
        n_components = min(MAX_COMPONENTS, len(rows), n_columns)
        if len(rows) <= min(n_columns, MAX_EXACT):
            # few spots: their own components cost less than those of the columns
            scaled = (image[rows] - center) / scale
            _, values, components = np.linalg.svd(scaled, full_matrices=False)
            variance, rotation = values[:n_components] ** 2, components[:n_components].T
            covariance = (scaled @ rotation).T @ (spots.target[rows] - of_spot[rows])
        else:
            # chunk by chunk: a copy of a wide table costs more than all else
            gram, product = np.zeros((n_columns, n_columns)), np.zeros((n_columns, spots.n_genes))
            for part in _chunks(rows):
                scaled = (image[part] - center) / scale
                gram += scaled.T @ scaled
                product += scaled.T @ (spots.target[part] - of_spot[part])
            variance, rotation = _principal(gram, n_components)
            covariance = rotation.T @ product
        self.arrays = {
            "center": center, "scale": scale, "rotation": rotation, "variance": variance,
            "covariance": covariance, "mean": mean.astype(np.float64),
        }  # fmt: skip
        return self

    def predict(self, image: NDArray[np.float32], penalty: float) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes) at one penalty."""
        a = fitted(self.arrays or None, needs="counts")
        coefficients = a["rotation"] @ (a["covariance"] / (a["variance"] + penalty)[:, None])
        found = np.empty((len(image), coefficients.shape[1]), dtype=np.float32)
        for part in _chunks(np.arange(len(image))):
            found[part] = ((image[part] - a["center"]) / a["scale"]) @ coefficients + a["mean"]
        return found


class LinearClassifier(Learns):
    """Multinomial logistic regression on standardised features, kept as arrays.

    Parameters
    ----------
    strength
        Inverse of its penalty.
    """

    learnt: ClassVar[tuple[str, ...]] = ("arrays",)

    def __init__(self, *, strength: float = 0.03) -> None:
        self.strength = strength
        self.arrays: dict[str, NDArray[np.float64]] = {}

    def fit(
        self, image: NDArray[np.float32], spots: Spots, *, weights: NDArray[np.float32] | None = None
    ) -> LinearClassifier:
        """Fit on the annotated spots of `spots`; parameters as those of :meth:`RidgePath.fit`."""
        rows = spots.label >= 0
        x, y = image[rows].astype(np.float64), spots.label[rows]
        center, scale = np.empty((2, x.shape[1]))
        for part in column_parts(*x.shape):
            center[part], scale[part] = x[:, part].mean(axis=0), x[:, part].std(axis=0)
        scale[scale < 1e-8] = 1.0
        if weights is not None:
            scale = scale / weights
        # in place: a copy in double precision is twice the features
        x -= center
        x /= scale
        present = np.unique(y)
        fit = None
        if len(present) > 1:
            from sklearn.linear_model import LogisticRegression

            fit = LogisticRegression(C=self.strength, max_iter=1000).fit(x, y)
        coefficients, offsets = of_every_class(fit, present, n_columns=x.shape[1], n_classes=spots.n_classes)
        self.arrays = {"center": center, "scale": scale, "weights": coefficients, "offsets": offsets}
        return self

    def predict_proba(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        a = fitted(self.arrays or None, needs="labels")
        proba = np.empty((len(image), len(a["offsets"])), dtype=np.float32)
        for part in _chunks(np.arange(len(image))):
            proba[part] = softmax(((image[part] - a["center"]) / a["scale"]) @ a["weights"] + a["offsets"], axis=1)
        return proba


def of_every_class(
    fit: LogisticRegression | LinearDiscriminantAnalysis | None,
    present: NDArray[np.int64],
    *,
    n_columns: int,
    n_classes: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients (n_columns, n_classes) and offsets (n_classes,) of the logits of all classes.

    Parameters
    ----------
    fit
        scikit-learn's classifier; `None`: all classes that are there are equally likely.
    present
        Classes that it knows; the offset of any other is minus infinity.
    n_columns, n_classes
        Numbers of columns and of classes.
    """
    coefficients, offsets = np.zeros((n_columns, n_classes)), np.full(n_classes, -np.inf)
    if fit is None:
        offsets[present] = 0.0
        return coefficients, offsets
    slopes, intercepts = fit.coef_.T, fit.intercept_
    if len(present) == 2:
        # two classes come back as one row of coefficients, for the second
        slopes, intercepts = np.hstack([-slopes / 2, slopes / 2]), np.concatenate([-intercepts / 2, intercepts / 2])
    coefficients[:, present], offsets[present] = slopes, intercepts
    return coefficients, offsets

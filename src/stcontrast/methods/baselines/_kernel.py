"""Ridge regression in the space of a Gaussian kernel: what is alike in all features predicts alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from scipy.linalg import cholesky, eigh, solve_triangular

from stcontrast._arguments import checked
from stcontrast._state import Learns, fitted
from stcontrast.methods._base import ChosenOnFolds
from stcontrast.methods._linear import Scaler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from stcontrast._data import Fold, Prediction, Spots

__all__ = ["Kernel", "KernelPath"]

PENALTIES: Final = (0.3, 1.0, 3.0, 10.0)
N_LANDMARKS: Final = 1000
SPOTS_AT_ONCE: Final = 2048
# two spots with the same features would leave the kernel without a root
JITTER: Final = 1e-8
SMALLEST: Final = 1e-3


class KernelPath(Learns):
    """Kernel ridge regression over a grid of penalties, on landmarks where there are many spots (Nyström).

    k(x, z) = exp(-|x - z|² / m), with m the median squared distance of the landmarks. With as many landmarks as spots
    it is kernel ridge regression itself, its mean not penalised.

    Parameters
    ----------
    seed
        Seed of the choice of landmarks.

    References
    ----------
    Saunders et al. 1998 (kernel ridge regression); Williams and Seeger 2000 (Nyström).
    """

    learnt: ClassVar[tuple[str, ...]] = ("arrays",)

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.arrays: dict[str, NDArray[Any]] = {}

    def fit(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> KernelPath:
        """Fit targets (n_spots, n_targets) on inputs (n_spots, n_inputs)."""
        return self.span(x).regress(x, y)

    def span(self, x: NDArray[np.float32]) -> KernelPath:
        """Choose landmarks among these inputs and decompose their coordinates: once for all targets and penalties."""
        landmarks = x
        if len(x) > N_LANDMARKS:
            chosen = np.random.default_rng(self.seed).choice(len(x), N_LANDMARKS, replace=False)
            landmarks = x[np.sort(chosen)]
        squared = _squared_distance(landmarks, landmarks)
        between = squared[np.triu_indices(len(landmarks), 1)]
        width = float(np.median(between)) if len(between) else 1.0
        self.arrays = {"landmarks": landmarks, "width": np.array(width or 1.0)}
        kernel = self._kernel(landmarks)
        kernel[np.diag_indices_from(kernel)] += JITTER
        self.arrays["root"] = cholesky(kernel, lower=True)
        # part by part: the coordinates of all spots are larger than their features
        gram, total = np.zeros_like(kernel), np.zeros(len(landmarks))
        for part in _parts(x):
            mapped = self._mapped(part)
            gram += mapped.T @ mapped
            total += mapped.sum(axis=0)
        center = total / len(x)
        # one decomposition for every penalty
        values, vectors = eigh(gram - len(x) * np.outer(center, center), overwrite_a=True)
        self.arrays |= {"center": center, "values": values, "vectors": vectors}
        return self

    def regress(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> KernelPath:
        """Fit targets (n_spots, n_targets) on the inputs that :meth:`span` was given."""
        mean = y.mean(axis=0, dtype=np.float64)
        product = np.zeros((len(self.arrays["center"]), y.shape[1]))
        for rows in _row_parts(len(x)):
            product += self._kernel(x[rows]).T @ (y[rows] - mean)
        # (the targets are centred, so that the coordinates need not be; one step from kernel to coordinates for all)
        product = solve_triangular(self.arrays["root"], product, lower=True)
        self.arrays |= {"mean": mean, "product": self.arrays["vectors"].T @ product}
        return self

    def predict(self, x: NDArray[np.float32], penalty: float) -> NDArray[np.float32]:
        """Targets (n_spots, n_targets) at one penalty."""
        a = self.arrays
        dual, level = (a["dual"], a["level"]) if "dual" in a else self._solution(penalty)
        return np.concatenate([self._kernel(part) @ dual + level for part in _parts(x)]).astype(np.float32)

    def settle(self, penalty: float) -> None:
        """Keep what predicts at this penalty, and no more: there are no others afterwards."""
        dual, level = self._solution(penalty)
        self.arrays = {name: self.arrays[name] for name in ("landmarks", "width")} | {"dual": dual, "level": level}

    def _solution(self, penalty: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights of the landmarks (n_landmarks, n_targets), and level (n_targets,), at one penalty."""
        a = self.arrays
        coefficients = a["vectors"] @ (a["product"] / (a["values"].clip(0) + penalty)[:, None])
        dual: NDArray[np.float64] = solve_triangular(a["root"], coefficients, lower=True, trans="T")
        return dual, a["mean"] - a["center"] @ coefficients

    def _mapped(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Coordinates (n_spots, n_landmarks) whose inner products are the kernel."""
        mapped: NDArray[np.float64] = solve_triangular(self.arrays["root"], self._kernel(x).T, lower=True).T
        return mapped

    def _kernel(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        kernel: NDArray[np.float64] = np.exp(-_squared_distance(x, self.arrays["landmarks"]) / self.arrays["width"])
        return kernel


class Kernel(ChosenOnFolds):
    """Kernel ridge regression of expression and of class membership, its penalties chosen on inner folds of donors.

    Parameters
    ----------
    penalty, class_penalty
        Penalties for expression and for subtypes where none are chosen on folds.
    seed
        Seed of the choice of landmarks among more than a thousand spots.
    """

    name: ClassVar[str] = "kernel"
    spotwise: ClassVar[bool] = True
    reference: ClassVar[str] = "Kernel ridge regression (Saunders et al. 1998), the penalty chosen on inner donors"
    learnt: ClassVar[tuple[str, ...]] = ("penalty", "class_penalty", "scaler", "expression", "classes")
    grid: ClassVar[tuple[float, ...]] = PENALTIES
    choices: ClassVar[tuple[str, ...]] = ("penalty", "class_penalty")

    @checked()
    def __init__(self, *, penalty: float = 3.0, class_penalty: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.penalty = penalty
        self.class_penalty = class_penalty
        self.scaler = Scaler()
        self.expression, self.classes = KernelPath(seed=seed), KernelPath(seed=seed)

    def fit(self, spots: Spots, folds: Sequence[Fold]) -> Prediction:
        """Choose both penalties on the inner folds, then fit on all training spots."""
        found = super().fit(spots, folds)
        for path, penalty in ((self.expression, self.penalty), (self.classes, self.class_penalty)):
            if path.arrays:
                path.settle(penalty)
        return found

    def fit_parts(self, spots: Spots) -> None:
        """Fit both regressions on these spots."""
        scaled = self.scaler.fit(spots).scaled(spots)
        self.expression, self.classes = KernelPath(seed=self.seed), KernelPath(seed=self.seed)
        if spots.has_counts:
            self.expression.fit(scaled[spots.measured], spots.level_target()[spots.measured])
        if spots.has_labels:
            known = spots.label >= 0
            self.classes.fit(scaled[known], np.eye(spots.n_classes, dtype=np.float32)[spots.label[known]])

    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        fitted(self.expression.arrays or None, needs="counts")
        return self.expression.predict(self.scaler.scaled(spots), self.penalty)

    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes): regressed membership, at least 0.001."""
        fitted(self.classes.arrays or None, needs="labels")
        member = np.maximum(self.classes.predict(self.scaler.scaled(spots), self.class_penalty), SMALLEST)
        return (member / member.sum(axis=1, keepdims=True)).astype(np.float32)


def _squared_distance(x: NDArray[np.float32], z: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared distances (n_x, n_z), by a matrix product."""
    a, b = x.astype(np.float64), z.astype(np.float64)
    squared: NDArray[np.float64] = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return squared.clip(0)


def _row_parts(n_spots: int) -> list[slice]:
    return [slice(start, start + SPOTS_AT_ONCE) for start in range(0, max(n_spots, 1), SPOTS_AT_ONCE)]


def _parts(x: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (x[rows] for rows in _row_parts(len(x)))

"""Ridge regression in the space of a Gaussian kernel: what is alike in all features predicts alike."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from scipy.linalg import cholesky, solve, solve_triangular
from scipy.spatial.distance import cdist

from stcontrast._data.spots import Held
from stcontrast.methods._arrays import load_arrays, save_arrays
from stcontrast.methods._base import Method
from stcontrast.methods._network import standardiser
from stcontrast.metrics import mean_slide_correlation

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stcontrast._data.folds import Folds
    from stcontrast._data.spots import TrainingData, View

__all__ = ["Kernel", "KernelPath"]

PENALTIES: Final = (0.3, 1.0, 3.0, 10.0)
N_LANDMARKS: Final = 1000
PREDICTED_AT_ONCE: Final = 8192
# two spots with the same features would leave the kernel without a root
JITTER: Final = 1e-8
SMALLEST: Final = 1e-3


class KernelPath:
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

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.arrays: dict[str, NDArray[Any]] = {}

    def fit(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> KernelPath:
        """Fit targets (n_spots, n_targets) on inputs (n_spots, n_inputs)."""
        landmarks = x
        if len(x) > N_LANDMARKS:
            chosen = np.random.default_rng(self.seed).choice(len(x), N_LANDMARKS, replace=False)
            landmarks = x[np.sort(chosen)]
        squared = cdist(landmarks, landmarks, "sqeuclidean")
        between = squared[np.triu_indices(len(landmarks), 1)]
        width = float(np.median(between)) if len(between) else 1.0
        self.arrays = {"landmarks": landmarks, "width": np.array(width or 1.0)}
        kernel = self._kernel(landmarks)
        kernel[np.diag_indices_from(kernel)] += JITTER
        self.arrays["root"] = cholesky(kernel, lower=True)
        mapped = np.concatenate([self._mapped(part) for part in _parts(x)])
        center, mean = mapped.mean(axis=0), y.mean(axis=0, dtype=np.float64)
        mapped -= center
        product = mapped.T @ (y - mean)
        self.arrays |= {"center": center, "mean": mean, "gram": mapped.T @ mapped, "product": product}
        return self

    def predict(self, x: NDArray[np.float32], penalty: float) -> NDArray[np.float32]:
        """Targets (n_spots, n_targets) at one penalty."""
        a = self.arrays
        penalised = a["gram"] + penalty * np.eye(len(a["gram"]))
        coefficients = solve(penalised, a["product"], assume_a="pos")
        level = a["mean"] - a["center"] @ coefficients
        dual = solve_triangular(a["root"], coefficients, lower=True, trans="T")
        return np.concatenate([self._kernel(part) @ dual + level for part in _parts(x)]).astype(np.float32)

    def _mapped(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Coordinates (n_spots, n_landmarks) whose inner products are the kernel."""
        mapped: NDArray[np.float64] = solve_triangular(self.arrays["root"], self._kernel(x).T, lower=True).T
        return mapped

    def _kernel(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        kernel: NDArray[np.float64] = np.exp(-cdist(x, self.arrays["landmarks"], "sqeuclidean") / self.arrays["width"])
        return kernel


class Kernel(Method):
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

    def __init__(self, *, penalty: float = 3.0, class_penalty: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.penalty = penalty
        self.class_penalty = class_penalty
        self.scales: dict[str, NDArray[Any]] = {}
        self.expression: KernelPath | None = None
        self.classes: KernelPath | None = None

    @property
    def hyper(self) -> dict[str, Any]:
        """Arguments that make the same method again."""
        return {"penalty": self.penalty, "class_penalty": self.class_penalty, "seed": self.seed}

    def fit(self, data: TrainingData, folds: Folds) -> Held:
        """Choose the penalties on the inner folds, then fit on all training spots."""
        held = {penalty: Held.empty(data) for penalty in PENALTIES}
        for fold in folds.folds:
            part = Kernel(seed=self.seed)
            train, view = data.training(fold), data.held_out(fold)
            part.fit_parts(train)
            for penalty in PENALTIES:
                part.penalty = part.class_penalty = penalty
                if part.expression is not None:
                    held[penalty].expression[fold.held_out] = part.predict_expression(view)
                if part.classes is not None:
                    held[penalty].proba[fold.held_out] = part.predict_proba(view)
        chosen = Held.empty(data)
        if data.measured.any():
            scores = {p: mean_slide_correlation(held[p].expression, data.observed, data.slide) for p in PENALTIES}
            self.penalty = max(scores, key=lambda penalty: scores[penalty])
            chosen.expression = held[self.penalty].expression
        labelled = np.flatnonzero(np.isfinite(held[PENALTIES[0]].proba).all(axis=1) & (data.label >= 0))
        if len(labelled):
            likelihood = {p: np.log(held[p].proba[labelled, data.label[labelled]]).mean() for p in PENALTIES}
            self.class_penalty = max(likelihood, key=lambda penalty: likelihood[penalty])
            chosen.proba = held[self.class_penalty].proba
        self.fit_parts(data.prepared())
        return chosen

    def fit_parts(self, data: TrainingData) -> None:
        """Fit both regressions on these spots."""
        center, scale = standardiser(data.design)
        self.scales = {"center": center, "scale": scale}
        scaled = (data.design - center) / scale
        self.expression = self.classes = None
        if data.measured.any():
            level = data.level_target()[data.measured]
            self.expression = KernelPath(seed=self.seed).fit(scaled[data.measured], level)
        if data.has_labels:
            known = data.label >= 0
            member = np.eye(data.n_classes, dtype=np.float32)[data.label[known]]
            self.classes = KernelPath(seed=self.seed).fit(scaled[known], member)

    def predict_expression(self, view: View) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        if self.expression is None:
            msg = "The model was trained without counts: it predicts no expression."
            raise ValueError(msg)
        return self.expression.predict(self._scaled(view), self.penalty)

    def predict_proba(self, view: View) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes): regressed membership, what is below 0.001 raised to it."""
        if self.classes is None:
            msg = "The model was trained without labels: it predicts no subtype."
            raise ValueError(msg)
        member = np.maximum(self.classes.predict(self._scaled(view), self.class_penalty), SMALLEST)
        return (member / member.sum(axis=1, keepdims=True)).astype(np.float32)

    def save_parts(self, folder: Path) -> None:
        """Write the fitted arrays."""
        chosen = {"penalty": self.penalty, "class_penalty": self.class_penalty}
        (folder / "kernel.json").write_text(json.dumps(chosen))
        save_arrays(folder / "scales.npz", self.scales)
        for name, path in (("expression", self.expression), ("classes", self.classes)):
            if path is not None:
                save_arrays(folder / f"{name}.npz", path.arrays)

    def load_parts(self, folder: Path) -> None:
        """Read the fitted arrays."""
        for name, value in json.loads((folder / "kernel.json").read_text()).items():
            setattr(self, name, value)
        self.scales = load_arrays(folder / "scales.npz")
        self.expression, self.classes = self._path(folder / "expression.npz"), self._path(folder / "classes.npz")

    def _path(self, stored: Path) -> KernelPath | None:
        if not stored.exists():
            return None
        path = KernelPath(seed=self.seed)
        path.arrays = load_arrays(stored)
        return path

    def _scaled(self, view: View) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = (view.design - self.scales["center"]) / self.scales["scale"]
        return scaled


def _parts(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [x[start : start + PREDICTED_AT_ONCE] for start in range(0, len(x), PREDICTED_AT_ONCE)] or [x]

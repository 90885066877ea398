"""Subtypes from image features and the joint embedding together."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from scipy.special import softmax

from stcontrast._state import Learns, fitted
from stcontrast.methods._linear import Scaler, of_every_class
from stcontrast.methods._over_folds import over_folds
from stcontrast.methods.baselines._kernel import KernelPath
from stcontrast.methods.stcontrast._stacking import mixed, stack_proba

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from stcontrast._data import Fold, Spots

type Views = Mapping[str, NDArray[np.float32]]

__all__ = ["Subtypes", "choose_on_folds"]

PRIOR: Final = {"discriminant": 0.5, "kernel": 0.5, "discriminant of features": 0.0, "kernel of features": 0.0}
N_AXES: Final = 150
SHRINKAGE: Final = 0.3
PENALTY: Final = 1.0
SMALLEST: Final = 1e-3
N_ROUNDS: Final = 4
# with fewer spots to label there is nothing to gain
LEAST_UNLABELLED: Final = 0.1
# held-out labels that are needed to decide against self-training
FEWEST_LABELS: Final = 100
SPOTS_AT_ONCE: Final = 8192


class Subtypes(Learns):
    """Classifiers on principal axes of the image features and the joint embedding, which weigh alike.

    The axes are those of all training spots, annotated or not. ``"discriminant"``: linear discriminant analysis with a
    shrunken covariance. ``"kernel"``: kernel regression of class membership. ``"discriminant of features"`` and ``"kernel
    of features"``: the same without the joint embedding; where labels are few, they have little weight. Where there is
    no joint embedding, the first two see the features alone, and there are no others.

    Parameters
    ----------
    self_training
        Learn from labels that the classifiers gave to unlabelled spots.
    seed
        Seed of the choice of landmarks among more than a thousand spots.

    References
    ----------
    Scudder 1965 (self-training).
    """

    learnt: ClassVar[tuple[str, ...]] = ("weights", "self_training", "scaler", "arrays", "kernels")

    def __init__(self, *, self_training: bool = False, seed: int = 0) -> None:
        self.seed = seed
        self.self_training = self_training
        self.weights = dict(PRIOR)
        self.scaler = Scaler(unit=True)
        self.arrays: dict[str, NDArray[Any]] = {}
        self.kernels = self._fresh_kernels()

    def fit(self, spots: Spots, embedding: NDArray[np.float32] | None, *, overwrite_design: bool = False) -> None:
        """Fit on training spots.

        Parameters
        ----------
        spots
            Training spots.
        embedding
            Their joint embedding (n_spots, d), where there were counts to learn it from.
        overwrite_design
            Use the memory of their design, which is of no use afterwards.
        """
        from sklearn.decomposition import PCA

        self.kernels = self._fresh_kernels()
        self.scaler.fit(spots)
        blocks = [self.scaler.scaled(spots, overwrite=overwrite_design), *([] if embedding is None else [embedding])]
        self.arrays = {"n_classes": np.array(spots.n_classes)}
        for i, block in enumerate(blocks):
            center = block.mean(axis=0)
            squares = [((block[part] - center) ** 2).sum(axis=1) for part in _parts(len(block))]
            spread = np.sqrt(np.concatenate(squares).mean())
            self.arrays |= {f"center{i}": center, f"spread{i}": np.maximum(spread, np.float32(1e-6))}
        # the features alone are the first block, both together the second
        for i in range(len(blocks)):
            joined = self._joined(blocks[: i + 1])
            pca = PCA(min(N_AXES, *joined.shape), copy=False, random_state=0).fit(joined)
            del joined
            self.arrays[f"axes{i}"] = pca.components_.T.astype(np.float32)
        views, label = self._views(blocks), spots.label
        del blocks, block
        if self.self_training:
            label = self._own_labels(views, label)
        self._fit_members(_rows(views, label >= 0), label[label >= 0])
        for kernel in self.kernels.values():
            if kernel.arrays:
                kernel.settle(PENALTY)

    def _fresh_kernels(self) -> dict[str, KernelPath]:
        return {name: KernelPath(seed=self.seed) for name in PRIOR if name.startswith("kernel")}

    def predict(self, spots: Spots, embedding: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        return mixed(self.weights, self.predict_each(spots, embedding))

    def predict_each(self, spots: Spots, embedding: NDArray[np.float32] | None) -> dict[str, NDArray[np.float32]]:
        """Probability of every class (n_spots, n_classes) by each classifier."""
        fitted(self.arrays or None, needs="labels")
        return self._each(self._views([self.scaler.scaled(spots), *([] if embedding is None else [embedding])]))

    def _joined(self, blocks: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        a, start = self.arrays, 0
        joined = np.empty((len(blocks[0]), sum(block.shape[1] for block in blocks)), dtype=np.float32)
        for i, block in enumerate(blocks):
            columns = joined[:, start : start + block.shape[1]]
            np.subtract(block, a[f"center{i}"], out=columns)
            columns /= a[f"spread{i}"]
            start += block.shape[1]
        return joined

    def _views(self, blocks: Sequence[NDArray[np.float32]]) -> Views:
        """Principal axes (n_spots, n_axes) by suffix of the classifiers: of both blocks, and of the features alone."""
        axes = [
            np.concatenate(
                [
                    self._joined([block[part] for block in blocks[: i + 1]]) @ self.arrays[f"axes{i}"]
                    for part in _parts(len(blocks[0]))
                ]
            )
            for i in range(len(blocks))
        ]
        # without an embedding there are the features alone, and nothing to fit twice
        return {"": axes[-1], " of features": axes[0]} if len(axes) > 1 else {"": axes[0]}

    def _own_labels(self, views: Views, label: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class codes (n_spots,): those of annotated spots, and in others what the classifiers say after a few rounds."""
        # classifiers without weight have no say
        used = {of: x for of, x in views.items() if self.weights[f"discriminant{of}"] + self.weights[f"kernel{of}"] > 0}
        known = label >= 0

        def filled() -> NDArray[np.int64]:
            return np.where(known, label, mixed(self.weights, self._each(used)).argmax(axis=1))

        self._fit_members(_rows(used, known), label[known])
        own = filled()
        # of all spots from now on, whatever their labels
        for of, x in used.items():
            self.kernels[f"kernel{of}"].span(x)
        for _ in range(N_ROUNDS - 1):
            self._fit_members(used, own, span=False)
            own = filled()
        return own

    def _fit_members(self, views: Views, label: NDArray[np.int64], *, span: bool = True) -> None:
        n_classes = int(self.arrays["n_classes"])
        member = np.eye(n_classes, dtype=np.float32)[label]
        for of, x in views.items():
            kernel = self.kernels[f"kernel{of}"]
            (kernel.span(x) if span else kernel).regress(x, member)
            coefficients, intercepts = _discriminant(x, label, n_classes)
            self.arrays |= {f"coefficients{of}": coefficients, f"intercepts{of}": intercepts}

    def _each(self, views: Views) -> dict[str, NDArray[np.float32]]:
        found = {}
        for of, x in views.items():
            logits = x @ self.arrays[f"coefficients{of}"] + self.arrays[f"intercepts{of}"]
            found[f"discriminant{of}"] = softmax(logits, axis=1).astype(np.float32)
            member = np.maximum(self.kernels[f"kernel{of}"].predict(x, PENALTY), SMALLEST)
            found[f"kernel{of}"] = (member / member.sum(axis=1, keepdims=True)).astype(np.float32)
        return found


def _parts(n_spots: int) -> list[slice]:
    """Spots to compute with at once."""
    return [slice(start, start + SPOTS_AT_ONCE) for start in range(0, max(n_spots, 1), SPOTS_AT_ONCE)]


def _rows(views: Views, rows: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
    return {of: x[rows] for of, x in views.items()}


def _discriminant(
    x: NDArray[np.float32], y: NDArray[np.int64], n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients (n_axes, n_classes) and intercepts (n_classes,) of the logits; minus infinity for an absent class."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    present = np.unique(y)
    fit = None
    # a class of two spots at least is needed to know of any spread
    if len(present) > 1 and len(y) > len(present):
        with warnings.catch_warnings():
            # a class of one spot adds nothing to the covariance, and should not
            warnings.filterwarnings("ignore", message="Only one sample available", category=UserWarning)
            fit = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE).fit(x.astype(np.float64), y)
    return of_every_class(fit, present, n_columns=x.shape[1], n_classes=n_classes)


def _predict_held_out(
    options: Mapping[str, Any], embedding: NDArray[np.float32] | None, fold: Fold
) -> dict[str, NDArray[np.float32]]:
    """What every classifier, fitted on a fold's training spots, predicts of its held-out spots."""
    part = Subtypes(**options)
    # the spots of a fold are copies
    part.fit(fold.training, None if embedding is None else embedding[fold.train], overwrite_design=True)
    return part.predict_each(fold.unseen(), None if embedding is None else embedding[fold.held_out])


def choose_on_folds(
    spots: Spots, embedding: NDArray[np.float32] | None, folds: Sequence[Fold], *, seed: int
) -> tuple[NDArray[np.float32], dict[str, float], bool]:
    """Weigh the classifiers, and decide about self-training, by the likelihood of held-out labels.

    With fewer than a hundred held-out labels, there is self-training wherever a tenth of the spots has no label.

    Parameters
    ----------
    spots
        Training spots.
    embedding
        Their joint embedding (n_spots, d), out-of-fold where their counts were learnt from; `None` without counts.
    folds
        Inner folds over annotated spots.
    seed
        Seed of the classifiers.

    Returns
    -------
    Out-of-fold probabilities (n_spots, n_classes), NaN where a spot was not held out; the weights; and whether
    self-training helps.
    """
    folds = [fold for fold in folds if fold.has_labels]
    nothing = np.full((len(spots), spots.n_classes), np.nan, dtype=np.float32)
    unlabelled = float((spots.label < 0).mean()) >= LEAST_UNLABELLED
    if not folds:
        return nothing, dict(PRIOR), unlabelled
    found: dict[bool, tuple[float, NDArray[np.float32], dict[str, float]]] = {}
    for self_training in (True, False) if unlabelled else (False,):
        each: dict[str, NDArray[np.float32]] = {}
        options = {"self_training": self_training, "seed": seed}
        of_folds = over_folds(partial(_predict_held_out, options, embedding), folds)
        for fold, predicted in zip(folds, of_folds, strict=True):
            for name, proba in predicted.items():
                each.setdefault(name, nothing.copy())[fold.held_out] = proba
        weights = stack_proba(each, spots.label, prior={name: PRIOR[name] for name in each})
        proba = mixed(weights, each)
        rows = np.flatnonzero(np.isfinite(proba).all(axis=1) & (spots.label >= 0))
        given = np.maximum(proba[rows, spots.label[rows]], SMALLEST)
        found[self_training] = (float(np.log(given).mean()) if len(given) else 0.0, proba, weights)
        if len(rows) < FEWEST_LABELS:
            break
    chosen = max(found, key=lambda one: found[one][0])
    return found[chosen][1], found[chosen][2], chosen

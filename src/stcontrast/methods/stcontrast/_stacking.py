"""Weights with which several predictions are averaged, and how far to trust their spread, from out-of-fold predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast._slides import rows_by_slide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["CalibrationSlope", "StackedWeights", "mixed", "stack_proba"]

N_STEPS: Final = 200
SLOPES: Final = (0.05, 2.0)
# donors of data that the fixed weights count as
PRIOR_DONORS: Final = 6
# with fewer donors, what was held out says nothing of a new one
FEWEST_DONORS: Final = 3
# labelled spots that equal weights of classifiers count as
PRIOR_LABELS: Final = 100


class StackedWeights:
    """Least-squares weights of several predictions of gene coordinates, drawn towards fixed ones.

    Out-of-fold predictions and measurements are centred within the slide. Weights are not below 0 and sum to 1. They
    are those of the data (Breiman 1996) to the share D / (D + 6) with D held-out donors, and the fixed ones where fewer
    than three donors could be held out: sections of one donor favour whatever remembers that donor.

    Parameters
    ----------
    prior
        Fixed weights by name.

    References
    ----------
    Breiman 1996 (Stacked regressions).
    """

    def __init__(self, prior: Mapping[str, float]) -> None:
        self.prior = dict(prior)
        self.sums: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def add(
        self, predicted: Mapping[str, NDArray[np.float32]], observed: NDArray[np.float32], slide: NDArray[np.int64]
    ) -> None:
        """Add the held-out spots of a fold: coordinates by name, as measured (n_spots, k), and slides (n_spots,)."""
        n = len(self.prior)
        gram, product = np.zeros((n, n)), np.zeros(n)
        for rows in rows_by_slide(slide):
            parts = [
                values[rows].astype(np.float64) for values in (*(predicted[name] for name in self.prior), observed)
            ]
            *centered, truth = (part - part.mean(axis=0) for part in parts)
            gram += [[(one * other).sum() for other in centered] for one in centered]
            product += [(one * truth).sum() for one in centered]
        self.sums.append((gram, product))

    def found(self, *, n_donors: int, without: int | None = None) -> dict[str, float]:
        """The weights; `without` leaves out a fold, to weigh the predictions of that fold."""
        from scipy.optimize import nnls

        sums = [part for i, part in enumerate(self.sums) if i != without]
        if n_donors < FEWEST_DONORS or not sums:
            return dict(self.prior)
        gram, product = (np.sum(parts, axis=0) for parts in zip(*sums, strict=True))
        # least squares on the square root of the Gram matrix has the same solution
        values, vectors = np.linalg.eigh(gram)
        kept = values > 1e-10 * max(values.max(initial=0.0), 1e-300)
        if not kept.any():
            return dict(self.prior)
        root = (vectors[:, kept] * np.sqrt(values[kept])).T
        target = (vectors[:, kept] / np.sqrt(values[kept])).T @ product
        best = nnls(root, target)[0]
        if best.sum() == 0:
            return dict(self.prior)
        share = n_donors / (n_donors + PRIOR_DONORS)
        both = share * best / best.sum() + (1 - share) * np.array(list(self.prior.values()))
        return dict(zip(self.prior, both.tolist(), strict=True))


class CalibrationSlope:
    """Slope of the measurement on the out-of-fold prediction, of every gene.

    It sets how much a gene's prediction varies, and leaves its correlation as it is. Slopes of single genes are drawn
    half-way to that of all genes together, and lie between 0.05 and 2.
    """

    def __init__(self) -> None:
        self.sums: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def add(self, predicted: NDArray[np.float32], observed: NDArray[np.float32], slide: NDArray[np.int64]) -> None:
        """Add the held-out spots of a fold: expression predicted and measured (n_spots, n_genes), slides (n_spots,)."""
        product, square = np.zeros(observed.shape[1]), np.zeros(observed.shape[1])
        for rows in rows_by_slide(slide):
            claimed, true = (part[rows] - part[rows].mean(axis=0, dtype=np.float64) for part in (predicted, observed))
            product += (claimed * true).sum(axis=0)
            square += (claimed**2).sum(axis=0)
        self.sums.append((product, square))

    def found(self, *, without: int | None = None) -> NDArray[np.float32]:
        """Slopes (n_genes,); `without` leaves out a fold, unless it is the only one."""
        sums = [part for i, part in enumerate(self.sums) if i != without] or self.sums
        product, square = (np.sum(parts, axis=0) for parts in zip(*sums, strict=True))
        pooled = product.sum() / square.sum() if square.sum() > 0 else 1.0
        slope = np.divide(product, square, out=np.full(len(square), pooled), where=square > 0)
        return np.clip((slope + pooled) / 2, *SLOPES).astype(np.float32)


def stack_proba(
    predictions: Mapping[str, NDArray[np.float32]], label: NDArray[np.int64], *, prior: Mapping[str, float]
) -> dict[str, float]:
    """Weights of class probabilities: the greatest likelihood of held-out labels, drawn towards fixed weights.

    Parameters
    ----------
    predictions
        Each (n_spots, n_classes), by name; NaN in spots without a prediction.
    label
        Class codes (n_spots,), -1 for none.
    prior
        Fixed weights by name, which count as a hundred labels.

    Returns
    -------
    Weights by name, none below 0, summing to 1. By expectation maximisation, which finds the only optimum there is.
    """
    fixed = np.array(list(prior.values()))
    parts = [predictions[name] for name in prior]
    finite = np.all([np.isfinite(part).all(axis=1) for part in parts], axis=0)
    rows = np.flatnonzero(finite & (label >= 0))
    if len(rows) == 0:
        return dict(prior)
    given = np.stack([part[rows, label[rows]] for part in parts], axis=1).astype(np.float64)
    given = np.maximum(given, 1e-6)
    weights = np.full(len(parts), 1 / len(parts))
    for _ in range(N_STEPS):
        share = weights * given
        weights = (share / share.sum(axis=1, keepdims=True)).mean(axis=0)
    weights[weights < 1e-3] = 0.0
    of_data = len(rows) / (len(rows) + PRIOR_LABELS)
    both = of_data * weights / weights.sum() + (1 - of_data) * fixed
    return dict(zip(prior, both.tolist(), strict=True))


def mixed(weights: Mapping[str, float], predictions: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Weighted sum; a prediction without weight may be absent."""
    total = np.zeros((), dtype=np.float32)
    for name, weight in weights.items():
        if weight > 0:
            total = total + np.float32(weight) * predictions[name]
    return total

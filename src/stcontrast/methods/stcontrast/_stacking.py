"""Weights with which several predictions are averaged, from their out-of-fold predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.optimize import nnls

from stcontrast._slides import rows_by_slide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["calibration_slope", "mixed", "stack_expression", "stack_proba"]

N_STEPS: Final = 200
SLOPES: Final = (0.05, 2.0)


def stack_expression(
    predictions: Sequence[NDArray[np.float32]], observed: NDArray[np.float32], slide: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Weights of predictions of expression: least squares on held-out spots, none below 0, summing to 1.

    Prediction and measurement are centred within the slide, and every gene counts alike, whatever its variance.

    Parameters
    ----------
    predictions
        Each (n_spots, n_genes); NaN in spots without a prediction.
    observed
        Measurement (n_spots, n_genes).
    slide
        Slide of every spot (n_spots,).

    Returns
    -------
    Weights (n_predictions,); equal ones where none helps.

    References
    ----------
    Breiman 1996 (Stacked regressions).
    """
    rows = np.flatnonzero(np.all([np.isfinite(part).all(axis=1) for part in predictions], axis=0))
    scale = np.zeros(observed.shape[1])
    gram, product = np.zeros((len(predictions), len(predictions))), np.zeros(len(predictions))
    centered = []
    for here in rows_by_slide(slide, rows):
        parts = [part[here].astype(np.float64) for part in (*predictions, observed)]
        centered.append([part - part.mean(axis=0) for part in parts])
        scale += (centered[-1][-1] ** 2).sum(axis=0)
    weight = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1.0), 0.0)
    for *parts, truth in centered:
        product += [(part * truth * weight).sum() for part in parts]
        gram += [[(one * other * weight).sum() for other in parts] for one in parts]
    # least squares on the square root of the Gram matrix has the same solution
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-10 * max(values.max(initial=0.0), 1e-300)
    root = (vectors[:, kept] * np.sqrt(values[kept])).T
    target = (vectors[:, kept] / np.sqrt(values[kept])).T @ product
    found = nnls(root, target)[0] if kept.any() else np.zeros(len(predictions))
    return found / found.sum() if found.sum() > 0 else np.full(len(predictions), 1 / len(predictions))


def calibration_slope(
    predicted: NDArray[np.float32], observed: NDArray[np.float32], slide: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Calibration slope of every gene: the slope of the measurement on the out-of-fold prediction.

    Parameters
    ----------
    predicted
        Expression (n_spots, n_genes); NaN in spots without a prediction.
    observed
        Measurement (n_spots, n_genes).
    slide
        Slide of every spot (n_spots,), within which both are centred.

    Returns
    -------
    Slopes (n_genes,), those of single genes drawn half-way to the slope of all genes together, between 0.05 and 2. They
    set how much a gene's prediction varies and leave its correlation as it is.
    """
    rows = np.flatnonzero(np.isfinite(predicted).all(axis=1))
    product, square = np.zeros(observed.shape[1]), np.zeros(observed.shape[1])
    for here in rows_by_slide(slide, rows):
        claimed, true = (part[here] - part[here].mean(axis=0, dtype=np.float64) for part in (predicted, observed))
        product += (claimed * true).sum(axis=0)
        square += (claimed**2).sum(axis=0)
    pooled = product.sum() / square.sum() if square.sum() > 0 else 1.0
    slope = np.divide(product, square, out=np.full(len(square), pooled), where=square > 0)
    return np.clip((slope + pooled) / 2, *SLOPES).astype(np.float32)


def stack_proba(predictions: Sequence[NDArray[np.float32]], label: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights of class probabilities: the greatest likelihood of the labels of held-out spots.

    Parameters
    ----------
    predictions
        Each (n_spots, n_classes); NaN in spots without a prediction.
    label
        Class codes (n_spots,), -1 for none.

    Returns
    -------
    Weights (n_predictions,), none below 0, summing to 1; equal ones where nothing is labelled. By expectation
    maximisation, which finds the only optimum there is.
    """
    weights = np.full(len(predictions), 1 / len(predictions))
    finite = np.all([np.isfinite(part).all(axis=1) for part in predictions], axis=0)
    rows = np.flatnonzero(finite & (label >= 0))
    if len(rows) == 0:
        return weights
    given = np.stack([part[rows, label[rows]] for part in predictions], axis=1).astype(np.float64)
    given = np.maximum(given, 1e-6)
    for _ in range(N_STEPS):
        share = weights * given
        weights = (share / share.sum(axis=1, keepdims=True)).mean(axis=0)
    weights[weights < 1e-3] = 0.0
    return weights / weights.sum()


def mixed(weights: Mapping[str, float], predictions: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Weighted sum; a prediction without weight may be absent."""
    total = np.zeros((), dtype=np.float32)
    for name, weight in weights.items():
        if weight > 0:
            total = total + np.float32(weight) * predictions[name]
    return total

"""Correlation and error per gene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["gene_correlation", "mean_slide_correlation", "rmse"]


def gene_correlation(predicted: NDArray[np.float32], observed: NDArray[np.float32]) -> NDArray[np.float64]:
    """Pearson correlation of every gene over the spots of one slide.

    Parameters
    ----------
    predicted, observed
        Expression (n_spots, n_genes) in the same unit.

    Returns
    -------
    Correlations (n_genes,). A constant prediction scores 0: it tells no spot from another. A gene that is constant
    in the observation cannot be scored: NaN.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> observed = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> stc.metrics.gene_correlation(observed * 3, observed)
    array([ 1., nan])
    """
    predicted, observed = np.asarray(predicted, dtype=np.float64), np.asarray(observed, dtype=np.float64)
    if predicted.shape != observed.shape:
        msg = f"`predicted` has shape {predicted.shape}, `observed` {observed.shape}."
        raise ValueError(msg)
    p, o = predicted - predicted.mean(axis=0), observed - observed.mean(axis=0)
    p_norm, o_norm = np.sqrt((p**2).sum(axis=0)), np.sqrt((o**2).sum(axis=0))
    # rounding leaves a constant column at a tiny norm, never at 0
    flat_p = p_norm <= 1e-6 * np.maximum(np.abs(predicted).max(axis=0), 1e-12) * np.sqrt(len(p))
    flat_o = o_norm <= 1e-6 * np.maximum(np.abs(observed).max(axis=0), 1e-12) * np.sqrt(len(o))
    r = (p * o).sum(axis=0) / np.where(flat_p | flat_o, 1.0, p_norm * o_norm)
    return np.where(flat_o, np.nan, np.where(flat_p, 0.0, np.clip(r, -1.0, 1.0)))


def rmse(predicted: NDArray[np.float32], observed: NDArray[np.float32]) -> NDArray[np.float64]:
    """Root mean squared error of every gene (n_genes,), in the unit of the expression."""
    difference = np.asarray(predicted, dtype=np.float64) - np.asarray(observed, dtype=np.float64)
    return np.sqrt((difference**2).mean(axis=0))


def mean_slide_correlation(
    predicted: NDArray[np.float32], observed: NDArray[np.float32], slide: NDArray[np.int64]
) -> float:
    """Mean over slides of the mean correlation over genes, on spots that have a prediction.

    Parameters
    ----------
    predicted
        Expression (n_spots, n_genes); NaN in spots without a prediction.
    observed
        Expression (n_spots, n_genes).
    slide
        Slide of every spot (n_spots,).

    Returns
    -------
    The mean; NaN where nothing can be scored.
    """
    rows = np.flatnonzero(np.isfinite(predicted).all(axis=1))
    scores = []
    for code in np.unique(slide[rows]):
        here = rows[slide[rows] == code]
        r = gene_correlation(predicted[here], observed[here])
        if len(here) > 2 and np.isfinite(r).any():
            scores.append(float(np.nanmean(r)))
    return float(np.mean(scores)) if scores else float("nan")

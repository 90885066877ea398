"""Whether a prediction varies as much, and as smoothly, as what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.stats import rankdata

from stcontrast.metrics._correlation import gene_correlation

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["gene_rank_correlation", "moran_difference", "variance_ratio"]

N_NEAREST: Final = 6


def gene_rank_correlation(predicted: NDArray[np.float32], observed: NDArray[np.float32]) -> NDArray[np.float64]:
    """Spearman correlation of every gene over the spots of one slide.

    Parameters
    ----------
    predicted, observed
        Expression (n_spots, n_genes).

    Returns
    -------
    Correlations (n_genes,), with 0 and NaN as in :func:`gene_correlation`.
    """
    return gene_correlation(
        rankdata(predicted, axis=0).astype(np.float32), rankdata(observed, axis=0).astype(np.float32)
    )


def variance_ratio(predicted: NDArray[np.float32], observed: NDArray[np.float32]) -> NDArray[np.float64]:
    """Variance of the prediction over that of the measurement, for every gene of one slide.

    Parameters
    ----------
    predicted, observed
        Expression (n_spots, n_genes) in the same unit.

    Returns
    -------
    Ratios (n_genes,); NaN where the measurement is constant. Counting noise keeps the ratio of a perfect prediction
    below 1; a smooth one is far below it.
    """
    p, o = (np.asarray(part, dtype=np.float64).var(axis=0) for part in (predicted, observed))
    return np.where(o > 1e-12, p / np.where(o > 1e-12, o, 1.0), np.nan)


def moran_difference(
    predicted: NDArray[np.float32], observed: NDArray[np.float32], xy: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Moran's I of the prediction less that of the measurement, for every gene of one slide.

    Parameters
    ----------
    predicted, observed
        Expression (n_spots, n_genes).
    xy
        Centres of the spots (n_spots, 2).

    Returns
    -------
    Differences (n_genes,): above 0 where the prediction is smoother in space than what was measured, as predictions
    are. NaN where either is constant. Neighbours are the 6 nearest spots.
    """
    from scanpy.metrics import morans_i
    from sklearn.neighbors import kneighbors_graph

    graph = kneighbors_graph(xy, min(N_NEAREST, len(xy) - 1))
    found = []
    for values in (predicted, observed):
        of_gene = np.asarray(values, dtype=np.float64).T
        varies = np.ptp(of_gene, axis=1) > 1e-9
        moran = np.full(len(of_gene), np.nan)
        if varies.any():
            moran[varies] = morans_i(graph, np.ascontiguousarray(of_gene[varies]))
        found.append(moran)
    return found[0] - found[1]

"""Scores of every gene within one slide: correlation, ceiling, error, variance, smoothness."""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast._slides import rows_by_slide

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

__all__ = [
    "correlation_ceiling",
    "gene_correlation",
    "gene_rank_correlation",
    "mean_slide_correlation",
    "moran",
    "moran_difference",
    "neighbor_graph",
    "rmse",
    "variance_ratio",
]

N_NEAREST: Final = 6


def gene_correlation(predicted: NDArray[np.float32], observed: NDArray[np.float32]) -> NDArray[np.float64]:
    """Pearson correlation of every gene over the spots of one slide.

    Parameters
    ----------
    predicted, observed
        Expression (n_spots, n_genes) in the same unit.

    Returns
    -------
    Correlations (n_genes,). A constant prediction scores 0, because it distinguishes no spots. A gene that is constant
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
    # with rounding, the norm of a constant column is tiny but not 0
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
    """Mean over slides of the mean correlation over genes, on spots with a prediction.

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
    The mean; NaN if nothing can be scored.
    """
    rows = np.flatnonzero(np.isfinite(predicted).all(axis=1))
    scores = []
    for here in rows_by_slide(slide, rows):
        r = gene_correlation(predicted[here], observed[here])
        if len(here) > 2 and np.isfinite(r).any():
            scores.append(float(np.nanmean(r)))
    return float(np.mean(scores)) if scores else float("nan")


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
    from scipy.stats import rankdata

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
    Ratios (n_genes,); NaN where the measurement is constant. Because of counting noise, the ratio of a perfect
    prediction is below 1; that of a smooth one is far below 1.
    """
    p, o = (np.asarray(part, dtype=np.float64).var(axis=0) for part in (predicted, observed))
    return np.where(o > 1e-12, p / np.where(o > 1e-12, o, 1.0), np.nan)


def moran_difference(
    predicted: NDArray[np.float32], observed: NDArray[np.float32], xy: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Difference of Moran's I between prediction and measurement, for every gene of one slide.

    Parameters
    ----------
    predicted, observed
        Expression (n_spots, n_genes).
    xy
        Centres of the spots (n_spots, 2).

    Returns
    -------
    Differences (n_genes,): above 0 if the prediction is spatially smoother than the measurement, as predictions usually
    are. NaN if either is constant. Neighbours are the 6 nearest spots.
    """
    graph = neighbor_graph(xy)
    return moran(predicted, graph) - moran(observed, graph)


def neighbor_graph(xy: NDArray[np.float64]) -> sparse.csr_matrix:
    """The 6 nearest spots of every spot of one slide (n_spots × n_spots)."""
    from sklearn.neighbors import kneighbors_graph

    return kneighbors_graph(xy, min(N_NEAREST, len(xy) - 1))


def moran(values: NDArray[np.floating], graph: sparse.csr_matrix) -> NDArray[np.float64]:
    """Moran's I of every column of values (n_spots, n_genes) on a graph of the spots; NaN where it is constant."""
    from scanpy.metrics import morans_i

    _start_numba(threading.get_ident())
    of_gene = np.asarray(values, dtype=np.float64).T
    varies = np.ptp(of_gene, axis=1) > 1e-9
    found = np.full(len(of_gene), np.nan)
    if varies.any():
        found[varies] = morans_i(graph, np.ascontiguousarray(of_gene[varies]))
    return found


@cache
def _start_numba(_thread: int) -> None:
    """Let numba start its threads, which sets the number of OpenMP's threads for torch too, and set that back."""
    from scanpy.metrics import morans_i
    from threadpoolctl import ThreadpoolController

    before = {library.filepath: library.num_threads for library in ThreadpoolController().lib_controllers}
    morans_i(neighbor_graph(np.eye(3, 2)), np.eye(1, 3))
    for library in ThreadpoolController().lib_controllers:
        library.set_num_threads(before.get(library.filepath, library.num_threads))


def correlation_ceiling(
    counts: sparse.csr_matrix, depth: NDArray[np.float64], *, n_splits: int = 5, seed: int = 0
) -> NDArray[np.float64]:
    r"""Highest possible correlation of every gene within one slide, estimated from halves of its counts.

    Every molecule is assigned at random to one of two halves, so that both measure the same spot independently at half
    the depth. If :math:`\rho` is the correlation of their log-normalised expression over spots, a measurement at full
    depth has the reliability :math:`2 \rho / (1 + \rho)` (Spearman–Brown). The correlation of a perfect prediction of
    the true expression with the measurement is the square root of this reliability.

    Parameters
    ----------
    counts
        Raw counts (n_spots, n_genes) of the spots of one slide.
    depth
        Counts of every spot over all its genes (n_spots,).
    n_splits
        Number of splits whose correlations are averaged.
    seed
        Seed of the random splits.

    Returns
    -------
    Ceilings (n_genes,), 0 to 1; 0 if the halves do not agree, NaN if a gene is not seen in both.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> from scipy.sparse import csr_matrix
    >>> rate = np.linspace(1, 400, 50)[:, None]
    >>> counts = csr_matrix(np.random.default_rng(0).poisson(rate))
    >>> bool(stc.metrics.correlation_ceiling(counts, np.full(50, 1e4))[0] > 0.95)
    True

    References
    ----------
    Spearman 1910, Brown 1910.
    """
    rng = np.random.default_rng(seed)
    dense = np.rint(counts.toarray()).astype(np.int64)
    total = np.rint(depth).astype(np.int64)
    rho = np.zeros(dense.shape[1])
    rest = np.maximum(total - dense.sum(axis=1), 0)
    for _ in range(n_splits):
        half = rng.binomial(dense, 0.5)
        # the other genes are split too: they are a part of the depth
        of_half = half.sum(axis=1) + rng.binomial(rest, 0.5)
        parts = [(half, of_half), (dense - half, dense.sum(axis=1) + rest - of_half)]
        one, other = (np.log1p(1e4 * part / np.maximum(size, 1)[:, None]) for part, size in parts)
        # a gene that is not seen in one of the halves cannot be scored
        r = np.where(np.ptp(one, axis=0) > 0, gene_correlation(one, other), np.nan)
        rho += r / n_splits
    reliability = 2 * np.maximum(rho, 0.0) / (1 + np.maximum(rho, 0.0))
    return np.sqrt(reliability)

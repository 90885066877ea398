"""The best correlation that the noise of counting allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stcontrast.metrics._correlation import gene_correlation

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

__all__ = ["correlation_ceiling"]


def correlation_ceiling(
    counts: sparse.csr_matrix, depth: NDArray[np.float64], *, n_splits: int = 5, seed: int = 0
) -> NDArray[np.float64]:
    r"""Ceiling of every gene's correlation within one slide, from splitting its counts in halves.

    Every molecule goes to one of two halves by a toss of a coin, so that both measure the same spot independently at
    half the depth. If :math:`\rho` is the correlation of their log-normalised expression over spots, a measurement at
    full depth has the reliability :math:`2 \rho / (1 + \rho)` (Spearman–Brown), and a perfect prediction of what was
    there before counting correlates with the measurement by its square root.

    Parameters
    ----------
    counts
        Raw counts (n_spots, n_genes) of the spots of one slide.
    depth
        Counts of every spot over all its genes (n_spots,).
    n_splits
        Splits whose correlations are averaged.
    seed
        Seed of the tosses.

    Returns
    -------
    Ceilings (n_genes,), 0 to 1; 0 where the halves do not agree, NaN where a gene is not seen in both.

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
        # the genes that are not asked for are halved too: they are a part of the depth
        of_half = half.sum(axis=1) + rng.binomial(rest, 0.5)
        parts = [(half, of_half), (dense - half, dense.sum(axis=1) + rest - of_half)]
        one, other = (np.log1p(1e4 * part / np.maximum(size, 1)[:, None]) for part, size in parts)
        # a gene that one half has not seen cannot be scored, whichever half it is
        r = np.where(np.ptp(one, axis=0) > 0, gene_correlation(one, other), np.nan)
        rho += r / n_splits
    reliability = 2 * np.maximum(rho, 0.0) / (1 + np.maximum(rho, 0.0))
    return np.sqrt(reliability)

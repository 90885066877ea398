"""Genes: expression in one unit, and the choice of those worth modelling, on training slides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import sparse

from stcontrast._slides import rows_by_slide

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["choose_genes", "log_normalize", "log_normalize_sparse", "lost_genes"]


# counts that a slide has to expect of a gene before their absence means anything (e^-20 by chance)
FEWEST_EXPECTED: Final = 20
# entries of dense expression at once
MOST_AT_ONCE: Final = 2**22


def log_normalize(counts: sparse.csr_matrix, total: NDArray[np.float64]) -> NDArray[np.float32]:
    """log(1 + counts per 10 000), with the depth of the full library.

    Parameters
    ----------
    counts
        Raw counts (n_spots, n_genes) of the genes asked for.
    total
        Counts of every spot over all its genes (n_spots,), not only those asked for.

    Returns
    -------
    Dense expression (n_spots, n_genes); zeros where a spot has no counts at all.
    """
    return log_normalize_sparse(counts, total).toarray()


def log_normalize_sparse(counts: sparse.csr_matrix, total: NDArray[np.float64]) -> sparse.csr_matrix:
    """As :func:`log_normalize`, sparse: for all the genes of a table."""
    normalized = sparse.csr_matrix(sparse.diags_array(1e4 / np.maximum(total, 1.0)) @ counts)
    normalized.data = np.log1p(normalized.data, dtype=np.float32)
    return normalized


def lost_genes(
    counts: sparse.csr_matrix, total: NDArray[np.float64], slide: NDArray[np.int64], *, min_fraction: float = 0.1
) -> dict[int, NDArray[np.intp]]:
    """Genes without a single count on a slide that has to have some, by slide; slides without such genes are left out.

    That is: at the rate of all other slides its spots would have 20 counts or more, and elsewhere the gene is seen in a
    tenth of the spots. So look tables that were joined with different genes, zeros in the gaps.

    Parameters
    ----------
    counts
        Raw counts (n_spots, n_genes).
    total
        Depth of every spot (n_spots,).
    slide
        Slide of every spot (n_spots,).
    min_fraction
        The tenth.
    """
    codes, of_spot = np.unique(slide, return_inverse=True)
    member = sparse.csr_matrix((np.ones(len(slide)), (of_spot, np.arange(len(slide)))), shape=(len(codes), len(slide)))
    depth, n_measured = member @ total, member @ (total > 0)
    of_gene = np.asarray((member @ counts).todense())
    seen = np.asarray((member @ (counts > 0)).todense())
    lost = {}
    for i, code in enumerate(codes.tolist()):
        others = np.arange(len(codes)) != i
        # slides without the gene say nothing of its rate where it was measured
        depth_with = ((of_gene > 0) & others[:, None]).T @ depth
        expected = of_gene[others].sum(axis=0) * depth[i] / np.maximum(depth_with, 1.0)
        spots_with = ((of_gene > 0) & others[:, None]).T @ n_measured
        common = seen[others].sum(axis=0) >= min_fraction * np.maximum(spots_with, 1.0)
        genes = np.flatnonzero((of_gene[i] == 0) & common & (expected >= FEWEST_EXPECTED))
        if len(genes):
            lost[code] = genes
    return lost


def choose_genes(
    counts: sparse.csr_matrix,
    total: NDArray[np.float64],
    slide: NDArray[np.int64],
    *,
    n_genes: int,
    min_fraction: float = 0.1,
) -> NDArray[np.intp]:
    """The most variable of the well-expressed genes, on the spots that are given: training spots only.

    Parameters
    ----------
    counts
        Raw counts (n_spots, n_genes).
    total
        Depth of every spot (n_spots,).
    slide
        Slide of every spot (n_spots,): variance is taken within slides, so that a batch effect is no variation.
    n_genes
        How many at most.
    min_fraction
        A gene counts as well expressed if it is seen in this fraction of the spots.

    Returns
    -------
    Positions of the genes, most variable first. Fewer than `n_genes` where fewer are well expressed.
    """
    # (the mean of a sparse matrix sums reciprocals, and misses the threshold by a rounding error)
    seen = np.bincount(counts.indices[counts.data > 0], minlength=counts.shape[1]) / counts.shape[0]
    eligible = np.flatnonzero(seen >= min_fraction)
    variance = np.zeros(len(eligible))
    for rows in rows_by_slide(slide):
        # never all genes of all spots at once, dense
        expression = log_normalize_sparse(counts[rows][:, eligible], total[rows]).tocsc()
        width = max(MOST_AT_ONCE // len(rows), 16)
        for start in range(0, len(eligible), width):
            part = expression[:, start : start + width].toarray(order="C")
            variance[start : start + width] += len(rows) / len(slide) * part.var(axis=0, dtype=np.float64)
    # ties are settled by the order of the genes, so that the choice does not depend on the sort
    order = np.argsort(-variance, kind="stable")
    chosen = order[variance[order] > 0][:n_genes]
    return eligible[chosen]

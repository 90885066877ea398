"""The choice of genes that are worth modelling, on training slides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import sparse

from stcontrast._data.spots import log_normalize_sparse
from stcontrast._reading import check_named_genes
from stcontrast._slides import rows_by_slide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stcontrast._data.spots import Spots

__all__ = [
    "choose_genes",
    "columns_of_genes",
    "lost_genes",
    "n_variable_genes",
]

# counts that a slide has to expect of a gene before their absence means anything (e^-20 by chance)
FEWEST_EXPECTED: Final = 20
# entries of dense expression at once
MOST_AT_ONCE: Final = 2**22


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


def n_variable_genes(n_genes: int | None, genes: Sequence[str] | None, *, default: int) -> int:
    """How many of the most variable genes are taken: none beside `genes`, unless the user gives both."""
    return n_genes or (default if genes is None else 0)


def columns_of_genes(spots: Spots, named: Sequence[str], n_genes: int) -> NDArray[np.intp]:
    """Columns of the `n_genes` most variable genes of the spots, then of those that are named; none if nothing was counted.

    Raises
    ------
    KeyError
        If named genes are absent.
    ValueError
        If there are no such genes.
    """
    rows = np.flatnonzero(spots.measured)
    columns = np.zeros(0, dtype=np.intp)
    if len(rows) == 0:
        return columns
    check_named_genes(named, spots.genes)
    if n_genes:
        counts = spots.counts if len(rows) == len(spots) else spots.counts[rows]
        columns = choose_genes(counts, spots.depth[rows], spots.slide[rows], n_genes=n_genes)
    position = {gene: i for i, gene in enumerate(spots.genes)}
    there = set(columns.tolist())
    more = [position[gene] for gene in dict.fromkeys(named) if position[gene] not in there]
    if len(columns) + len(more) == 0:
        msg = "No gene is seen in 10 % of the spots: name the genes with `genes`."
        raise ValueError(msg)
    return np.concatenate([columns, np.array(more, dtype=np.intp)])

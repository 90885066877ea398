"""How the out-of-fold errors of genes go together: a covariance of few factors and a rest for each gene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["NO_ERRORS", "error_factors"]

N_FACTORS: Final = 16
# columns beyond the factors, and passes over the errors, that make the factors exact to some digits
N_MORE: Final = 8
N_PASSES: Final = 4
VALUES_AT_ONCE: Final = 2**22
NO_ERRORS: Final = np.zeros((0, 0), dtype=np.float32)


def error_factors(
    errors: Callable[[NDArray[np.intp]], NDArray[np.float32]], rows: NDArray[np.intp], n_genes: int
) -> NDArray[np.float32]:
    r"""Second moments of errors as factors and a rest.

    With :math:`F` all columns but the last and :math:`d` the last one, the second moments (about 0, as a bias is an error
    too) are about :math:`F F^T + \operatorname{diag}(d^2)`. Those of single genes are exact. The factors are the
    principal axes of the errors, each gene divided by the root of its mean squared error.

    Parameters
    ----------
    errors
        Gives the errors (n, n_genes) of n rows.
    rows
        Rows to look at.
    n_genes
        Number of genes.

    Returns
    -------
    Factors and rest (n_genes, n_factors + 1); nothing (0, 0) where there are no rows.
    """
    if not len(rows) or not n_genes:
        return NO_ERRORS
    parts = np.array_split(rows, -(-len(rows) * n_genes // VALUES_AT_ONCE))
    square = sum((errors(part).astype(np.float64) ** 2).sum(axis=0) for part in parts) / len(rows)
    scale = np.sqrt(np.where(square > 0, square, 1.0)).astype(np.float32)
    n_factors = min(N_FACTORS, n_genes, len(rows))
    start = np.random.default_rng(0).normal(size=(n_genes, min(n_factors + N_MORE, n_genes)))
    basis: NDArray[Any] = start.astype(np.float32)
    for _ in range(N_PASSES):
        basis = np.linalg.qr(basis)[0]
        scaled = (errors(part) / scale for part in parts)
        basis = np.asarray(sum(block.T @ (block @ basis) for block in scaled)) / np.float32(len(rows))
    basis = np.linalg.qr(basis)[0]
    seen = (errors(part) / scale @ basis for part in parts)
    moments = sum(block.astype(np.float64).T @ block for block in seen) / len(rows)
    variance, axes = np.linalg.eigh(moments)
    factors = scale[:, None] * (basis @ axes[:, -n_factors:]) * np.sqrt(np.maximum(variance[-n_factors:], 0.0))
    rest = np.sqrt(np.maximum(square - (factors**2).sum(axis=1), 0.0))
    return np.column_stack([factors[:, ::-1], rest]).astype(np.float32)

"""Raw counts and shared genes of tables, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

__all__ = ["raw_counts", "shared_genes"]

# values that are checked: enough to recognise raw counts
SAMPLED: Final = 100_000


def raw_counts(table: AnnData, layer: str | None) -> sparse.csr_matrix:
    """Raw counts of a table (n_spots, n_genes), float32, a copy.

    Raises
    ------
    KeyError
        If the layer is absent; the message lists the layers.
    ValueError
        If the values are not raw counts.
    """
    if layer is not None and layer not in table.layers:
        found = sorted(name for name in table.layers if name is not None)
        msg = f"No layer {layer!r} in the table; its layers are {found}."
        raise KeyError(msg)
    matrix = table.X if layer is None else table.layers[layer]
    if matrix is None:
        msg = "The table has no `X`; name the layer that holds raw counts with `layer`."
        raise ValueError(msg)
    # a copy: the user's counts are never sorted or cleaned in place
    counts = sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    values = counts.data[:: max(1, counts.nnz // SAMPLED)]
    odd = values[~np.isfinite(values) | (values < 0) | (values != np.rint(values))]
    if len(odd):
        where = "X" if layer is None else f"layers[{layer!r}]"
        msg = (
            f"Raw counts are needed, but `{where}` holds values such as {odd[:3].tolist()}. Name the layer that holds "
            "raw counts with `layer`, e.g. `layer='counts'`."
        )
        raise ValueError(msg)
    return counts


def shared_genes(tables: Sequence[AnnData]) -> list[str]:
    """Genes that every table with genes has, in the order of the first.

    Raises
    ------
    ValueError
        If gene names are not unique, or none is shared.
    """
    with_genes = [table for table in tables if table.n_vars]
    for table in with_genes:
        if not table.var_names.is_unique:
            msg = "Gene names are not unique; call `adata.var_names_make_unique()` first."
            raise ValueError(msg)
    if not with_genes:
        return []
    others = [set(table.var_names) for table in with_genes[1:]]
    shared = [gene for gene in with_genes[0].var_names if all(gene in other for other in others)]
    if not shared:
        found = [list(table.var_names[:3]) for table in with_genes]
        msg = f"The objects share no genes; their genes begin {found}. Do all use the same identifiers?"
        raise ValueError(msg)
    return shared

"""Raw counts of tables, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["not_a_count", "raw_counts"]

# values that are checked: enough to recognise counts, few enough to take milliseconds
N_CHECKED: Final = 5_000_000


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
    wrong = not_a_count(counts)
    if wrong is not None:
        where = "X" if layer is None else f"layers[{layer!r}]"
        msg = (
            f"Raw counts are needed, but `{where}` holds {wrong}. Name the layer that holds raw counts with `layer`, e.g. "
            "`layer='counts'`."
        )
        raise ValueError(msg)
    return counts


def not_a_count(values: Any) -> str | None:
    """What is wrong with values that should be counts, e.g. ``"the value -1.5 (negative)"``; ``None`` if nothing is.

    Of more than five million values, evenly spaced ones are checked.
    """
    stored = values.data if sparse.issparse(values) else np.asarray(values).reshape(-1)
    looked_at = stored[:: max(1, len(stored) // N_CHECKED)]
    if looked_at.dtype.kind in "bu":
        return None
    for wrong, kind in ((~np.isfinite(looked_at), "not finite"), (looked_at < 0, "negative")):
        if wrong.any():
            return f"the value {looked_at[wrong][0]:.4g} ({kind})"
    if looked_at.dtype.kind == "f" and (wrong := looked_at != np.rint(looked_at)).any():
        return f"the value {looked_at[wrong][0]:.4g} (not a whole number)"
    return None

"""Raw counts of tables, in memory, on disk or lazy, every value checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np
import zarr
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

__all__ = ["in_memory", "not_a_count", "on_disk", "raw_counts", "row_blocks"]

# values in a block that is read: 64 MiB as dense float32; and values that are checked at once
N_AT_ONCE: Final = 2**24
N_CHECKED: Final = 2**20


def raw_counts(table: AnnData, layer: str | None) -> sparse.csr_matrix:
    """Raw counts of a table (n_spots, n_genes), float32, a copy. Of a table on disk they are read in blocks of rows.

    Raises
    ------
    KeyError
        If the layer is absent; the message lists the layers.
    ValueError
        If any value is no raw count.
    """
    if layer is not None and layer not in table.layers:
        found = sorted(name for name in table.layers if name is not None)
        msg = f"No layer {layer!r} in the table; its layers are {found}.{_where_counts_are(table)}"
        raise KeyError(msg)
    matrix = table.X if layer is None else table.layers[layer]
    if matrix is None:
        msg = f"The table has no `X`; name the layer that holds raw counts with `layer`.{_where_counts_are(table)}"
        raise ValueError(msg)
    parts = []
    for block in row_blocks(matrix) if on_disk(matrix) else [in_memory(matrix)]:
        wrong = not_a_count(block)
        if wrong is not None:
            where = "X" if layer is None else f"layers[{layer!r}]"
            msg = (
                f"Raw counts are needed, but `{where}` holds {wrong}. Name the layer that holds raw counts with `layer`, "
                f"e.g. `layer='counts'`.{_where_counts_are(table)}"
            )
            raise ValueError(msg)
        # a copy: the user's counts are never sorted or cleaned in place
        parts.append(sparse.csr_matrix(_as_numbers(block), dtype=np.float32, copy=True))
    counts = parts[0] if len(parts) == 1 else sparse.csr_matrix(sparse.vstack(parts, format="csr"))
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def not_a_count(values: Any) -> str | None:
    """What is wrong with values that should be counts, e.g. ``"the value -1.5 (negative)"``; ``None`` if nothing is."""
    try:
        numbers = _as_numbers(values)
    except (TypeError, ValueError):
        return "values that are no numbers"
    stored = numbers.data if sparse.issparse(numbers) else np.asarray(numbers).reshape(-1)
    if stored.dtype.kind in "bu":
        return None
    if stored.dtype.kind not in "if":
        return f"values of type {stored.dtype}"
    for start in range(0, len(stored), N_CHECKED):
        part = stored[start : start + N_CHECKED]
        for wrong, kind in ((~np.isfinite(part), "not finite"), (part < 0, "negative")):
            if wrong.any():
                return f"the value {part[wrong][0]:.4g} ({kind})"
        if part.dtype.kind == "f" and (wrong := part != np.rint(part)).any():
            return f"the value {part[wrong][0]:.4g} (not a whole number)"
    return None


def on_disk(values: Any) -> bool:
    """Whether a matrix is on disk, or not computed yet, and can be read by row.

    True for CSR and dense matrices in HDF5 and zarr, and for dask arrays. False for a matrix stored by column: each of
    its rows is spread over the whole file.
    """
    return isinstance(values, CSRDataset | h5py.Dataset | zarr.Array) or hasattr(values, "compute")


def row_blocks(values: Any) -> Iterator[Any]:
    """Go through a matrix on disk in blocks of rows, each in memory; a block is 64 MiB as dense float32."""
    n_rows = max(1, N_AT_ONCE // max(1, values.shape[1]))
    for start in range(0, values.shape[0], n_rows):
        yield in_memory(values[start : start + n_rows])


def in_memory(values: Any) -> Any:
    """A matrix in memory, dense or CSR; not copied if that can be avoided."""
    if isinstance(values, CSRDataset | CSCDataset):
        values = values.to_memory()
    elif hasattr(values, "compute"):
        # in this process, also where a dask cluster is at hand: its workers may not see the files
        values = values.compute(scheduler="threads")
    return values.tocsr() if sparse.issparse(values) else np.asarray(values)


def _as_numbers(values: Any) -> Any:
    """A matrix with numbers instead of Python objects, as a data frame of Arrow or nullable types leaves them."""
    if sparse.issparse(values):
        return values
    values = np.asarray(values)
    return values.astype(np.float64) if values.dtype.hasobject else values


def _where_counts_are(table: AnnData) -> str:
    """Where else in a table there are raw counts, for a message."""
    places = [name for name in table.layers if name is not None and not on_disk(table.layers[name])]
    layers = [name for name in places if not_a_count(in_memory(table.layers[name])) is None]
    if layers:
        return f" These layers hold raw counts: {layers}."
    raw = None if table.raw is None else table.raw.X
    if raw is not None and not on_disk(raw) and not_a_count(in_memory(raw)) is None:
        return " `adata.raw` holds raw counts: `adata.layers['counts'] = adata.raw[:, adata.var_names].X`."
    return ""

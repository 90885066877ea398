"""Rows of a count matrix that lies on disk, read as they are asked for and never all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import zarr
from anndata.abc import CSRDataset
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData

__all__ = ["RowsOnDisk", "on_disk", "row_blocks", "rows_on_disk"]

# Entries of a block, were it dense: 64 MiB as float32.
_N_AT_ONCE = 2**24


class RowsOnDisk:
    """A matrix on disk whose rows are read, and prepared, one slice at a time.

    Parameters
    ----------
    read
        Function that reads rows by a slice, or by an array of row numbers that ascend.
    n_rows
        Number of rows that ``read`` knows.
    indices
        Rows to take, in this order: numbers, which may repeat or count from the end, or a mask; ``None`` (default) for
        all.
    prepare
        What is done to every block that was read; nothing by default.

    Examples
    --------
    >>> stored = np.arange(12).reshape(6, 2)
    >>> rows = RowsOnDisk(stored.__getitem__, 6, indices=[4, 0, 4])
    >>> rows[1:]
    array([[0, 1],
           [8, 9]])
    """

    def __init__(
        self,
        read: Callable[[Any], Any],
        n_rows: int,
        *,
        indices: Sequence[int] | np.ndarray[Any, Any] | None = None,
        prepare: Callable[[Any], Any] | None = None,
    ) -> None:
        self._read = read
        self._indices = None if indices is None else np.arange(n_rows)[np.asarray(indices)]
        self._prepare = prepare
        self._n_rows = n_rows if self._indices is None else len(self._indices)

    def __len__(self) -> int:
        return self._n_rows

    def rows(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> RowsOnDisk:
        """Some of these rows.

        Parameters
        ----------
        indices
            As for the class.

        Returns
        -------
        RowsOnDisk
            Those rows, in this order.
        """
        chosen = np.arange(self._n_rows)[np.asarray(indices)]
        taken = RowsOnDisk(self._read, self._n_rows, prepare=self._prepare)
        taken._indices = chosen if self._indices is None else self._indices[chosen]
        taken._n_rows = len(chosen)
        return taken

    def __getitem__(self, rows: slice) -> Any:
        if self._indices is None:
            block = _in_memory(self._read(slice(*rows.indices(self._n_rows))))
        else:
            # HDF5 reads rows in ascending order and each once.
            wanted, places = np.unique(self._indices[rows], return_inverse=True)
            block = _in_memory(self._read(wanted))[places]
        return block if self._prepare is None else self._prepare(block)


def on_disk(values: Any) -> bool:
    """Whether a matrix lies on disk, or is still to be computed, and can be read by row.

    Parameters
    ----------
    values
        Any matrix that an AnnData holds.

    Returns
    -------
    bool
        True for CSR and dense matrices in HDF5 and zarr, and for dask arrays. A matrix stored by column is not among
        them: each of its rows is spread over the whole file.
    """
    return isinstance(values, CSRDataset | h5py.Dataset | zarr.Array) or hasattr(values, "compute")


def rows_on_disk(
    adata: AnnData,
    layer: str | None,
    *,
    indices: Sequence[int] | np.ndarray[Any, Any] | None = None,
    prepare: Callable[[Any], Any] | None = None,
) -> RowsOnDisk | None:
    """Rows of an object's counts, where these lie on disk.

    Parameters
    ----------
    adata
        Object, spots × genes.
    layer
        Layer that holds the counts, which must be there; ``None`` or ``"X"`` for ``X``.
    indices, prepare
        As for :class:`RowsOnDisk`.

    Returns
    -------
    RowsOnDisk or None
        ``None`` where the counts are in memory already, or lie on disk in a form that cannot be read by row.
    """
    in_x = layer in (None, "X")
    if in_x and adata.isbacked and adata.is_view:
        # Asking a view for X reads all of its rows; a smaller view reads fewer.
        return RowsOnDisk(lambda rows: adata[rows].X, adata.n_obs, indices=indices, prepare=prepare)
    values = adata.X if in_x else adata.layers[layer]
    if not on_disk(values):
        return None
    return RowsOnDisk(values.__getitem__, adata.n_obs, indices=indices, prepare=prepare)


def row_blocks(values: Any) -> Iterator[Any]:
    """Go through a matrix that lies on disk, block by block of rows.

    Parameters
    ----------
    values
        Matrix for which :func:`on_disk` holds, shape ``(n_rows, n_columns)``.

    Yields
    ------
    numpy.ndarray or scipy.sparse.csr_matrix
        The next rows, in memory: as many as make 64 MiB of dense float32.
    """
    n_rows = max(1, _N_AT_ONCE // max(1, values.shape[1]))
    for start in range(0, values.shape[0], n_rows):
        yield _in_memory(values[start : start + n_rows])


def _in_memory(block: Any) -> Any:
    block = block.compute() if hasattr(block, "compute") else block
    return block.tocsr() if sparse.issparse(block) else np.asarray(block)

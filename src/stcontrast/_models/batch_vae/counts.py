"""Raw counts in the gene order of the model, in memory or read from disk in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.data._utils import _get_adata_minify_type
from scvi.data.fields import LayerField

from stcontrast._reading import in_memory, not_a_count, on_disk, row_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData

__all__ = [
    "CountsField",
    "RowsOnDisk",
    "align_genes",
    "check_categories",
    "check_counts",
    "check_genes",
    "check_layer",
    "counts_of",
    "first_few",
    "has_no_counts",
    "rows_on_disk",
]


class RowsOnDisk:
    """A matrix on disk whose rows are read and prepared one slice at a time.

    Parameters
    ----------
    read
        Function that reads rows by a slice, or by an array of ascending row numbers.
    n_rows
        Number of rows that ``read`` knows.
    indices
        Rows to take, in this order: numbers, which may repeat or count from the end, or a mask. ``None`` (default):
        all.
    prepare
        Function that is applied to every block that was read.

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
        """Some of these rows, chosen as by `indices` of the class."""
        chosen = np.arange(self._n_rows)[np.asarray(indices)]
        taken = RowsOnDisk(self._read, self._n_rows, prepare=self._prepare)
        taken._indices = chosen if self._indices is None else self._indices[chosen]
        taken._n_rows = len(chosen)
        return taken

    def __getitem__(self, rows: slice) -> Any:
        if self._indices is None:
            block = in_memory(self._read(slice(*rows.indices(self._n_rows))))
        else:
            # HDF5 reads rows in ascending order, each once
            wanted, places = np.unique(self._indices[rows], return_inverse=True)
            block = in_memory(self._read(wanted))[places]
        return block if self._prepare is None else self._prepare(block)


def rows_on_disk(
    adata: AnnData,
    layer: str | None,
    *,
    indices: Sequence[int] | np.ndarray[Any, Any] | None = None,
    prepare: Callable[[Any], Any] | None = None,
) -> RowsOnDisk | None:
    """Rows of the counts of an object if they are on disk and can be read by row; `None` otherwise."""
    in_x = layer in (None, "X")
    if in_x and adata.isbacked and adata.is_view:
        # X of a view reads all of its rows; a smaller view reads fewer
        return RowsOnDisk(lambda rows: adata[rows].X, adata.n_obs, indices=indices, prepare=prepare)
    values = adata.X if in_x else adata.layers[layer]
    if not on_disk(values):
        return None
    return RowsOnDisk(values.__getitem__, adata.n_obs, indices=indices, prepare=prepare)


N_NAMED = 5


class CountsField(LayerField):
    """Field of scvi-tools for the counts. It raises where scvi-tools warns, and checks every value, not only twenty."""

    def __init__(self, registry_key: str, layer: str | None) -> None:
        super().__init__(registry_key, layer, is_count_data=False)

    def validate_field(self, adata: AnnData) -> None:
        """Raise unless the layer holds raw counts."""
        super().validate_field(adata)
        check_counts(self.get_field_data(adata), adata, self.attr_key)

    def transfer_field(self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        """Raise unless the genes are those of the model, in its order: scvi-tools counts columns, and warns."""
        genes, found = pd.Index(state_registry[self.COLUMN_NAMES_KEY]), adata_target.var_names
        if not found.equals(genes):
            same = len(found) == len(genes) and found.is_unique and found.isin(genes).all()
            what = "in another order" if same else "and others, or lacks some"
            msg = (
                f"adata has the model's genes {what}: {first_few(found)}; the model has {first_few(genes)}. "
                "adata[:, model.genes].copy() brings them into its order, prepare_query_anndata(adata, model) also adds "
                "genes that are missing; get_latent_representation needs neither."
            )
            raise ValueError(msg)
        registry: dict[str, Any] = super().transfer_field(state_registry, adata_target, **kwargs)
        return registry


def has_no_counts(adata: AnnData | None) -> bool:
    """Whether ``minify_adata`` replaced the counts by zeros."""
    return adata is not None and _get_adata_minify_type(adata) == ADATA_MINIFY_TYPE.LATENT_POSTERIOR


def check_genes(adata: AnnData) -> None:
    """Raise unless there are spots and genes, and the gene names are unique."""
    if 0 in adata.shape:
        msg = f"adata has {adata.n_obs} spots and {adata.n_vars} genes; there is nothing to train on."
        raise ValueError(msg)
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()
        msg = f"genes have more than one column: {first_few(repeated)}; use adata.var_names_make_unique()."
        raise ValueError(msg)


def check_categories(adata: AnnData, **keys: str | None) -> None:
    """Raise unless columns of ``obs``, given by the name of their argument, are complete; `None` is skipped."""
    for argument, key in keys.items():
        if key is None:
            continue
        if key not in adata.obs:
            msg = f"{argument} {key!r} is not in adata.obs, which has {list(adata.obs.columns)}."
            raise KeyError(msg)
        if n_missing := int(adata.obs[key].isna().sum()):
            msg = f"adata.obs[{key!r}] has {n_missing} missing values; {argument} needs a value for every spot."
            raise ValueError(msg)


def check_layer(adata: AnnData, layer: str | None) -> None:
    """Raise unless a layer is present; ``None`` and ``"X"`` always are."""
    if layer not in (None, "X") and layer not in adata.layers:
        msg = f"layer {layer!r} is not in adata.layers; {_other_layers(adata.layers, None)}. layer='X' takes adata.X."
        raise KeyError(msg)


def counts_of(adata: AnnData, layer: str | None) -> Any:
    """Counts of an object (n_spots, n_genes) in memory, dense or CSR; not copied if that can be avoided."""
    check_layer(adata, layer)
    values = adata.X if layer in (None, "X") else adata.layers[layer]
    if values is None:
        msg = f"adata.X is empty; name the layer that holds the counts: {_other_layers(adata.layers, None)}."
        raise KeyError(msg)
    return in_memory(values)


def check_counts(values: Any, adata: AnnData, layer: str | None) -> None:
    """Raise unless values are raw counts: finite, not negative, whole numbers. Those on disk are read in blocks."""
    if on_disk(values):
        found = next(filter(None, map(not_a_count, row_blocks(values))), None)
    else:
        found = not_a_count(values if hasattr(values, "reshape") else counts_of(adata, layer))
    if found is None:
        return
    where = "adata.X" if layer in (None, "X") else f"adata.layers[{layer!r}]"
    msg = (
        f"{where} does not hold raw counts: it has {found}. BatchAgnosticVAE models counts, not normalised values; "
        f"name the layer that holds them with layer=: {_other_layers(adata.layers, layer)}."
    )
    raise ValueError(msg)


def align_genes(
    counts: Any, names: pd.Index, genes: pd.Index, *, fill_missing: bool = False
) -> np.ndarray[Any, Any] | sparse.csr_matrix:
    """Columns of a count matrix in the gene order of the model.

    Parameters
    ----------
    counts
        Counts (n_spots, n_columns), dense or CSR.
    names
        Gene of each column.
    genes
        Genes of the model, in its order.
    fill_missing
        Take missing genes as zero counts. By default they are an error.

    Returns
    -------
    Counts (n_spots, n_genes).

    Raises
    ------
    ValueError
        If genes are missing (all of them, with `fill_missing`), or a gene of the model has two columns.
    """
    if names.equals(genes):
        return counts
    if (repeated := names[names.duplicated() & names.isin(genes)]).size:
        msg = f"genes of the model have more than one column: {first_few(repeated.unique())}."
        raise ValueError(msg)
    first_of_each = np.flatnonzero(~names.duplicated())
    columns = names[first_of_each].get_indexer(genes)
    columns[columns >= 0] = first_of_each[columns[columns >= 0]]
    present = columns >= 0
    if not present.any() or not (present.all() or fill_missing):
        raise ValueError(_missing_message(genes, present, names))
    aligned = counts[:, columns[present]]
    if present.all():
        return aligned
    shape = (counts.shape[0], len(genes))
    if sparse.issparse(aligned):
        return sparse.csr_matrix((aligned.data, np.flatnonzero(present)[aligned.indices], aligned.indptr), shape=shape)
    padded = np.zeros(shape, dtype=aligned.dtype)
    padded[:, present] = aligned
    return padded


def _missing_message(genes: pd.Index, present: np.ndarray[Any, Any], names: pd.Index) -> str:
    missing = genes[~present]
    what = f"{len(missing)} of the model's {len(genes)} genes are missing: {first_few(missing)}."
    if present.any():
        return f"{what} fill_missing=True takes them as zero counts; the latent then changes with their number."
    return f"{what} The columns are named {first_few(names)}: other identifiers (symbols, Ensembl) or another species?"


def first_few(names: Sequence[Any] | pd.Index) -> str:
    """The first few of many names, for a message."""
    shown = ", ".join(map(str, names[:N_NAMED]))
    return shown if len(names) <= N_NAMED else f"{shown}, ... ({len(names)} in all)"


def _other_layers(layers: Mapping[str, Any], layer: str | None) -> str:
    others = [name for name in layers if name is not None and name != layer]
    return f"layers here are {', '.join(map(repr, others))}" if others else "there is no other layer here"

"""Raw counts in, in the model's gene order; anything else is refused with what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse
from scvi.data.fields import LayerField

from stcontrast._models.batch_vae._rows import on_disk, row_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData

__all__ = [
    "CountsField",
    "align_genes",
    "check_categories",
    "check_counts",
    "check_genes",
    "check_layer",
    "counts_of",
    "not_a_count",
]

# Values that are looked at: enough to tell counts from anything else, few enough to take milliseconds.
_N_CHECKED = 5_000_000
_N_NAMED = 5


class CountsField(LayerField):
    """scvi-tools' field of the counts, which raises where scvi-tools warns, and looks at every value, not at twenty.

    Parameters
    ----------
    registry_key
        Name of the field.
    layer
        Layer that holds the counts; ``None`` for ``X``.
    """

    def __init__(self, registry_key: str, layer: str | None) -> None:
        super().__init__(registry_key, layer, is_count_data=False)

    def validate_field(self, adata: AnnData) -> None:
        """Raise unless the layer holds raw counts.

        Parameters
        ----------
        adata
            Object to check.

        Raises
        ------
        ValueError
            If the values are not raw counts.
        """
        super().validate_field(adata)
        check_counts(self.get_field_data(adata), adata, self.attr_key)


def check_genes(adata: AnnData) -> None:
    """Raise unless there are spots, and genes that stand once.

    Parameters
    ----------
    adata
        Object to check.

    Raises
    ------
    ValueError
        If there is no spot or no gene, or a gene stands twice.
    """
    if 0 in adata.shape:
        msg = f"adata has {adata.n_obs} spots and {adata.n_vars} genes; there is nothing to train on."
        raise ValueError(msg)
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()
        msg = (
            f"genes stand in more than one column: {_named(repeated)}; adata.var_names_make_unique() tells them apart."
        )
        raise ValueError(msg)


def check_categories(adata: AnnData, **keys: str | None) -> None:
    """Raise unless columns of ``obs`` are there and complete.

    Parameters
    ----------
    adata
        Object to check.
    **keys
        Columns, by the name of the argument that they were given as; ``None`` is passed over.

    Raises
    ------
    KeyError
        If a column is not there.
    ValueError
        If a column has missing values.
    """
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
    """Raise unless a layer is there.

    Parameters
    ----------
    adata
        Object to check.
    layer
        Layer; ``None`` and ``"X"`` are always there.

    Raises
    ------
    KeyError
        If there is no such layer.
    """
    if layer not in (None, "X") and layer not in adata.layers:
        msg = f"layer {layer!r} is not in adata.layers; {_other_layers(adata.layers, None)}. layer='X' takes adata.X."
        raise KeyError(msg)


def counts_of(adata: AnnData, layer: str | None) -> Any:
    """Matrix of counts of an object.

    Parameters
    ----------
    adata
        Object, spots × genes.
    layer
        Layer that holds the counts; ``None`` or ``"X"`` for ``X``.

    Returns
    -------
    numpy.ndarray or scipy.sparse.csr_matrix
        Counts, shape ``(n_spots, n_genes)``, in memory; not copied where that can be avoided.

    Raises
    ------
    KeyError
        If there is no such layer.
    """
    check_layer(adata, layer)
    values = adata.X if layer in (None, "X") else adata.layers[layer]
    if values is None:
        msg = f"adata.X is empty; name the layer that holds the counts: {_other_layers(adata.layers, None)}."
        raise KeyError(msg)
    if isinstance(values, CSRDataset | CSCDataset):
        values = values.to_memory()
    elif hasattr(values, "compute"):
        values = values.compute()
    if sparse.issparse(values):
        return values.tocsr()
    return np.asarray(values)


def check_counts(values: Any, adata: AnnData, layer: str | None) -> None:
    """Raise unless values are raw counts: finite, not negative, whole numbers.

    Parameters
    ----------
    values
        Values of the layer, shape ``(n_spots, n_genes)``; those on disk are read block by block.
    adata
        Object that they are from; its layers are named in the message.
    layer
        Name of the layer; ``None`` for ``X``.

    Raises
    ------
    ValueError
        If a value is not a count.
    """
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


def not_a_count(values: Any) -> str | None:
    """What is wrong with values that should be counts.

    Parameters
    ----------
    values
        Values, a dense array or a sparse matrix; more than five million are looked at in even steps.

    Returns
    -------
    str or None
        For example ``"the value -1.5 (negative)"``; ``None`` if nothing is.
    """
    stored = values.data if sparse.issparse(values) else np.asarray(values).reshape(-1)
    looked_at = stored[:: max(1, len(stored) // _N_CHECKED)]
    if looked_at.dtype.kind in "bu":
        return None
    for wrong, kind in ((~np.isfinite(looked_at), "not finite"), (looked_at < 0, "negative")):
        if wrong.any():
            return f"the value {looked_at[wrong][0]:.4g} ({kind})"
    if looked_at.dtype.kind == "f" and (wrong := looked_at != np.rint(looked_at)).any():
        return f"the value {looked_at[wrong][0]:.4g} (not a whole number)"
    return None


def align_genes(
    counts: Any, names: pd.Index, genes: pd.Index, *, fill_missing: bool = False
) -> np.ndarray[Any, Any] | sparse.csr_matrix:
    """Columns of a count matrix in the model's gene order.

    Parameters
    ----------
    counts
        Counts, shape ``(n_spots, n_columns)``.
    names
        Gene of each column.
    genes
        Genes of the model, in its order.
    fill_missing
        Whether genes that are absent are taken as zero counts instead of an error.

    Returns
    -------
    numpy.ndarray or scipy.sparse.csr_matrix
        Counts, shape ``(n_spots, len(genes))``.

    Raises
    ------
    ValueError
        If genes are missing (all of them, with ``fill_missing``), or a gene of the model has two columns.
    """
    if names.equals(genes):
        return counts
    if (repeated := names[names.duplicated() & names.isin(genes)]).size:
        msg = f"genes of the model stand in more than one column: {_named(repeated.unique())}."
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
    what = f"{len(missing)} of the model's {len(genes)} genes are missing: {_named(missing)}."
    if present.any():
        return f"{what} fill_missing=True takes them as zero counts; the latent then moves with their number."
    return f"{what} The columns are named {_named(names)}: another naming (symbols, Ensembl ids) or another species?"


def _named(names: pd.Index) -> str:
    shown = ", ".join(map(str, names[:_N_NAMED]))
    return shown if len(names) <= _N_NAMED else f"{shown}, ... ({len(names)} in all)"


def _other_layers(layers: Mapping[str, Any], layer: str | None) -> str:
    others = [name for name in layers if name is not None and name != layer]
    return f"layers here are {', '.join(map(repr, others))}" if others else "there is no other layer here"

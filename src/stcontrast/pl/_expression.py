"""Observed and predicted expression of one gene, in the order of the measured table."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stcontrast._reading import table_region_keys

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import Sections

__all__ = ["find_gene", "observed_expression", "predicted_expression", "prediction_table"]


def prediction_table(sdata: SpatialData, prediction_key: str) -> AnnData:
    """The table of predictions."""
    if prediction_key not in sdata.tables:
        msg = (
            f"No table {prediction_key!r} in the SpatialData object; its tables are {sorted(sdata.tables)}. "
            "Call `stc.tl.predict_expression(sdata, model)` first, or give `prediction_key`."
        )
        raise KeyError(msg)
    return sdata.tables[prediction_key]


def find_gene(gene: str, *, prediction: AnnData, measured: AnnData, prediction_key: str) -> bool:
    """Whether the gene was measured too; raise unless it was predicted."""
    if gene in prediction.var_names:
        return gene in measured.var_names
    where = f"not among the {prediction.n_vars} genes of the prediction `sdata[{prediction_key!r}]`"
    if gene in measured.var_names:
        where += " (it was measured, but is not modelled)"
    else:
        where += f", nor among the {measured.n_vars} measured genes of the table"
    close = get_close_matches(gene, list(prediction.var_names), n=5)
    # gene symbols differ by species in their case alone
    close = list(dict.fromkeys([name for name in prediction.var_names if name.lower() == gene.lower()] + close))
    hint = f"Close matches: {close}." if close else f"The first of them: {list(prediction.var_names[:5])}."
    msg = f"Gene {gene!r} is {where}. {hint}"
    raise KeyError(msg)


def observed_expression(table: AnnData, gene: str, *, layer: str | None) -> NDArray[np.float64]:
    """log1p(counts per 10 000) of every spot, by its full library; NaN in spots without a count.

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        If the matrix holds no raw counts.
    """
    if layer is not None and layer not in table.layers:
        msg = f"No layer {layer!r} in the table; its layers are {[name for name in table.layers if name is not None]}."
        raise KeyError(msg)
    matrix = table.X if layer is None else table.layers[layer]
    if matrix is None:
        msg = "The table has no `X`. Name the layer that holds raw counts with `layer`."
        raise ValueError(msg)
    total = np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()
    counts = _column(table, matrix, gene)
    for values in (counts, total):
        if (values < 0).any() or (values % 1 != 0).any():
            msg = (
                f"`{'X' if layer is None else f'layers[{layer!r}]'}` holds no raw counts: whole numbers, 0 or more. "
                "Name the layer that does with `layer`."
            )
            raise ValueError(msg)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, np.log1p(1e4 * counts / total), np.nan)


def predicted_expression(prediction: AnnData, gene: str, spots: Sections) -> NDArray[np.float64]:
    """Prediction for every spot of the measured table; NaN where there is none."""
    _, region_key, instance_key = table_region_keys(prediction)
    predicted = _column(prediction, prediction.X, gene)
    rows = _spot_index(prediction, region_key, instance_key).get_indexer(
        _spot_index(spots.table, str(spots.region_key), str(spots.instance_key))
    )
    return np.where(rows >= 0, predicted[rows], np.nan)


def _spot_index(table: AnnData, region_key: str, instance_key: str) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([table.obs[region_key].astype(str), table.obs[instance_key]])


def _column(table: AnnData, matrix: Any, gene: str) -> NDArray[np.float64]:
    position = table.var_names.get_loc(gene)
    if not isinstance(position, int):
        msg = f"Gene {gene!r} stands in `var_names` more than once: call `adata.var_names_make_unique()`."
        raise ValueError(msg)
    column = matrix[:, [position]]
    return np.asarray(column.toarray() if sparse.issparse(column) else column, dtype=np.float64).ravel()

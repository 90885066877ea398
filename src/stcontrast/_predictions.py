"""The numbers that are drawn of a prediction: measured, predicted, its interval, and what is out of distribution."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from stcontrast._keys import HELD_OUT_R, IN_DISTRIBUTION, LOWER, UPPER
from stcontrast._reading import (
    Keys,
    close_genes,
    in_memory,
    names_of,
    obs_column,
    raw_counts,
    resolve_all,
    resolve_table,
    table_region_keys,
)
from stcontrast._records import read_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import Sections

__all__ = [
    "EXPRESSION",
    "IMAGE",
    "MEASURED",
    "OF_SLIDE",
    "OUTSIDE",
    "PANELS",
    "PREDICTED",
    "WIDTH",
    "Values",
    "measured_expression",
    "prediction_of",
    "read_values",
]

IMAGE: Final = "image"
MEASURED: Final = "measured"
PREDICTED: Final = "predicted"
WIDTH: Final = "width"
OUTSIDE: Final = "out_of_distribution"
PANELS: Final = (IMAGE, MEASURED, PREDICTED, LOWER, UPPER, WIDTH, OUTSIDE)
# counts, predictions and bounds share a colour scale
EXPRESSION: Final = (MEASURED, PREDICTED, LOWER, UPPER)
# the same for every gene
OF_SLIDE: Final = (IMAGE, OUTSIDE)
LEVEL: Final = 0.9


class Values(NamedTuple):
    """What is known of one object: its slides, and numbers of all of its spots.

    Attributes
    ----------
    source
        The object.
    of
        Numbers (n_spots,) by gene and panel; NaN where there are none. Panels without numbers are absent.
    inside
        Whether a spot is in the model's distribution: 1 or 0, NaN where nobody says.
    provenance
        What the model knows of every slide.
    level
        Share of the measurements that the interval should hold.
    """

    source: Sections
    of: dict[tuple[str, str], NDArray[np.float64]]
    inside: NDArray[np.float64]
    provenance: Mapping[str, str]
    level: float


def read_values(
    objects: Sequence[SpatialData | AnnData],
    genes: Sequence[str],
    panels: Sequence[str] | None,
    keys: Keys,
    *,
    prediction_key: str,
) -> list[Values]:
    """Read what the panels of some genes need, of every object.

    Parameters
    ----------
    objects
        SpatialData with a prediction, or predictions. Where only image and measurement are drawn, any object with counts.
    genes
        Predicted genes, or measured ones where there is no prediction.
    panels
        What is to be drawn; `None`: measured and predicted.
    keys
        Where things lie in the objects.
    prediction_key
        Table of predictions of a SpatialData.

    Raises
    ------
    TypeError
        If an object is neither a SpatialData nor a prediction.
    KeyError
        If a prediction, gene, table, layer or interval is absent; the message lists what is there.
    ValueError
        If the counts are not raw, or a gene has several columns.
    """
    alone = panels is not None and set(panels) <= {IMAGE, MEASURED}
    predictions = [
        None if alone and not _has_prediction(item, prediction_key) else prediction_of(item, prediction_key)
        for item in objects
    ]
    for item, prediction in zip(objects, predictions, strict=True):
        if prediction is not None and prediction is item:
            _check_positions(prediction)
    measured = [
        _measured_table(item, prediction, prediction_key, keys.table_key)
        for item, prediction in zip(objects, predictions, strict=True)
    ]
    for prediction, table in zip(predictions, measured, strict=True):
        for gene in genes:
            _check_gene(gene, prediction=prediction, measured=table)
        _check_panels(prediction, panels or ())
    of_each = [
        _keys_of(item, prediction, table, keys, prediction_key)
        for item, prediction, table in zip(objects, predictions, measured, strict=True)
    ]
    sources = resolve_all(objects, of_each)
    return [
        _values(source, prediction, table, genes, panels=panels, layer=keys.layer)
        for source, prediction, table in zip(sources, predictions, measured, strict=True)
    ]


def prediction_of(data: SpatialData | AnnData, prediction_key: str) -> AnnData:
    """The prediction: a table of a SpatialData, or an AnnData itself.

    Raises
    ------
    KeyError
        If the SpatialData has no such table.
    TypeError
        If the object is neither a SpatialData nor a prediction.
    """
    from anndata import AnnData
    from spatialdata import SpatialData

    if isinstance(data, SpatialData):
        if prediction_key not in data.tables:
            msg = (
                f"No table {prediction_key!r} in the SpatialData object; its tables are {sorted(data.tables)}. "
                "Call `stc.tl.predict_expression(sdata, model)` first, or give `prediction_key`."
            )
            raise KeyError(msg)
        return data.tables[prediction_key]
    if not isinstance(data, AnnData):
        msg = f"Expected a SpatialData object or the AnnData that `predict_expression` returned, found {type(data).__name__}."
        raise TypeError(msg)
    if not _is_prediction(data):
        msg = (
            "The AnnData object holds no prediction of stcontrast. Give what `stc.tl.predict_expression` returned for it, or "
            f"put a prediction of your own into the SpatialData that it belongs to: `sdata[{prediction_key!r}] = prediction`."
        )
        raise TypeError(msg)
    return data


def _is_prediction(table: AnnData) -> bool:
    # a record may be lost where tables are concatenated
    return read_record(table, "prediction") is not None or IN_DISTRIBUTION in table.obs or HELD_OUT_R in table.var


def _has_prediction(data: SpatialData | AnnData, prediction_key: str) -> bool:
    return prediction_key in data.tables if hasattr(data, "tables") else hasattr(data, "var") and _is_prediction(data)


def _check_positions(prediction: AnnData) -> None:
    if "spatial" not in prediction.obsm:
        found = sorted(prediction.obsm)
        msg = f"The prediction has no `obsm['spatial']`, the positions of its spots; its obsm holds {found}."
        raise KeyError(msg)


def _measured_table(
    data: SpatialData | AnnData, prediction: AnnData | None, prediction_key: str, table_key: str | None
) -> AnnData | None:
    """The table of measurements: the one that is named, or the one that annotates the shapes of the prediction.

    Without a prediction it is the only table; a prediction alone has none.
    """
    if prediction is data:
        return None
    if prediction is None or table_key is not None:
        return resolve_table(data, table_key=table_key)
    predicted = set(table_region_keys(prediction)[0])
    fitting = {
        name: table
        for name, table in data.tables.items()
        if name != prediction_key
        and "spatialdata_attrs" in table.uns
        and read_record(table, "prediction") is None
        and predicted & set(table_region_keys(table)[0])
    }
    if len(fitting) > 1 and "table" not in fitting:
        msg = f"Several tables annotate the shapes of the prediction: {sorted(fitting)}. Give `table_key`."
        raise KeyError(msg)
    return fitting.get("table") if len(fitting) > 1 else next(iter(fitting.values()), None)


def _keys_of(
    data: SpatialData | AnnData, prediction: AnnData | None, measured: AnnData | None, keys: Keys, prediction_key: str
) -> Keys:
    """Which table the slides of an object are read from: the measured one, if it has all slides of the prediction."""
    if prediction is None:
        return keys
    if prediction is data:
        # a table of a SpatialData, alone
        attached = keys.slide_key is None and "spatialdata_attrs" in prediction.uns
        return replace(keys, table_key=None, slide_key=table_region_keys(prediction)[1] if attached else keys.slide_key)
    regions = set(table_region_keys(prediction)[0])
    if measured is None or not regions <= set(table_region_keys(measured)[0]):
        return replace(keys, table_key=prediction_key)
    return replace(keys, table_key=next(name for name, table in data.tables.items() if table is measured))


def _check_gene(gene: str, *, prediction: AnnData | None, measured: AnnData | None) -> None:
    """Raise unless the gene was predicted; or measured, where there is no prediction."""
    known = (measured if prediction is None else prediction).var_names  # type: ignore[union-attr]
    if gene in known:
        return
    where = f"not among the {len(known)} genes of the {'table' if prediction is None else 'prediction'}"
    if measured is not None and gene in measured.var_names:
        where += (
            " (it was measured, but is not modelled: `fit` takes the most variable genes. "
            f"`fit(..., genes=[{gene!r}], n_genes=1000)` takes it as well)"
        )
    elif measured is not None and prediction is not None:
        where += f", nor among the {measured.n_vars} measured genes of the table"
    close = close_genes(gene, known)
    hint = f"Close matches: {close}." if close else f"The first of them: {list(known[:5])}."
    msg = f"Gene {gene!r} is {where}. {hint}"
    raise KeyError(msg)


def _check_panels(prediction: AnnData | None, panels: Sequence[str]) -> None:
    """Raise where the prediction lacks what a panel shows."""
    if prediction is None:
        return
    layers = {LOWER: [LOWER], UPPER: [UPPER], WIDTH: [LOWER, UPPER]}
    for panel in panels:
        absent = [name for name in layers.get(panel, []) if name not in prediction.layers]
        if absent:
            found = sorted(name for name in prediction.layers if name is not None)
            msg = f"`panels`: {panel!r} needs the layers {absent}, which the prediction lacks; its layers are {found}."
            raise KeyError(msg)
        if panel == OUTSIDE and IN_DISTRIBUTION not in prediction.obs:
            msg = (
                f"`panels`: {panel!r} needs the column {IN_DISTRIBUTION!r} of `obs`, which the prediction lacks; its columns "
                f"are {sorted(prediction.obs.columns)}."
            )
            raise KeyError(msg)


def _values(
    source: Sections,
    prediction: AnnData | None,
    measured: AnnData | None,
    genes: Sequence[str],
    *,
    panels: Sequence[str] | None,
    layer: str | None,
) -> Values:
    def wanted(*kinds: str) -> bool:
        return any(kind in (panels or (MEASURED, PREDICTED)) for kind in kinds)

    numbers: dict[tuple[str, str], NDArray[np.float64]] = {}
    inside = np.full(source.table.n_obs, np.nan)
    record: Mapping[str, Any] = {}
    if prediction is not None:
        rows = _rows_in(prediction, source)
        record = read_record(prediction, "prediction") or {}
        for gene in genes:
            # also what says whether a slide has a prediction
            numbers[gene, PREDICTED] = _of_rows(prediction, prediction.X, gene, rows)
            if wanted(LOWER, UPPER, WIDTH):
                low, high = (_of_rows(prediction, prediction.layers[name], gene, rows) for name in (LOWER, UPPER))
                numbers |= {(gene, LOWER): low, (gene, UPPER): high, (gene, WIDTH): high - low}
        if IN_DISTRIBUTION in prediction.obs:
            says = obs_column(prediction, IN_DISTRIBUTION).astype(float).to_numpy()
            inside = np.where(rows >= 0, says[rows], np.nan)
    if measured is not None and wanted(MEASURED):
        of_table = _rows_in(measured, source)
        for gene, values in measured_expression(measured, genes, layer).items():
            found = np.where(of_table >= 0, values[of_table], np.nan)
            if np.isfinite(found).any():
                numbers[gene, MEASURED] = found
    return Values(source, numbers, inside, record.get("provenance", {}), float(record.get("interval", LEVEL)))


def _of_rows(prediction: AnnData, matrix: Any, gene: str, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    return np.where(rows >= 0, _column(prediction, matrix, gene)[rows], np.nan)


def measured_expression(table: AnnData, genes: Sequence[str], layer: str | None) -> dict[str, NDArray[np.float64]]:
    """log(1 + counts per 10 000) of every spot, by its full library; NaN in spots without a count."""
    there = [gene for gene in genes if gene in table.var_names]
    if not there:
        return {}
    counts = raw_counts(table, layer)
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            gene: np.where(total > 0, np.log1p(1e4 * _column(table, counts, gene) / total), np.nan) for gene in there
        }


def _rows_in(table: AnnData, source: Sections) -> NDArray[np.intp]:
    """Row of a table of every spot of an object; −1 where the table lacks the spot."""
    if table is source.table:
        return np.arange(table.n_obs)
    _, region_key, instance_key = table_region_keys(table)
    there = _spot_index(table, region_key, instance_key)
    if not there.is_unique:
        msg = f"Two rows of a table annotate one spot: {there[there.duplicated()][0]}."
        raise ValueError(msg)
    return there.get_indexer(_spot_index(source.table, str(source.region_key), str(source.instance_key)))


def _spot_index(table: AnnData, region_key: str, instance_key: str) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([names_of(obs_column(table, key)) for key in (region_key, instance_key)])


def _column(table: AnnData, matrix: Any, gene: str) -> NDArray[np.float64]:
    position = table.var_names.get_loc(gene)
    if not isinstance(position, int):
        msg = f"Gene {gene!r} is in `var_names` more than once: call `adata.var_names_make_unique()`."
        raise ValueError(msg)
    column = in_memory(matrix[:, [position]])
    return np.asarray(column.toarray() if sparse.issparse(column) else column, dtype=np.float64).ravel()

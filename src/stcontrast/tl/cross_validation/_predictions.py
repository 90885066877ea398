"""Out-of-fold predictions of all methods as one table of the held-out spots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stcontrast._data import log_normalize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from stcontrast._data import Spots
    from stcontrast.tl.cross_validation._fits import Fit, OutOfFold

__all__ = ["measured_values", "out_of_distribution", "prediction_table"]


def prediction_table(fits: Sequence[Fit], predicted: Mapping[Fit, OutOfFold]) -> AnnData | None:
    """Out-of-fold expression and classes of all methods, `None` if no method predicted expression."""
    from anndata import AnnData

    found = [
        (fit, predicted[fit].genes, expression)
        for fit in fits
        if fit in predicted and (expression := predicted[fit].expression) is not None
    ]
    if not found:
        return None
    spots = fits[0].spots
    modelled = set.intersection(*(set(names) for _, names, _ in found))
    genes = pd.Index([gene for gene in found[0][1] if gene in modelled])
    rows = _predicted_rows(fits, predicted)
    layers: dict[str, NDArray[np.float32]] = {}
    for fit, names, expression in found:
        layer = layers.setdefault(fit.name, np.full((len(rows), len(genes)), np.nan, dtype=np.float32))
        layer[np.searchsorted(rows, fit.test_rows)] = expression[:, pd.Index(names).get_indexer(genes)]
    # the first method, even where its first fit failed
    first = next(layers[fit.name] for fit in fits if fit.name in layers)
    slide = np.array(spots.slides)[spots.slide[rows]]
    columns = {"donor": spots.donor[rows], "slide": slide, **_classes(fits, predicted, rows)}
    obs = pd.DataFrame(columns, index=[f"{n}_{i}" for n, i in zip(slide, rows, strict=True)])
    return AnnData(
        first.copy(), obs=obs, var=pd.DataFrame(index=genes), layers=layers, obsm={"spatial": spots.xy[rows]}
    )


def _classes(fits: Sequence[Fit], predicted: Mapping[Fit, OutOfFold], rows: NDArray[np.intp]) -> dict[str, Any]:
    """Annotated class of these spots, and the class that every method predicted; empty without annotation."""
    spots = fits[0].spots
    names: pd.Index[Any] = pd.Index(spots.classes)
    guessed: dict[str, NDArray[np.int64]] = {}
    for fit in fits:
        if fit in predicted and (proba := predicted[fit].proba) is not None:
            codes = guessed.setdefault(fit.name, np.full(len(rows), -1, dtype=np.int64))
            there = np.isin(fit.test_rows, rows)
            of_fit = names.get_indexer(pd.Index(predicted[fit].classes))
            codes[np.searchsorted(rows, fit.test_rows[there])] = of_fit[proba[there].argmax(axis=1)]
    if not guessed:
        return {}
    found = {"annotated": spots.label[rows], **{f"class_{method}": codes for method, codes in guessed.items()}}
    return {column: pd.Categorical.from_codes(codes, names) for column, codes in found.items()}


def _predicted_rows(fits: Sequence[Fit], predicted: Mapping[Fit, OutOfFold]) -> NDArray[np.intp]:
    """Held-out spots with expression, in the order of the table of predictions."""
    found = [fit.test_rows for fit in fits if fit in predicted and predicted[fit].expression is not None]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.intp)


def measured_values(
    spots: Spots, fits: Sequence[Fit], predicted: Mapping[Fit, OutOfFold], predictions: AnnData
) -> NDArray[np.float32]:
    """What was measured, in the shape of the predictions; NaN where nothing was."""
    rows = _predicted_rows(fits, predicted)
    columns = pd.Index(spots.genes).get_indexer(predictions.var_names)
    measured = np.full(predictions.shape, np.nan, dtype=np.float32)
    there = spots.measured[rows]
    measured[there] = log_normalize(spots.counts[rows[there]][:, columns], spots.depth[rows[there]])
    return measured


def out_of_distribution(fits: Sequence[Fit], predicted: Mapping[Fit, OutOfFold]) -> pd.DataFrame | None:
    """Whether each spot of the predictions is out of distribution, a column for every method; NaN where it failed."""
    rows = _predicted_rows(fits, predicted)
    table = pd.DataFrame(index=rows)
    for fit in fits:
        if fit in predicted and (inside := predicted[fit].inside) is not None:
            kept = np.isin(fit.test_rows, rows)
            table.loc[fit.test_rows[kept], fit.name] = 1.0 - inside[kept]
    return table if len(rows) and len(table.columns) else None

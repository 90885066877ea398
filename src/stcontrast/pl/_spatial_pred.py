"""Observed and predicted expression on the H&E."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy import sparse

from stcontrast._keys import PREDICTION_TABLE
from stcontrast._reading import resolve_slides, table_region_keys
from stcontrast._records import read_record
from stcontrast.metrics import gene_correlation
from stcontrast.pl._layout import choose_slides, finish, make_panels
from stcontrast.pl._slide import draw_picture, draw_scale_bar, draw_spots, read_picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import Sections, Slide

__all__ = ["spatial_pred"]

UNIT: Final = "log1p(counts per 10 000)"
QUANTILES: Final = (0.01, 0.99)


def spatial_pred(  # noqa: PLR0913
    sdata: SpatialData | AnnData,
    gene: str,
    *,
    prediction_key: str = PREDICTION_TABLE,
    table_key: str | None = None,
    layer: str | None = None,
    slides: str | Sequence[str] | None = None,
    image_key: str | Mapping[str, str] | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    library_key: str | None = None,
    cmap: str | Colormap = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    ax: Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | NDArray[Any] | None:
    """Draw observed and predicted expression of a gene on the H&E, in two panels for each slide.

    Both are in log1p(counts per 10 000) and share one colour scale over all slides. The title of the prediction gives
    its Pearson correlation with the observation over the spots of the slide, and "in-sample" if the model was trained
    on the slide. If a slide has no counts, or the gene was not measured, the left panel shows the H&E alone. Spots
    without a value are outlined in grey.

    Parameters
    ----------
    sdata
        SpatialData with a measured table and a prediction, as :func:`stcontrast.tl.predict_expression` writes it; or the
        prediction that it returns for an AnnData with scanpy's images in ``uns["spatial"]``, which is drawn alone.
    gene
        Name of a predicted gene.
    prediction_key
        Table of predictions.
    table_key
        Table that holds the spots and their counts; the only one by default.
    layer
        Layer of the table that holds raw counts; `X` by default.
    slides
        Slide or slides to draw, in this order; all that have a prediction by default.
    image_key
        Image, or a mapping from slide to image; the finest RGB image under the spots by default.
    um_per_px
        µm per pixel of the image's finest level, for the scale bar: a number or a mapping from slide to number; by
        default ``uns["stcontrast"]["um_per_px"]`` of the table, else derived from the spots.
    library_key
        AnnData only: column of `obs` that names the slide of a spot.
    cmap
        Colour map.
    vmin, vmax
        Ends of the colour scale; the 1 % and 99 % quantiles of all values drawn by default.
    ax
        Axes to draw on, two for each slide: observed, predicted. A new figure by default.
    show
        Show the figure. The default is ``scanpy.settings.autoshow``, or not to show it if `ax` is given.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if `return_fig`; else `None` if it was shown; else the axes, an array (n_slides, 2).

    Raises
    ------
    TypeError
        If the data are neither a SpatialData nor a prediction with images.
    KeyError
        If the prediction, the gene, a slide, a table, a layer or an image is absent; the message lists the existing ones.
    ValueError
        If the table holds no raw counts, or `ax` holds too few or too many axes.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=1, n_spots=30)
    >>> prediction = sdata["table"].copy()
    >>> prediction.X = np.log1p(1e4 * prediction.layers["truth"])  # stc.tl.predict_expression writes a real one
    >>> sdata["stc_pred"] = prediction
    >>> axes = stc.pl.spatial_pred(sdata, "GENE1", show=False)
    >>> axes.shape
    (1, 2)
    """
    from anndata import AnnData
    from spatialdata import SpatialData

    alone = isinstance(sdata, AnnData) and "spatial" in sdata.uns and read_record(sdata, "prediction") is not None
    if not alone and not isinstance(sdata, SpatialData):
        msg = (
            f"Expected a SpatialData object, found {type(sdata).__name__}: a table alone has no H&E to draw on. "
            f"Put the prediction into the SpatialData that it belongs to: `sdata[{prediction_key!r}] = prediction`."
        )
        raise TypeError(msg)
    prediction = sdata if isinstance(sdata, AnnData) else _prediction_table(sdata, prediction_key)
    spots = resolve_slides(
        sdata, table_key=table_key, image_key=image_key, um_per_px=um_per_px, library_key=library_key
    )
    table = spots.table[:, []] if alone else spots.table
    measured = _find_gene(gene, prediction=prediction, measured=table, prediction_key=prediction_key)
    predicted = _column(prediction, prediction.X, gene) if alone else _predicted_expression(prediction, gene, spots)
    observed = np.full(len(predicted), np.nan)
    if measured:
        observed = _observed_expression(spots.table, gene, layer=layer)
    chosen = _predicted_slides(choose_slides(spots.slides, slides), predicted, named=slides is not None)

    provenance = (read_record(prediction, "prediction") or {}).get("provenance", {})
    pictures = [read_picture(slide) for slide in chosen]
    figure, axes = make_panels([picture.aspect for picture in pictures], n_panels=2, ax=ax)
    rows = np.concatenate([slide.rows for slide in chosen])
    norm, extend = _color_scale(np.concatenate([observed[rows], predicted[rows]]), vmin=vmin, vmax=vmax)
    for slide, picture, (left, right) in zip(chosen, pictures, axes, strict=True):
        of_slide, by_model = observed[slide.rows], predicted[slide.rows]
        has_counts = np.isfinite(of_slide).any()
        seen = " (in-sample)" if provenance.get(slide.name) == "in-sample" else ""
        draw_picture(left, picture, title=f"{slide.name}\n{gene} {'observed' if has_counts else 'not measured'}")
        draw_picture(right, picture, title=f"{gene} predicted{_correlation(by_model, of_slide)}{seen}")
        if has_counts:
            _draw_values(left, slide, of_slide, cmap=cmap, norm=norm)
        _draw_values(right, slide, by_model, cmap=cmap, norm=norm)
        draw_scale_bar(left, slide)
    _draw_color_bar(figure, axes, cmap=cmap, norm=norm, extend=extend)
    return finish(figure, axes, show=show, return_fig=return_fig, own_figure=ax is None)


def _predicted_slides(slides: list[Slide], predicted: NDArray[np.float64], *, named: bool) -> list[Slide]:
    has_prediction = [slide for slide in slides if np.isfinite(predicted[slide.rows]).any()]
    if not has_prediction or (named and len(has_prediction) < len(slides)):
        bare = [slide.name for slide in slides if slide not in has_prediction]
        msg = (
            f"No prediction for {bare}. Call `stc.tl.predict_expression` on them first, or choose others with `slides`."
        )
        raise KeyError(msg)
    return has_prediction


def _color_scale(values: NDArray[np.float64], *, vmin: float | None, vmax: float | None) -> tuple[Normalize, str]:
    """The scale of all panels, and the ends beyond which there are values."""
    from matplotlib.colors import Normalize

    values = values[np.isfinite(values)]
    low, high = np.quantile(values, QUANTILES)
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    if high <= low and vmax is None:
        high = values.max() if values.max() > low else low + 1.0
    below, above = bool(values.min() < low), bool(values.max() > high)
    return Normalize(low, high), {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]


def _correlation(predicted: NDArray[np.float64], observed: NDArray[np.float64]) -> str:
    both = np.isfinite(predicted) & np.isfinite(observed)
    if not both.any():
        return ""
    r = float(gene_correlation(*(values[both, None].astype(np.float32) for values in (predicted, observed)))[0])
    return f", r = {r:.2f}" if np.isfinite(r) else ", r undefined"


def _draw_values(ax: Axes, slide: Slide, values: NDArray[np.float64], *, cmap: Any, norm: Normalize) -> None:
    known = np.isfinite(values)
    draw_spots(ax, slide, known, array=values[known], cmap=cmap, norm=norm)


def _draw_color_bar(figure: Figure, axes: NDArray[Any], *, cmap: Any, norm: Normalize, extend: str) -> None:
    from matplotlib.cm import ScalarMappable

    # as high as one row of panels, for any number of rows
    n_rows = len({ax.get_subplotspec().rowspan.start for ax in axes.ravel() if ax.get_subplotspec() is not None})
    bar = figure.colorbar(
        ScalarMappable(norm, cmap),
        ax=list(axes.ravel()),
        label=UNIT,
        extend=extend,
        extendfrac=0.03,
        shrink=0.7 / max(n_rows, 1) ** 0.8,
        aspect=22,
        pad=0.02,
    )
    bar.outline.set_visible(False)


def _prediction_table(sdata: SpatialData, prediction_key: str) -> AnnData:
    """The table of predictions."""
    if prediction_key not in sdata.tables:
        msg = (
            f"No table {prediction_key!r} in the SpatialData object; its tables are {sorted(sdata.tables)}. "
            "Call `stc.tl.predict_expression(sdata, model)` first, or give `prediction_key`."
        )
        raise KeyError(msg)
    return sdata.tables[prediction_key]


def _find_gene(gene: str, *, prediction: AnnData, measured: AnnData, prediction_key: str) -> bool:
    """Whether the gene was measured too; raise unless it was predicted."""
    if gene in prediction.var_names:
        return gene in measured.var_names
    where = f"not among the {prediction.n_vars} genes of the prediction `sdata[{prediction_key!r}]`"
    if gene in measured.var_names:
        where += " (it was measured, but is not modelled)"
    else:
        where += f", nor among the {measured.n_vars} measured genes of the table"
    close = get_close_matches(gene, list(prediction.var_names), n=5)
    # gene symbols of two species may differ only in their case
    close = list(dict.fromkeys([name for name in prediction.var_names if name.lower() == gene.lower()] + close))
    hint = f"Close matches: {close}." if close else f"The first of them: {list(prediction.var_names[:5])}."
    msg = f"Gene {gene!r} is {where}. {hint}"
    raise KeyError(msg)


def _observed_expression(table: AnnData, gene: str, *, layer: str | None) -> NDArray[np.float64]:
    """log1p(counts per 10 000) of every spot, by its full library; NaN in spots without a count."""
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


def _predicted_expression(prediction: AnnData, gene: str, spots: Sections) -> NDArray[np.float64]:
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
        msg = f"Gene {gene!r} is in `var_names` more than once: call `adata.var_names_make_unique()`."
        raise ValueError(msg)
    column = matrix[:, [position]]
    return np.asarray(column.toarray() if sparse.issparse(column) else column, dtype=np.float64).ravel()

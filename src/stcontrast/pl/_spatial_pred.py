"""`spatial_pred`: draw measured and predicted expression on the H&E, with intervals and out-of-distribution spots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._arguments import POSITIVE, SHARE, TEXT, Rule, checked, listed, whole
from stcontrast._keys import LOWER, PREDICTION_TABLE, UPPER
from stcontrast._predictions import (
    EXPRESSION,
    IMAGE,
    MEASURED,
    OF_SLIDE,
    OUTSIDE,
    PANELS,
    PREDICTED,
    WIDTH,
    Values,
    read_values,
)
from stcontrast._reading import Keys, as_list, slide_outlines
from stcontrast.metrics import gene_correlation
from stcontrast.pl._colors import CMAP, WIDTH_CMAP, Limit, color_scale, is_limit
from stcontrast.pl._layout import choose_slides, finish, given_titles, make_panels, with_slide
from stcontrast.pl._legends import BAR_SPACE, ColorBar, add_color_bars
from stcontrast.pl._slide import common_views, draw_picture, draw_scale_bar, draw_spots, read_picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import Slide

__all__ = ["spatial_pred"]

UNIT: Final = "log(1 + counts per 10 000)"
OUTSIDE_COLOR: Final = "#d55e00"
GENES: Final = listed(TEXT, what="the name of a gene, or a list of names", alone=True)
LIMIT: Final = listed(
    Rule("", lambda value: value is None or is_limit(value)),
    what="a number, a percentile such as 'p99', or a list with one of these for every gene",
    alone=True,
)
PANEL: Final = listed(Rule("", lambda value: value in PANELS), what=f"one or more of {PANELS}", alone=True)

type Cell = tuple[str, str]


@checked(
    gene=GENES, panels=PANEL, size=POSITIVE, alpha=SHARE, img_alpha=SHARE, ncols=whole(1), vmin=LIMIT, vmax=LIMIT
)  # fmt: skip
def spatial_pred(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    gene: str | Sequence[str],
    *,
    panels: str | Sequence[str] | None = None,
    prediction_key: str = PREDICTION_TABLE,
    table_key: str | None = None,
    layer: str | None = None,
    slides: str | Sequence[str] | None = None,
    image_key: str | Mapping[str, str] | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    library_key: str | None = None,
    cmap: str | Colormap = CMAP,
    vmin: Limit | Sequence[Limit] = None,
    vmax: Limit | Sequence[Limit] = None,
    size: float = 1.0,
    alpha: float = 1.0,
    img_alpha: float = 0.5,
    title: str | Sequence[str] | None = None,
    ncols: int | None = None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | NDArray[Any] | None:
    """Draw the predicted expression of genes on the H&E, next to the measured expression.

    All slides have the same scale in µm. Counts, predictions and bounds of a gene are in log(1 + counts per 10 000)
    and share one colour scale over all slides. The title of the prediction gives its Pearson correlation with the
    measurement over the spots of the slide, and "in-sample" if the model was trained on the slide. If a slide has no
    counts, or the gene was not measured, the panel shows only the H&E. Spots without a value are outlined in grey.

    Parameters
    ----------
    data
        SpatialData with a prediction, as :func:`stcontrast.tl.predict_expression` writes it, with or without a
        measured table; or the prediction that it returns for an AnnData, drawn on scanpy's images in
        ``uns["spatial"]``, if there are any; or a list of these. For the panels ``"image"`` and ``"measured"`` alone, any
        SpatialData or AnnData with counts: no prediction is needed.
    gene
        Name of a predicted gene, or several.
    panels
        What to draw for each slide and gene, in this order:

        - ``"image"``: the H&E alone
        - ``"measured"``: expression from the counts
        - ``"predicted"``: the prediction
        - ``"lower"``, ``"upper"``: the ends of its interval
        - ``"width"``: upper − lower, on a colour scale of its own
        - ``"out_of_distribution"``: spots that do not look like those that the model was trained on

        By default ``"measured"`` and ``"predicted"``. Without a measurement, ``"image"`` and ``"predicted"`` for one
        gene, and only ``"predicted"`` for several. On a single `ax`, only ``"predicted"``. With several genes,
        ``"image"`` and ``"out_of_distribution"`` are drawn once per slide, at the end.
    prediction_key
        Table of predictions.
    table_key
        Table that holds the spots and their counts; by default the one that annotates the same shapes, if there is one.
    layer
        Layer of the table that holds raw counts; `X` by default.
    slides
        Slide or slides to draw, in this order; all that have a prediction by default.
    image_key
        Image, or a mapping from slide to image; the finest RGB image under the spots by default.
    um_per_px
        µm per pixel of the image's finest level: a number or a mapping from slide to number; by default
        ``uns["stcontrast"]["um_per_px"]`` of the table, else derived from the spots. If it is unknown, no scale bar is
        drawn.
    library_key
        AnnData only: column of `obs` that names the slide of a spot.
    cmap
        Colour map of expression. The default contains neither purple nor blue, the colours of H&E.
    vmin, vmax
        Ends of the colour scale of expression: a number, a percentile such as ``"p99"``, or a list with one for every
        gene; the 1 % and 99 % quantiles of all values drawn by default.
    size
        Width of the spots, relative to their true width.
    alpha
        Opacity of the spots.
    img_alpha
        Opacity of the H&E; 1 does not fade it, 0 hides it.
    title
        Title of every panel, or one for all; by default slide, gene and what the panel shows.
    ncols
        Largest number of panels in a row. Panels of a slide and gene stay together. By default chosen so that the
        figure is wider than high.
    ax
        Axes to draw on, one for every panel. A new figure by default.
    show
        Show the figure. The default is ``scanpy.settings.autoshow``, or not to show it if `ax` is given.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if `return_fig`; else `None` if it was shown; else the axes, an array (n_slides, n_panels).

    Raises
    ------
    TypeError
        If the data are neither a SpatialData nor a prediction.
    KeyError
        If the prediction, a gene, a slide, a table, a layer, an image or the interval is absent. The message lists
        those that exist.
    ValueError
        If the table holds no raw counts, an interval is to be drawn but no slide has one, an argument is out of range,
        or `ax`, `title`, `vmin` or `vmax` has the wrong length.

    See Also
    --------
    spatial_class : classes instead of expression.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", method="ridge")
    >>> new = stc.datasets.toy(n_donors=1, n_spots=40, n_genes=30, seed=1)
    >>> stc.tl.predict_expression(new, model)
    >>> axes = stc.pl.spatial_pred(new, ["GENE1", "GENE2"], panels=["measured", "predicted", "width"], show=False)
    >>> axes.shape
    (1, 6)
    """
    genes = [gene] if isinstance(gene, str) else list(dict.fromkeys(gene))
    limits = {end: _of_genes(given, genes, end) for end, given in {"vmin": vmin, "vmax": vmax}.items()}
    kinds = _kinds(panels, ax)
    keys = Keys(table_key=table_key, layer=layer, image_key=image_key, um_per_px=um_per_px, slide_key=library_key)
    found = read_values(as_list(data), genes, kinds, keys, prediction_key=prediction_key)
    drawn = _slides_to_draw(found, slides)
    if kinds is None:
        measured = any((name, MEASURED) in values.of for values, _ in drawn for name in genes)
        kinds = [MEASURED, PREDICTED] if measured else [IMAGE, PREDICTED] if len(genes) == 1 else [PREDICTED]
    cells, of_gene = _cells(genes, kinds)
    bars = _color_bars(drawn, genes, kinds, cmap=cmap, limits=limits)
    titles = given_titles(title, n_slides=len(drawn), n_panels=len(cells)) or [
        with_slide(slide.name, [_title(values, slide, *cell) for cell in cells]) for values, slide in drawn
    ]

    views = common_views([slide for _, slide in drawn])
    width, height = views[0][1] - views[0][0]
    # several genes: a scale for each, next to its panels
    gutter = BAR_SPACE * len(_of_gene(bars, genes[0])) if len(genes) > 1 else 0.0
    figure, axes = make_panels(titles, block=of_gene, aspect=height / width, ncols=ncols, gutter=gutter, ax=ax)
    for (values, slide), view, of_slide in zip(drawn, views, axes, strict=True):
        picture = read_picture(slide, view)
        style = {"outlines": slide_outlines(values.source, slide), "size": size, "alpha": alpha}
        for panel, (name, kind) in zip(of_slide, cells, strict=True):
            draw_picture(panel, picture, img_alpha=1.0 if kind == IMAGE else img_alpha)
            if kind == OUTSIDE:
                _draw_outside(panel, values, slide, style=style)
            elif kind != IMAGE:
                bar = bars[name, WIDTH if kind == WIDTH else PREDICTED]
                _draw_values(panel, values, slide, (name, kind), bar=bar, style=style)
        draw_scale_bar(of_slide[0], slide)
    blocks = [
        (row[i * of_gene : (i + 1) * of_gene], name) for row in axes for i, name in enumerate(genes) if len(genes) > 1
    ] or [(axes.ravel(), genes[0])]  # fmt: skip
    for block, name in blocks:
        add_color_bars(figure, list(block), _of_gene(bars, name), room=len(genes) == 1, own=ax is None)
    return finish(figure, axes, show=show, return_fig=return_fig, own_figure=ax is None)


def _kinds(panels: str | Sequence[str] | None, ax: object) -> list[str] | None:
    """The panels that are asked for; one of the user's axes holds the prediction."""
    if panels is None:
        return [PREDICTED] if ax is not None and np.size(np.array(ax, dtype=object)) == 1 else None
    return [panels] if isinstance(panels, str) else list(dict.fromkeys(panels))


def _of_genes(given: Limit | Sequence[Limit], genes: Sequence[str], argument: str) -> dict[str, Limit]:
    """An end of the colour scale of every gene."""
    if given is None or isinstance(given, str) or not np.ndim(np.array(given, dtype=object)):
        return dict.fromkeys(genes, given)  # type: ignore[arg-type]
    of_each = list(given)  # type: ignore[arg-type]
    if len(of_each) != len(genes):
        msg = f"`{argument}` must hold one value for each of {len(genes)} genes, found {len(of_each)}."
        raise ValueError(msg)
    return dict(zip(genes, of_each, strict=True))


def _cells(genes: Sequence[str], kinds: Sequence[str]) -> tuple[list[Cell], int]:
    """Gene and kind of every panel of a slide, and how many panels stay together.

    What is the same for all of several genes comes once, at the end.
    """
    of_gene = [kind for kind in kinds if kind not in OF_SLIDE]
    if len(genes) == 1 or not of_gene:
        return [(genes[0], kind) for kind in kinds], len(kinds)
    of_slide = [(genes[0], kind) for kind in kinds if kind in OF_SLIDE]
    return [(gene, kind) for gene in genes for kind in of_gene] + of_slide, len(of_gene)


def _slides_to_draw(found: Sequence[Values], names: str | Sequence[str] | None) -> list[tuple[Values, Slide]]:
    """The slides with a prediction, or those that are named, which must have one; all of an object without any."""
    at = choose_slides([(values, slide) for values in found for slide in values.source.slides], names)
    predicted = [
        (values, slide) for values, slide in at
        if all(kind != PREDICTED for _, kind in values.of)
        or any(np.isfinite(numbers[slide.rows]).any() for (_, kind), numbers in values.of.items() if kind == PREDICTED)
    ]  # fmt: skip
    if not predicted or (names is not None and len(predicted) < len(at)):
        there = [slide.name for _, slide in predicted]
        bare = [slide.name for _, slide in at if slide.name not in there]
        msg = (
            f"No prediction for {bare}. Call `stc.tl.predict_expression` on them first, or choose others with `slides`."
        )
        raise KeyError(msg)
    return predicted


def _color_bars(
    drawn: Sequence[tuple[Values, Slide]],
    genes: Sequence[str],
    kinds: Sequence[str],
    *,
    cmap: str | Colormap,
    limits: Mapping[str, Mapping[str, Limit]],
) -> dict[Cell, ColorBar]:
    """Colour scales over all slides: for every gene one of expression, and one of the width of its interval."""

    def shown(gene: str, members: Sequence[str]) -> NDArray[np.float64]:
        of = [
            values.of[gene, kind][slide.rows] for values, slide in drawn for kind in members if (gene, kind) in values.of
        ]  # fmt: skip
        return np.concatenate(of) if of else np.zeros(0)

    bars: dict[Cell, ColorBar] = {}
    for gene in genes:
        bounds = [kind for kind in kinds if kind in (LOWER, UPPER, WIDTH)]
        if bounds and not np.isfinite(shown(gene, bounds)).any():
            msg = (
                f"`panels`: {gene} has no interval on {[slide.name for _, slide in drawn]} (`lower` and `upper` are NaN). "
                "The intervals of a model of one donor hold for no other donor: train on slides of several donors."
            )
            raise ValueError(msg)
        expression = [kind for kind in kinds if kind in EXPRESSION]
        if expression:
            ends = {end: of_genes[gene] for end, of_genes in limits.items()}
            norm, extend = color_scale(shown(gene, expression), **ends)
            bars[gene, PREDICTED] = ColorBar(norm, cmap, UNIT, extend)
        if WIDTH in kinds:
            norm, extend = color_scale(shown(gene, [WIDTH]))
            bars[gene, WIDTH] = ColorBar(norm, WIDTH_CMAP, f"width, {UNIT}", extend)
    return bars


def _of_gene(bars: Mapping[Cell, ColorBar], gene: str) -> list[ColorBar]:
    return [bar for (name, _), bar in bars.items() if name == gene]


def _draw_values(
    ax: Axes, values: Values, slide: Slide, cell: Cell, *, bar: ColorBar, style: Mapping[str, Any]
) -> None:
    numbers = values.of[cell][slide.rows] if cell in values.of else np.full(len(slide.rows), np.nan)
    known = np.isfinite(numbers)
    # what was not measured is shown as the H&E alone
    if known.any() or cell[1] != MEASURED:
        draw_spots(ax, slide, known, array=numbers[known], cmap=bar.cmap, norm=bar.norm, **style)


def _draw_outside(ax: Axes, values: Values, slide: Slide, *, style: Mapping[str, Any]) -> None:
    outside = values.inside[slide.rows] == 0
    draw_spots(ax, slide, outside, facecolors=OUTSIDE_COLOR, **style)


def _title(values: Values, slide: Slide, gene: str, kind: str) -> str:
    interval = f"{100 * values.level:g} % interval"
    measured = values.of.get((gene, MEASURED), np.full(values.source.table.n_obs, np.nan))[slide.rows]
    if kind == MEASURED:
        return f"{gene} measured" if np.isfinite(measured).any() else f"{gene} not measured"
    if kind == PREDICTED:
        seen = " (in-sample)" if values.provenance.get(slide.name) == "in-sample" else ""
        return f"{gene} predicted{_correlation(values.of[gene, PREDICTED][slide.rows], measured)}{seen}"
    if kind == OUTSIDE:
        inside = values.inside[slide.rows]
        return f"Out of distribution: {int((inside == 0).sum())} of {len(inside)} spots"
    none = kind != IMAGE and not np.isfinite(values.of[gene, kind][slide.rows]).any()
    if none:
        return f"{gene}: no interval"
    return {
        IMAGE: "H&E",
        LOWER: f"{gene}, lower end of the {interval}",
        UPPER: f"{gene}, upper end of the {interval}",
        WIDTH: f"{gene}, width of the {interval}",
    }[kind]


def _correlation(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> str:
    both = np.isfinite(predicted) & np.isfinite(measured)
    if not both.any():
        return ""
    r = float(gene_correlation(*(values[both, None].astype(np.float32) for values in (predicted, measured)))[0])
    return f", r = {r:.2f}" if np.isfinite(r) else ", r undefined"

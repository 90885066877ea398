"""Scores of a cross-validation: methods donor by donor, and two methods gene by gene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast._arguments import checked, whole
from stcontrast.pl._colors import COLORS, ink
from stcontrast.pl._layout import finish, one_panel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from stcontrast.tl import CrossValidation

__all__ = ["cv_summary", "gene_scores"]

METRIC_LABELS: Final = {
    "pearson": "Pearson correlation within a slide, −1 to 1",
    "spearman": "Spearman correlation within a slide, −1 to 1",
    "rmse": "root mean squared error, log(1 + counts per 10 000)",
    "variance_ratio": "variance, predicted / measured",
    "moran_difference": "Moran's I, predicted − measured",
    "macro_f1": "macro F1 of subtypes, 0 to 1",
    "balanced_accuracy": "balanced accuracy of subtypes, 0 to 1",
    "calibration_error": "expected calibration error of subtypes, 0 to 1",
}
AROUND_ZERO: Final = ("pearson", "spearman", "moran_difference")
MAX_LEGEND: Final = 10
SPREAD: Final = 0.5
# where a name may be placed near its dot: the nearest free place is used; lengths in points
RADII: Final = (3, 9, 16, 25, 36, 50)
DIRECTIONS: Final = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)])
DOT: Final = 2.5
FONT_SIZE: Final = 7
BETTER: Final = {"pearson": " (better)", "spearman": " (better)", "rmse": " (worse)"}


@checked()
def cv_summary(
    cv: CrossValidation,
    *,
    metric: str = "pearson",
    gene_set: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Draw a metric of all methods: one row per method, one dot per held-out donor, a bar for the mean over donors.

    A donor has the same colour and height in all rows, and its dots are joined, because donors differ more than methods.
    The values are those of ``cv.summary()``: a mean over genes within a slide, over slides within a donor, over donors.
    The row "ceiling" is the highest correlation that counting noise allows.

    Parameters
    ----------
    cv
        Result of :func:`stcontrast.tl.cross_validate`.
    metric
        Metric of ``cv.scores``.
    gene_set
        Genes to take the mean over, a name in ``cv.gene_sets``; the first set by default.
    ax
        Axes to draw on; a new figure by default.
    show
        Show the figure. The default is ``scanpy.settings.autoshow``, or not to show it if `ax` is given.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if `return_fig`; else `None` if it was shown; else the axes.

    Raises
    ------
    ValueError
        If no method has the metric. The message lists the existing metrics.
    KeyError
        If there is no such gene set.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> cv = stc.tl.cross_validate(sdata, donor_key="donor", methods=["ridge", "mean"])
    >>> ax = stc.pl.cv_summary(cv, show=False)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['ridge', 'mean', 'ceiling']
    """
    values = _per_donor(cv, metric, gene_set)
    methods, donors = list(values.index), list(values.columns)
    rows = np.arange(len(methods))
    joined = [method in cv.methods for method in methods]
    offsets = np.linspace(-SPREAD / 2, SPREAD / 2, len(donors)) if len(donors) > 1 else np.zeros(1)

    figure, panel = one_panel(ax, size=(7.0, 1.0 + 0.5 * max(len(methods), 4)))
    if metric in AROUND_ZERO:
        panel.axvline(0, color="0.6", linewidth=1, zorder=0)
    for i, (donor, offset) in enumerate(zip(donors, offsets, strict=True)):
        color = COLORS[i % len(COLORS)]
        of_donor = values[donor].to_numpy()
        panel.plot(of_donor[joined], (rows + offset)[joined], color=color, linewidth=0.8, alpha=0.5, zorder=1)
        panel.scatter(
            of_donor, rows + offset, s=32, color=color, edgecolors="white", linewidths=0.5, label=donor, zorder=2
        )
    means = values.mean(axis=1).to_numpy()
    panel.vlines(means, rows - 0.38, rows + 0.38, color=ink(panel), linewidth=2.2, label="mean of donors", zorder=3)
    for row in np.flatnonzero(np.isnan(means)):
        panel.text(
            0.5, float(row), "no value", transform=panel.get_yaxis_transform(), color="0.5", fontsize=9, ha="center",
            va="center",
        )  # fmt: skip
    for row in rows[1:]:
        panel.axhline(row - 0.5, color=ink(panel), alpha=0.08, linewidth=0.8, zorder=0)
    panel.set_yticks(rows, methods)
    panel.set_ylim(len(methods) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel(METRIC_LABELS.get(metric, metric.replace("_", " ")))
    handles, labels = panel.get_legend_handles_labels()
    if len(donors) > MAX_LEGEND:
        handles, labels = handles[-1:], [f"mean of {len(donors)} donors"]
    panel.legend(handles, labels, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
    return finish(figure, panel, show=show, return_fig=return_fig, own_figure=ax is None)


def _per_donor(cv: CrossValidation, metric: str, gene_set: str | None) -> pd.DataFrame:
    """Methods × donors: mean over genes within a slide, then over the slides of a donor."""
    scores = cv.scores_of(gene_set).dropna(subset="value")
    there = list(scores["metric"].unique())
    if metric not in there:
        msg = f"No method has the metric {metric!r}; there are {there}."
        raise ValueError(msg)
    scores = scores[scores["metric"] == metric]
    by_slide = scores.groupby(["method", "donor", "slide"])["value"].mean()
    by_donor = by_slide.groupby(["method", "donor"]).mean().unstack("donor")
    # the ceiling is not a method
    return by_donor.reindex(list(dict.fromkeys([*cv.methods, *by_donor.index])))


@checked(n_genes=whole(0))
def gene_scores(  # noqa: PLR0913
    cv: CrossValidation,
    *,
    method: str | None = None,
    reference: str = "ridge",
    metric: str = "pearson",
    gene_set: str | None = None,
    n_genes: int = 20,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Draw the score of every gene by one method against that by another, one dot per gene.

    A gene's score is its mean over the slides of a donor, then over donors, on the slides where both methods have one.

    Parameters
    ----------
    cv
        Result of :func:`stcontrast.tl.cross_validate`.
    method
        Method on the y axis; by default the first that is not the reference.
    reference
        Method on the x axis.
    metric
        Metric of ``cv.scores`` that genes have.
    gene_set
        Genes to draw, a name in ``cv.gene_sets``; the first set by default.
    n_genes
        Number of genes to label: those that `method` predicts best. That is the highest correlation, the lowest ``rmse``, a
        ``variance_ratio`` close to 1, a ``moran_difference`` close to 0.
    ax
        Axes to draw on; a new figure by default.
    show
        Show the figure. The default is ``scanpy.settings.autoshow``, or not to show it if `ax` is given.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if `return_fig`; else `None` if it was shown; else the axes.

    Raises
    ------
    KeyError
        If a method was not run or has no such score of genes, or if there is no such gene set; the message lists the
        existing ones.
    ValueError
        If genes have no such metric, if there are not two methods to compare, if they share no gene, or if `n_genes`
        is negative.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> cv = stc.tl.cross_validate(sdata, donor_key="donor", methods=["ridge", "mean"])
    >>> ax = stc.pl.gene_scores(cv, n_genes=5, show=False)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('ridge', 'mean')
    """
    table, method = _per_gene(cv.scores_of(gene_set), cv.methods, method=method, reference=reference, metric=metric)
    x, y = table[reference].to_numpy(), table[method].to_numpy()
    best = np.argsort(_distance_from_best(y, metric), kind="stable")[:n_genes]

    figure, panel = one_panel(ax, size=(5.2, 5.4))
    panel.axline((0, 0), slope=1, color="0.6", linewidth=1, linestyle="--", zorder=0)
    colors = np.full(len(x), "#3f90da")
    colors[best] = "#bd1f01"
    panel.scatter(x, y, s=16, color=list(colors), alpha=0.8, linewidths=0)
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.08 * (high - low) or 0.1
    limits = (low - margin, high + margin)
    panel.set(xlim=limits, ylim=limits, aspect="equal", xlabel=reference, ylabel=method)
    title = f"{METRIC_LABELS.get(metric, metric)}\n{(y > x).sum()} of {len(x)} genes above the diagonal{BETTER.get(metric, '')}"
    panel.set_title(title, fontsize=10)
    dots = np.stack([x, y], axis=1)
    _name_dots(panel, [str(gene) for gene in table.index[best]], dots[best], dots)
    return finish(figure, panel, show=show, return_fig=return_fig, own_figure=ax is None)


def _per_gene(
    scores: pd.DataFrame, methods: list[str], *, method: str | None, reference: str, metric: str
) -> tuple[pd.DataFrame, str]:
    """Genes × (reference, method), and the method."""
    scores = scores.dropna(subset="value")
    scores = scores[scores["gene"] != ""]
    metrics = list(scores["metric"].unique())
    if metric not in metrics:
        msg = f"Genes have no metric {metric!r}; there are {metrics}."
        raise ValueError(msg)
    scores = scores[scores["metric"] == metric]
    scored = set(scores["method"])
    there = [name for name in dict.fromkeys([*methods, *scores["method"]]) if name in scored]
    if method is None:
        method = next((name for name in methods if name in scored and name != reference), reference)
    if method == reference:
        msg = f"A method to compare {reference!r} with is needed; there are {there}."
        raise ValueError(msg)
    absent = [name for name in (reference, method) if name not in scored]
    if absent:
        msg = f"No {metric!r} of genes by {absent}; these methods have it: {there}."
        raise KeyError(msg)
    values = scores.pivot_table(index=["donor", "slide", "gene"], columns="method", values="value")
    values = values[[reference, method]].dropna()
    table = values.groupby(["donor", "gene"]).mean().groupby("gene").mean()
    if table.empty:
        msg = f"{reference!r} and {method!r} have {metric!r} for no shared gene."
        raise ValueError(msg)
    return table, method


def _distance_from_best(values: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    match metric:
        case "rmse":
            return values
        case "variance_ratio":
            return np.abs(values - 1)
        case "moran_difference":
            return np.abs(values)
        case _:
            return -values


def _name_dots(panel: Axes, names: list[str], positions: NDArray[np.float64], dots: NDArray[np.float64]) -> None:
    """Write names near their dots, without overlap with each other, the dots and the frame if there is space."""
    figure = panel.figure.canvas.figure
    # the layout must be computed before anything can be measured
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    frame = panel.get_window_extent()
    inner = np.array([frame.x0, frame.y0, frame.x1, frame.y1])
    pixels = panel.transData.transform(dots)
    around_dots = np.concatenate([pixels - DOT * scale, pixels + DOT * scale], axis=1)
    taken = np.empty((0, 4))
    for name, position in zip(names, positions, strict=True):
        text = panel.text(0, 0, name, fontsize=FONT_SIZE)
        extent = text.get_window_extent()
        text.remove()
        half = np.array([extent.width, extent.height]) / 2
        # the distance is to the edge of a name, not to its middle
        offsets = np.array([(radius * scale + half) * direction for radius in RADII for direction in DIRECTIONS])
        middles = panel.transData.transform(position) + offsets
        boxes = np.concatenate([middles - half, middles + half], axis=1)
        # an overlap of two names is the worst
        cost = 100 * _overlaps(boxes, taken) + _overlaps(boxes, around_dots)
        cost += 100 * ((boxes[:, :2] < inner[:2]).any(axis=1) | (boxes[:, 2:] > inner[2:]).any(axis=1))
        best = int(cost.argmin())
        taken = np.concatenate([taken, boxes[[best]]])
        far = best >= len(DIRECTIONS)
        panel.annotate(
            name, tuple(position), xytext=tuple(offsets[best] / scale), textcoords="offset points", ha="center",
            va="center", fontsize=FONT_SIZE,
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2} if far else None,
        )  # fmt: skip


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many of the others each box (left, bottom, right, top) touches."""
    a, b = boxes[:, None], others[None]
    touching = (a[..., :2] < b[..., 2:]).all(axis=-1) & (a[..., 2:] > b[..., :2]).all(axis=-1)
    return touching.sum(axis=1).astype(np.float64)

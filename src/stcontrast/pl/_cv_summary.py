"""Methods of a cross-validation beside each other, donor by donor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast.pl._calibration import COLORS
from stcontrast.pl._layout import finish_one, one_panel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stcontrast.tl.cross_validation import CrossValidation

__all__ = ["METRIC_LABELS", "cv_summary"]

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


def cv_summary(
    cv: CrossValidation,
    *,
    metric: str = "pearson",
    gene_set: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Draw a metric of all methods: a row a method, a dot a held-out donor, a bar for the mean over donors.

    A donor has one colour and one height within all rows, and its dots are joined, as donors differ more than methods
    do. The numbers are those of ``cv.summary()``: a mean over genes within a slide, over slides within a donor, over
    donors. The row "ceiling" is the best correlation that counting noise allows.

    Parameters
    ----------
    cv
        What :func:`stcontrast.tl.cross_validate` returned.
    metric
        Metric of ``cv.scores``.
    gene_set
        Genes to take the mean over, a name in ``cv.gene_sets``; the first set by default.
    ax
        Axes to draw on; a new figure by default.
    show
        Whether to show the figure; by default what ``scanpy.settings.autoshow`` says, and not where `ax` is given.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if `return_fig`; else `None` if it was shown; else the axes.

    Raises
    ------
    ValueError
        If no method has the metric; the message lists those there are.
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
    panel.vlines(means, rows - 0.38, rows + 0.38, color="black", linewidth=2.2, label="mean of donors", zorder=3)
    for row in np.flatnonzero(np.isnan(means)):
        panel.text(
            0.5, float(row), "no value", transform=panel.get_yaxis_transform(), color="0.5", fontsize=9, ha="center",
            va="center",
        )  # fmt: skip
    for row in rows[1:]:
        panel.axhline(row - 0.5, color="0.92", linewidth=0.8, zorder=0)
    panel.set_yticks(rows, methods)
    panel.set_ylim(len(methods) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel(METRIC_LABELS.get(metric, metric.replace("_", " ")))
    handles, labels = panel.get_legend_handles_labels()
    if len(donors) > MAX_LEGEND:
        handles, labels = handles[-1:], [f"mean of {len(donors)} donors"]
    panel.legend(handles, labels, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
    return finish_one(figure, panel, show=show, return_fig=return_fig, own_figure=ax is None)


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
    # the ceiling is no method that was compared
    return by_donor.reindex(list(dict.fromkeys([*cv.methods, *by_donor.index])))

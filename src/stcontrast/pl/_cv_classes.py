"""Subtypes of a cross-validation: which are confused, and whether their confidence agrees with the accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import numpy as np

from stcontrast._arguments import NAME, checked, listed, whole
from stcontrast.metrics._classes import calibration_bins, calibration_error
from stcontrast.pl._colors import COLORS
from stcontrast.pl._layout import finish, one_panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

    from stcontrast.tl import CrossValidation

__all__ = ["calibration", "confusion"]

CELL_IN: Final = 0.55
MISSING: Final = "0.9"


@checked()
def confusion(
    cv: CrossValidation,
    *,
    method: str | None = None,
    normalize: bool = True,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Draw a confusion matrix of true and predicted subtypes, pooled over all held-out donors.

    Parameters
    ----------
    cv
        Result of :func:`stcontrast.tl.cross_validate`, with `label_key`.
    method
        Method to draw; by default the first that predicted subtypes.
    normalize
        Divide each row by the number of spots of its true subtype, so that it sums to 1. The number is given after the
        name. Otherwise the cells are numbers of spots. The row of a subtype without true spots is grey.
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
        If no method predicted subtypes.
    KeyError
        If `method` did not predict subtypes. The message lists those that did.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> cv = stc.tl.cross_validate(sdata, donor_key="donor", label_key="subtype", methods=["ridge", "mean"])
    >>> ax = stc.pl.confusion(cv, show=False)
    >>> ax.get_title()
    'ridge'
    """
    import matplotlib as mpl
    from matplotlib.ticker import MaxNLocator

    method = _with_subtypes(cv)[0] if method is None else method
    counts = cv.confusion(method)
    n_spots = counts.to_numpy().sum(axis=1)
    values = counts.to_numpy(dtype=np.float64)
    if normalize:
        values = np.where(n_spots[:, None] > 0, values / np.maximum(n_spots, 1)[:, None], np.nan)

    side, longest = max(CELL_IN * len(counts), 1.8), max(len(str(name)) for name in counts)
    # space for the names, so that cells stay square
    size = (side + 2.3 + 0.08 * longest, side + 1.0 + 0.06 * longest)
    figure, panel = one_panel(ax, size=size)
    cmap = mpl.colormaps["Blues"].with_extremes(bad=MISSING)
    image = panel.imshow(values, cmap=cmap, vmin=0.0, vmax=1.0 if normalize else max(values.max(), 1.0))
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        red, green, blue, _ = image.to_rgba(value)
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        text = f"{value:.2f}" if normalize else f"{value:.0f}"
        panel.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    rows = [f"{name} ({n})" if normalize else str(name) for name, n in zip(counts.index, n_spots, strict=True)]
    panel.set_xticks(range(len(counts)), list(counts.columns), rotation=45, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(counts)), rows)
    panel.tick_params(length=0)
    panel.set(xlabel="predicted", ylabel="true (spots)" if normalize else "true", title=method)
    label = "fraction of the true subtype" if normalize else "spots"
    # an inset stays next to the cells in any layout, and takes no space from the user's axes
    ticks = None if normalize else MaxNLocator(integer=True)
    figure.colorbar(image, cax=panel.inset_axes((1.04, 0.0, 0.05, 1.0)), label=label, ticks=ticks)
    return finish(figure, panel, show=show, return_fig=return_fig, own_figure=ax is None)


MARKERS: Final = "osD^vPX*"
MAX_METHODS: Final = 8
AREA: Final = (12.0, 180.0)


@checked(n_bins=whole(1), methods=listed(NAME, what="the name of a method, or a list of names", alone=True))
def calibration(
    cv: CrossValidation,
    *,
    methods: str | Sequence[str] | None = None,
    n_bins: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Draw a reliability diagram: accuracy of the subtypes against the confidence of the methods.

    Each dot is a bin of confidence. It shows the mean confidence and the accuracy of its spots, pooled over all
    held-out donors. Its area grows with the number of spots. Below the diagonal a method is overconfident. The legend
    gives the expected calibration error over those bins. ``cv.summary()`` averages this error over donors instead, so
    its values differ.

    Parameters
    ----------
    cv
        Result of :func:`stcontrast.tl.cross_validate`, with `label_key`.
    methods
        Method or methods to draw, at most 8; by default all that predicted subtypes.
    n_bins
        Number of bins of confidence, of equal width; bins without spots are not drawn.
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
        If no method predicted subtypes, if no method or more than 8 are to be drawn, or if `n_bins` is below 1.
    KeyError
        If a method did not predict subtypes. The message lists those that did.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> cv = stc.tl.cross_validate(sdata, donor_key="donor", label_key="subtype", methods=["ridge", "mean"])
    >>> ax = stc.pl.calibration(cv, show=False)
    >>> ax.get_xlabel()
    'mean confidence of the bin'
    """
    table = cv.classes
    chosen = _chosen(cv, methods)
    curves = {method: _curve(table[table["method"] == method], n_bins) for method in chosen}
    most = max(int(curve["n_spots"].max()) for curve, _ in curves.values())

    # about square without the legend, which holds 28 letters if names are short
    width = 4.8 + 0.075 * max(28, *(len(method) + 10 for method in chosen))
    figure, panel = one_panel(ax, size=(width, 4.4))
    panel.axline((0, 0), slope=1, color="0.6", linewidth=1, linestyle="--", zorder=0)
    for (method, (curve, error)), color, marker in zip(curves.items(), COLORS, MARKERS, strict=False):
        area = AREA[0] + (AREA[1] - AREA[0]) * curve["n_spots"] / most
        panel.plot(curve["confidence"], curve["accuracy"], color=color, linewidth=1.2, alpha=0.7, zorder=1)
        panel.scatter(
            curve["confidence"], curve["accuracy"], s=area, color=color, marker=marker, edgecolors="white", linewidths=0.6,
            alpha=0.9, label=f"{method}: {error:.3f}", zorder=2,
        )  # fmt: skip
    panel.set(
        xlim=(-0.02, 1.02), ylim=(-0.04, 1.04), xlabel="mean confidence of the bin",
        ylabel="accuracy, fraction of its spots",
    )  # fmt: skip
    legend = panel.legend(
        title=f"expected calibration error\n(area of a dot: its spots,\n{most} at most)", loc="center left",
        bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9, title_fontsize=9, alignment="left",
    )  # fmt: skip
    for handle in legend.legend_handles:
        cast("PathCollection", handle).set_sizes([45.0])
    return finish(figure, panel, show=show, return_fig=return_fig, own_figure=ax is None)


def _with_subtypes(cv: CrossValidation) -> list[str]:
    """The methods that predicted subtypes, in the order in which they were run."""
    predicted = set(cv.classes["method"])
    if not predicted:
        msg = "No method predicted subtypes: give `stc.tl.cross_validate` a `label_key`."
        raise ValueError(msg)
    return [method for method in cv.methods if method in predicted]


def _chosen(cv: CrossValidation, methods: str | Sequence[str] | None) -> list[str]:
    there = _with_subtypes(cv)
    wanted = there if methods is None else [methods] if isinstance(methods, str) else list(dict.fromkeys(methods))
    absent = [method for method in wanted if method not in there]
    if absent:
        msg = f"These methods predicted no subtypes: {absent}; these did: {there}."
        raise KeyError(msg)
    if not 1 <= len(wanted) <= MAX_METHODS:
        msg = f"{len(wanted)} methods to draw: choose 1 to {MAX_METHODS} with `methods`, out of {there}."
        raise ValueError(msg)
    return wanted


def _curve(table: pd.DataFrame, n_bins: int) -> tuple[pd.DataFrame, float]:
    """Mean confidence, accuracy and number of spots of every bin, and the expected calibration error."""
    confidence = table["confidence"].to_numpy(dtype=np.float32).astype(np.float64)
    right = (table["true"] == table["predicted"]).to_numpy()
    # only the largest probability enters
    error = calibration_error(confidence[:, None].astype(np.float32), np.where(right, 0, -1), n_bins=n_bins)
    return calibration_bins(confidence, right, n_bins=n_bins), error

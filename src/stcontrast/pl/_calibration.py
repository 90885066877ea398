"""How far the confidence of predicted subtypes can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

import numpy as np

from stcontrast.metrics import calibration_error
from stcontrast.pl._layout import finish_one, one_panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from stcontrast.tl.cross_validation import CrossValidation

__all__ = ["COLORS", "calibration"]

# Petroff 2021 (Accessible color sequences for data visualization), told apart with any colour vision
COLORS: Final = (
    "#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#94a4a2", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
MARKERS: Final = "osD^vPX*"
MAX_METHODS: Final = 8
AREA: Final = (12.0, 180.0)


def calibration(
    cv: CrossValidation,
    *,
    methods: str | Sequence[str] | None = None,
    n_bins: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Draw how often the subtypes are right against how sure the methods were of them: a reliability diagram.

    A dot is a bin of confidence: the mean confidence and the accuracy of its spots, all held-out donors together; its
    area grows with their number. Below the diagonal a method is surer than it is right. The legend gives the
    expected calibration error over those bins. ``cv.summary()`` averages that error over donors instead, so that its
    numbers differ.

    Parameters
    ----------
    cv
        What :func:`stcontrast.tl.cross_validate` returned, with `label_key`.
    methods
        Method or methods to draw, at most 8; by default all that predicted subtypes.
    n_bins
        Bins of confidence, equally wide; those without spots are not drawn.
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
        If no method predicted subtypes, if no method or more than 8 are to be drawn, or if `n_bins` is below 1.
    KeyError
        If a method did not predict subtypes; the message lists those that did.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> cv = stc.tl.cross_validate(sdata, donor_key="donor", label_key="subtype", methods=["ridge", "mean"])
    >>> ax = stc.pl.calibration(cv, show=False)
    >>> ax.get_xlabel()
    'mean confidence of the bin'
    """
    if n_bins < 1:
        msg = f"`n_bins` must be at least 1; found {n_bins}."
        raise ValueError(msg)
    table = cv.classes
    chosen = _chosen(cv, table, methods)
    curves = {method: _curve(table[table["method"] == method], n_bins) for method in chosen}
    most = max(int(curve.n_spots.max()) for curve in curves.values())

    # about square beside the legend, which holds 28 letters if names are short
    width = 4.8 + 0.075 * max(28, *(len(method) + 10 for method in chosen))
    figure, panel = one_panel(ax, size=(width, 4.4))
    panel.axline((0, 0), slope=1, color="0.6", linewidth=1, linestyle="--", zorder=0)
    for (method, curve), color, marker in zip(curves.items(), COLORS, MARKERS, strict=False):
        area = AREA[0] + (AREA[1] - AREA[0]) * curve.n_spots / most
        panel.plot(curve.confidence, curve.accuracy, color=color, linewidth=1.2, alpha=0.7, zorder=1)
        panel.scatter(
            curve.confidence, curve.accuracy, s=area, color=color, marker=marker, edgecolors="white", linewidths=0.6,
            alpha=0.9, label=f"{method}: {curve.error:.3f}", zorder=2,
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
    return finish_one(figure, panel, show=show, return_fig=return_fig, own_figure=ax is None)


class _Curve(NamedTuple):
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    n_spots: NDArray[np.int64]
    error: float


def _chosen(cv: CrossValidation, table: pd.DataFrame, methods: str | Sequence[str] | None) -> list[str]:
    there = [method for method in cv.methods if method in set(table["method"])]
    if not there:
        msg = "No method predicted subtypes: give `stc.tl.cross_validate` a `label_key`."
        raise ValueError(msg)
    wanted = there if methods is None else [methods] if isinstance(methods, str) else list(dict.fromkeys(methods))
    absent = [method for method in wanted if method not in there]
    if absent:
        msg = f"These methods predicted no subtypes: {absent}; these did: {there}."
        raise KeyError(msg)
    if not 1 <= len(wanted) <= MAX_METHODS:
        msg = f"{len(wanted)} methods to draw: choose 1 to {MAX_METHODS} with `methods`, out of {there}."
        raise ValueError(msg)
    return wanted


def _curve(table: pd.DataFrame, n_bins: int) -> _Curve:
    confidence = table["confidence"].to_numpy(dtype=np.float32).astype(np.float64)
    right = (table["true"] == table["predicted"]).to_numpy()
    # the bins of `calibration_error`
    codes, bins = np.unique(np.minimum((confidence * n_bins).astype(int), n_bins - 1), return_inverse=True)
    n_spots = np.bincount(bins, minlength=len(codes))
    # of the probabilities only the largest counts
    error = calibration_error(confidence[:, None].astype(np.float32), np.where(right, 0, -1), n_bins=n_bins)
    return _Curve(
        np.bincount(bins, weights=confidence) / n_spots, np.bincount(bins, weights=right) / n_spots, n_spots, error
    )

"""Which subtypes are taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast.pl._layout import finish_one, one_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stcontrast.tl.cross_validation import CrossValidation

__all__ = ["confusion"]

CELL_IN: Final = 0.55
MISSING: Final = "0.9"


def confusion(
    cv: CrossValidation,
    *,
    method: str | None = None,
    normalize: bool = True,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Draw true subtypes by predicted ones, all held-out donors together.

    Parameters
    ----------
    cv
        What :func:`stcontrast.tl.cross_validate` returned, with `label_key`.
    method
        Method to draw; by default the first that predicted subtypes.
    normalize
        Divide a row by the spots of that true subtype, so that it sums to 1; the number of spots stands beside its
        name. Else the cells are numbers of spots. A subtype that no spot truly has is grey.
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
        If no method predicted subtypes.
    KeyError
        If `method` did not predict subtypes; the message lists those that did.

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

    there = set(cv.classes["method"])
    if not there:
        msg = "No method predicted subtypes: give `stc.tl.cross_validate` a `label_key`."
        raise ValueError(msg)
    method = next(name for name in cv.methods if name in there) if method is None else method
    counts = cv.confusion(method)
    n_spots = counts.to_numpy().sum(axis=1)
    values = counts.to_numpy(dtype=np.float64)
    if normalize:
        values = np.where(n_spots[:, None] > 0, values / np.maximum(n_spots, 1)[:, None], np.nan)

    side, longest = max(CELL_IN * len(counts), 1.8), max(len(str(name)) for name in counts)
    # room for the names, so that cells stay square without being squeezed
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
    # an inset stays beside the cells, whatever the layout, and takes no room of the user's axes
    ticks = None if normalize else MaxNLocator(integer=True)
    figure.colorbar(image, cax=panel.inset_axes((1.04, 0.0, 0.05, 1.0)), label=label, ticks=ticks)
    return finish_one(figure, panel, show=show, return_fig=return_fig, own_figure=ax is None)

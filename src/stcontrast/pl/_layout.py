"""Panels and colours of a figure, and what a plotting function returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from stcontrast._reading import Slide

__all__ = ["COLORS", "choose_slides", "finish", "make_panels", "one_panel"]

# Petroff 2021 (Accessible color sequences for data visualization), told apart with any colour vision
COLORS: Final = (
    "#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#94a4a2", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
PANEL_IN: Final = 3.4
GAP: Final = 0.06


def choose_slides(slides: list[Slide], names: str | Sequence[str] | None) -> list[Slide]:
    """The slides that are named, in that order; all by default."""
    if names is None:
        return slides
    by_name = {slide.name: slide for slide in slides}
    wanted = [names] if isinstance(names, str) else list(names)
    absent = [name for name in wanted if name not in by_name]
    if absent or not wanted:
        msg = f"`slides` names no slide of the table: {absent}. Its slides are {list(by_name)}."
        raise KeyError(msg)
    return [by_name[name] for name in wanted]


def make_panels(
    aspects: Sequence[float], *, n_panels: int, ax: Axes | Sequence[Axes] | NDArray[Any] | None
) -> tuple[Figure, NDArray[Any]]:
    """Axes (n_slides, n_panels): the user's, or those of a new figure with the panels of a slide next to each other.

    Parameters
    ----------
    aspects
        Ratio of height to width of every slide's view.
    n_panels
        Number of panels of a slide.
    ax
        The user's axes, one for each panel.

    Returns
    -------
    The figure and its axes.

    Raises
    ------
    ValueError
        If the number of the user's axes is not the number of panels.
    """
    import matplotlib.pyplot as plt

    n_slides = len(aspects)
    if ax is not None:
        given = np.ravel(np.array(ax, dtype=object))
        if len(given) != n_slides * n_panels:
            msg = (
                f"`ax` must hold {n_slides * n_panels} axes, {n_panels} for each of {n_slides} slides; "
                f"found {len(given)}. Choose slides with `slides`."
            )
            raise ValueError(msg)
        return given[0].get_figure(), given.reshape(n_slides, n_panels)
    per_row = _slides_per_row(n_slides, n_panels)
    n_rows = -(-n_slides // per_row)
    # panels have the same height, and the width of the widest slide of their column
    widths = np.array([max(1 / aspect for aspect in aspects[i::per_row]) for i in range(per_row)])
    height = PANEL_IN / np.sqrt(widths.mean())
    figure = plt.figure(figsize=(height * widths.sum() * n_panels + 1.3, (height + 0.7) * n_rows), layout="compressed")
    # a narrow empty column separates the slides of a row
    ratios = np.concatenate([[*[width] * n_panels, GAP] for width in widths])[:-1]
    grid = figure.add_gridspec(n_rows, len(ratios), width_ratios=list(ratios))
    axes = [
        [figure.add_subplot(grid[i // per_row, i % per_row * (n_panels + 1) + j]) for j in range(n_panels)]
        for i in range(n_slides)
    ]
    return figure, np.array(axes, dtype=object)


def finish[T](figure: Figure, axes: T, *, show: bool | None, return_fig: bool, own_figure: bool) -> Figure | T | None:
    """Return the figure, or show it, or return its axes: scanpy's conventions."""
    if return_fig:
        return figure
    if show is None:
        from scanpy import settings

        # the user shows a figure that the user made
        show = own_figure and settings.autoshow
    if not show:
        return axes
    import matplotlib.pyplot as plt

    plt.show()
    return None


def _slides_per_row(n_slides: int, n_panels: int) -> int:
    # no gap in the last row for the usual numbers of slides
    if n_panels == 1:
        return {1: 1, 2: 2, 4: 2}.get(n_slides, 3 if n_slides <= 9 else 4)
    return {1: 1, 3: 1}.get(n_slides, 2 if n_slides <= 8 else 3)


def one_panel(ax: Axes | None, *, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """The user's axes, or those of a new figure of this size in inches."""
    import matplotlib.pyplot as plt

    if ax is None:
        figure, panel = plt.subplots(figsize=size, layout="constrained")
        return figure, panel
    return cast("Figure", ax.get_figure()), ax

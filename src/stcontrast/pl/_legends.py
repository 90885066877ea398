"""Legends and colour bars. The figure grows to hold them; the panels keep their size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np

from stcontrast.pl._colors import ink
from stcontrast.pl._layout import EDGE, FONT_SIZE, LETTER, PANEL_IN, letters_in, shortened, width_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from numpy.typing import NDArray


__all__ = ["BAR_SPACE", "LEGEND_PLACES", "ColorBar", "add_color_bars", "add_legend", "legend_width", "panel_legend"]

BAR_WIDTH: Final = 0.12
BAR_SPACE: Final = 0.85
# of the width of the panels: a wider legend lies below them
LEGEND_SHARE: Final = 0.6
NAME_LETTERS: Final = 32
LEGEND_PLACES: Final = (
    "right margin", "bottom margin", "on data", "none", "best", "upper right", "upper left", "lower left", "lower right",
    "right", "center left", "center right", "lower center", "upper center", "center",
)  # fmt: skip


class ColorBar(NamedTuple):
    """What a colour bar shows."""

    norm: Normalize
    cmap: str | Colormap
    label: str
    extend: str


def _make_room(figure: Figure, *, right: float = 0.0, below: float = 0.0) -> None:
    """Enlarge a figure that we made; its axes keep their size in inches."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + right, height + below)
    for ax in figure.axes:
        box = ax.get_position(original=True)
        ax.set_position((
            box.x0 * width / (width + right), (box.y0 * height + below) / (height + below),
            box.width * width / (width + right), box.height * height / (height + below),
        ))  # fmt: skip


def add_color_bars(figure: Figure, axes: Sequence[Axes], bars: Sequence[ColorBar], *, room: bool, own: bool) -> None:
    """Draw colour bars on the right of the rightmost of some axes, as high as it.

    Parameters
    ----------
    figure
        The figure.
    axes
        The axes whose colours they explain. The user's lose a little of their width, as matplotlib has it.
    bars
        What they show.
    room
        Make room for them: they stand at the right end of the figure.
    own
        Whether the figure is ours.
    """
    from matplotlib.cm import ScalarMappable

    color = ink(figure)
    boxes = [ax.get_position(original=True) for ax in axes]
    last = axes[max(range(len(axes)), key=lambda i: (round(boxes[i].x1, 6), boxes[i].y1))]
    if own and room:
        _make_room(figure, right=BAR_SPACE * len(bars))
    for i, bar in enumerate(bars):
        style: dict[str, Any] = {"extend": bar.extend, "extendfrac": 0.03}
        if own:
            width = figure.get_size_inches()[0]
            box = last.get_position(original=True)
            left = box.x1 + (0.1 + BAR_SPACE * i) / width
            style["cax"] = figure.add_axes((left, box.y0 + 0.08 * box.height, BAR_WIDTH / width, 0.84 * box.height))
        else:
            style |= {"ax": list(axes), "shrink": 0.84, "fraction": 0.05, "pad": 0.02, "aspect": 24}
        made = figure.colorbar(ScalarMappable(bar.norm, bar.cmap), **style)
        made.outline.set_visible(False)
        made.formatter.set_useOffset(False)  # type: ignore[attr-defined]
        made.ax.tick_params(labelsize=FONT_SIZE - 1, colors=color)
        made.set_label(bar.label, size=FONT_SIZE, color=color)


def add_legend(
    figure: Figure,
    axes: NDArray[Any],
    handles: Sequence[Artist],
    *,
    loc: str | None,
    own: bool,
    title: str | None = None,
) -> None:
    """Draw a legend next to the panels, or below them where it would take more than half of their width.

    Parameters
    ----------
    figure, axes
        The figure and its panels.
    handles
        Entries, with labels. Long labels are broken.
    loc
        ``"right margin"``, ``"bottom margin"``, or a place inside the last panel as matplotlib names it.
    own
        Whether the figure is ours.
    title
        Title of the legend.
    """
    if not handles or loc in (None, "none", "on data"):
        return
    labels = [shortened(str(handle.get_label()), NAME_LETTERS) for handle in handles]
    color = ink(figure)
    style: dict[str, Any] = {
        "handles": list(handles), "labels": labels, "frameon": False, "fontsize": FONT_SIZE, "labelcolor": color,
        "borderaxespad": 0.0, "title": title, "title_fontsize": FONT_SIZE, "handletextpad": 0.3,
    }  # fmt: skip
    last = axes[0, -1]
    if loc not in ("right margin", "bottom margin"):
        # on the slide's own background
        inside = style | {"frameon": True, "labelcolor": "black", "facecolor": "white", "edgecolor": "none"}
        last.legend(loc=loc, **inside)
        return
    if own:
        _place_legend(figure, axes, style, loc)
        return
    legend = last.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), ncols=_columns(labels, 20), **style)
    if loc == "bottom margin" or _size_in(figure, legend)[0] > width_in(last) / 2:
        last.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=_fitting(figure, legend, last), **style)


def legend_width(names: Iterable[str]) -> float:
    """Inches that a legend of these names takes next to its panel: not more than half of the smallest panel's width."""
    longest = max((len(name) for name in names), default=0)
    return float(min(0.35 + longest * FONT_SIZE * LETTER / 72, PANEL_IN[0] / 2))


def panel_legend(ax: Axes, colors: Mapping[str, str], *, markers: Mapping[str, str]) -> None:
    """Draw a legend of colours on the right of its own panel; long names are broken."""
    from matplotlib.lines import Line2D

    letters = max(round((legend_width(colors) - 0.35) * 72 / (FONT_SIZE * LETTER)), 8)
    handles = [
        Line2D([], [], marker=markers.get(name, "o"), linestyle="none", color=color, markersize=6, label=shortened(name, letters))
        for name, color in colors.items()
    ]  # fmt: skip
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=FONT_SIZE - 1,
        labelcolor=ink(cast("Figure", ax.get_figure(root=True))), borderaxespad=0.0, handletextpad=0.2,
    )  # fmt: skip


def _place_legend(figure: Figure, axes: NDArray[Any], style: dict[str, Any], loc: str | None) -> None:
    """Enlarge our figure on the right, or below, by what the legend takes."""
    width, height = figure.get_size_inches()
    boxes = [ax.get_position(original=True) for ax in axes.ravel()]
    drawn, top = max(box.x1 for box in boxes) * width, max(box.y1 for box in boxes) * height
    legend = figure.legend(**style)
    wide, high = _size_in(figure, legend)
    n_columns = -(-int(np.ceil(high * 100)) // int(height * 100))
    if loc == "right margin" and wide * n_columns <= LEGEND_SHARE * drawn:
        legend.remove()
        legend = figure.legend(**style, ncols=n_columns)
        wide, high = _size_in(figure, legend)
        _make_room(figure, right=wide + EDGE)
        width, height = figure.get_size_inches()
        legend.set_loc("upper left")
        legend.set_bbox_to_anchor(((width - wide - EDGE) / width, max(top, high) / height))
        return
    legend.remove()
    # below there is the whole width for a name
    letters = letters_in(drawn - 0.4, least=NAME_LETTERS)
    style["labels"] = [shortened(str(handle.get_label()), letters) for handle in style["handles"]]
    legend = figure.legend(**style)
    wide, _ = _size_in(figure, legend)
    legend.remove()
    n_columns = int(np.clip(drawn // (wide + 0.15), 1, len(style["labels"])))
    legend = figure.legend(**style, ncols=n_columns)
    _, high = _size_in(figure, legend)
    _make_room(figure, below=high + EDGE)
    legend.set_loc("lower left")
    legend.set_bbox_to_anchor((EDGE / width, EDGE / (height + high + EDGE)))


def _size_in(figure: Figure, legend: Legend) -> tuple[float, float]:
    box = legend.get_window_extent()
    return box.width / figure.dpi, box.height / figure.dpi


def _columns(labels: Sequence[str], rows: int) -> int:
    return -(-sum(label.count("\n") + 1 for label in labels) // rows)


def _fitting(figure: Figure, legend: Legend, ax: Axes) -> int:
    """How many columns of entries are as wide as the panel."""
    one = _size_in(figure, legend)[0] / legend._ncols  # type: ignore[attr-defined]
    return max(int(width_in(ax) // max(one, 0.1)), 1)

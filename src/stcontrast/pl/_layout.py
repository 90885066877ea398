"""Panels of a figure, their legends and colour bars, and what a plotting function returns.

The figures are laid out in inches: panels have one size, and a legend makes the figure larger, not the panels smaller.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np

from stcontrast.pl._colors import ink

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from numpy.typing import NDArray

    from stcontrast._reading import Slide

__all__ = [
    "BAR_SPACE",
    "LEGEND_PLACES",
    "ColorBar",
    "add_color_bars",
    "add_legend",
    "choose_slides",
    "finish",
    "given_titles",
    "legend_width",
    "make_panels",
    "one_panel",
    "panel_legend",
    "plain_panels",
    "set_row_title",
    "with_slide",
]

# all lengths in inches
PANEL_IN: Final = (2.4, 3.6)
FIGURE_IN: Final = 13.0
EDGE: Final = 0.12
GAP: Final = 0.1
BLOCK_GAP: Final = 0.3
BELOW: Final = 0.34
LINE: Final = 0.17
BAR_WIDTH: Final = 0.12
BAR_SPACE: Final = 0.85
FONT_SIZE: Final = 9
# of the width of the panels: a wider legend lies below them
LEGEND_SHARE: Final = 0.6
# what a share of empty places weighs against a figure of another shape
EMPTY: Final = 4.0
# a letter's width in sizes of the font, rather too wide than too narrow
LETTER: Final = 0.62
NAME_LETTERS: Final = 32
MAX_LINES: Final = 3
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


class Grid(NamedTuple):
    """Where the panels of a new figure lie: columns, columns that belong together, size of a panel in inches."""

    n_columns: int
    block: int
    width: float
    height: float


def choose_slides[T](slides: list[tuple[T, Slide]], names: str | Sequence[str] | None) -> list[tuple[T, Slide]]:
    """The slides that are named, in that order, each with what it belongs to; all by default."""
    if names is None:
        return slides
    by_name = {slide.name: (of, slide) for of, slide in slides}
    wanted = [names] if isinstance(names, str) else list(names)
    absent = [name for name in wanted if name not in by_name]
    if absent or not wanted:
        msg = f"`slides` names no slide of the table: {absent}. Its slides are {list(by_name)}."
        raise KeyError(msg)
    return [by_name[name] for name in wanted]


def make_panels(
    titles: Sequence[Sequence[str]],
    *,
    block: int,
    aspect: float,
    ncols: int | None,
    gutter: float = 0.0,
    side: float | None = None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None,
) -> tuple[Figure, NDArray[Any]]:
    """Axes (n_slides, n_panels) with titles: the user's, or those of a new figure with the panels of a slide together.

    Parameters
    ----------
    titles
        Title of every panel of every slide.
    block
        Number of panels that stay next to each other in a row: those of a slide, or of a gene.
    aspect
        Ratio of height to width of a panel.
    ncols
        Number of panels in a row at most; by default what makes a figure that is wider than high.
    gutter
        Inches on the right of every block, for colour bars.
    side
        Side of a panel in inches; by default what the number of columns leaves.
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

    n_slides, n_panels = len(titles), len(titles[0])
    if ax is not None:
        given = np.ravel(np.array(ax, dtype=object))
        if len(given) != n_slides * n_panels:
            msg = (
                f"`ax` must hold {n_slides * n_panels} axes, {n_panels} for each of {n_slides} slides; "
                f"found {len(given)}. Choose slides with `slides`, and panels with `panels`."
            )
            raise ValueError(msg)
        axes = given.reshape(n_slides, n_panels)
        _set_titles(axes, titles)
        return cast("Figure", given[0].get_figure(root=True)), axes

    grid = _plan(n_slides, n_panels, block=block, aspect=aspect, ncols=ncols, side=side)
    cells = _cells(n_slides, n_panels, grid)
    lines = max(_wrapped(title, grid.width).count("\n") + 1 for of_slide in titles for title in of_slide)
    above = LINE * lines + 0.06
    n_rows = 1 + max(row for row, _ in cells)
    # a sheet of small panels has a scale bar under its last row alone
    below = BELOW if side is None else EDGE
    step = above + grid.height + below
    steps = [GAP if (column + 1) % grid.block else BLOCK_GAP + gutter for column in range(grid.n_columns)]
    lefts = EDGE + np.concatenate([[0], np.cumsum([grid.width + step for step in steps])])[:-1]
    size = lefts[-1] + grid.width + gutter + EDGE, n_rows * step + BELOW - below
    figure = plt.figure(figsize=size, layout="none")
    made = []
    for row, column in cells:
        bottom = size[1] - (row + 1) * step + below
        made.append(
            figure.add_axes(
                (lefts[column] / size[0], bottom / size[1], grid.width / size[0], grid.height / size[1])
            )
        )  # fmt: skip
    axes = np.array(made, dtype=object).reshape(n_slides, n_panels)
    _set_titles(axes, titles)
    return figure, axes


def given_titles(title: str | Sequence[str] | None, *, n_slides: int, n_panels: int) -> list[list[str]] | None:
    """The user's titles: one for all panels, one for every panel of a slide, or one for every panel."""
    if title is None:
        return None
    titles = [title] * n_panels if isinstance(title, str) else [str(one) for one in title]
    if len(titles) == n_panels:
        return [titles] * n_slides
    if len(titles) == n_slides * n_panels:
        return [titles[i * n_panels : (i + 1) * n_panels] for i in range(n_slides)]
    msg = f"`title` must be one text, or {n_slides * n_panels}, one for every panel; found {len(titles)}."
    raise ValueError(msg)


def with_slide(name: str, titles: Sequence[str]) -> list[str]:
    """Titles of the panels of a slide: the first names it."""
    return [f"{name}\n{title}" if i == 0 else title for i, title in enumerate(titles)]


def _plan(n_slides: int, n_panels: int, *, block: int, aspect: float, ncols: int | None, side: float | None) -> Grid:
    """Columns that fill their rows and make a figure of 3 to 2, if the user does not say how many."""
    # several genes: every slide starts a row; one gene: slides stand next to each other
    of_genes = n_panels > block
    most = n_panels // block if of_genes else n_slides

    def rows(blocks: int) -> int:
        return n_slides * -(-n_panels // (blocks * block)) if of_genes else -(-n_slides // blocks)

    def cost(blocks: int) -> float:
        empty = rows(blocks) * blocks * block - n_slides * n_panels
        return float(abs(np.log(blocks * block / (rows(blocks) * aspect * 1.5)))) + EMPTY * empty / (
            n_slides * n_panels
        )

    blocks = min(range(1, most + 1), key=cost) if ncols is None else min(max(ncols // block, 1), most)
    # a block that is wider than what the user wants is broken
    n_columns = blocks * block if ncols is None else min(blocks * block, ncols)
    side = float(np.clip(FIGURE_IN / n_columns, *PANEL_IN)) if side is None else side
    return Grid(n_columns, min(block, n_columns), side / np.sqrt(aspect), side * np.sqrt(aspect))


def _cells(n_slides: int, n_panels: int, grid: Grid) -> list[tuple[int, int]]:
    """Row and column of every panel, slide by slide."""
    in_a_row = grid.n_columns // n_panels
    if in_a_row:
        return [(i // in_a_row, i % in_a_row * n_panels + j) for i in range(n_slides) for j in range(n_panels)]
    of_slide = -(-n_panels // grid.n_columns)
    return [(i * of_slide + j // grid.n_columns, j % grid.n_columns) for i in range(n_slides) for j in range(n_panels)]


def _set_titles(axes: NDArray[Any], titles: Sequence[Sequence[str]]) -> None:
    """Write titles that are not wider than their panels, in a colour that is visible."""
    for panels, of_slide in zip(axes, titles, strict=True):
        for ax, title in zip(panels, of_slide, strict=True):
            ax.set_title(_wrapped(title, _width_in(ax)), loc="left", fontsize=FONT_SIZE, color=ink(ax.figure))


def set_row_title(panels: Sequence[Axes] | NDArray[Any], title: str) -> None:
    """Write a title over a row of panels, as long as the row at most."""
    first, last = panels[0], panels[-1]
    figure = cast("Figure", first.get_figure(root=True))
    width = (last.get_window_extent().x1 - first.get_window_extent().x0) / figure.dpi
    letters = max(int(width * 72 / (FONT_SIZE * LETTER)), 8)
    text = title if len(title) <= letters else f"{title[: letters - 1]}…"
    first.set_title(text, loc="left", fontsize=FONT_SIZE, color=ink(figure))


def _width_in(ax: Axes) -> float:
    figure = ax.get_figure(root=True)
    return float(ax.get_window_extent().width / cast("Figure", figure).dpi)


def _wrapped(text: str, width_in: float) -> str:
    """Text in lines that fit; what does not fit in three lines is cut, its beginning and its end are kept."""
    letters = max(int(width_in * 72 / (FONT_SIZE * LETTER)), 8)
    return "\n".join(_shortened(line, letters) for line in text.split("\n"))


def _shortened(text: str, letters: int) -> str:
    most = letters * MAX_LINES - 4
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[-(most // 2) :]}"
    return "\n".join(textwrap.wrap(text, letters)) or text


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


def one_panel(ax: Axes | None, *, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """The user's axes, or those of a new figure of this size in inches."""
    import matplotlib.pyplot as plt

    if ax is None:
        figure, panel = plt.subplots(figsize=size, layout="constrained")
        return figure, panel
    return cast("Figure", ax.get_figure()), ax


def plain_panels(
    titles: Sequence[str],
    *,
    size: tuple[float, float],
    ncols: int | None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None,
) -> tuple[Figure, NDArray[Any]]:
    """Axes (n_panels,) with axis labels of their own: the user's, or those of a new figure; text is visible on any page.

    Parameters
    ----------
    titles
        Title of every panel.
    size
        Width and height of a panel in inches, labels included.
    ncols
        Number of panels in a row at most; by default what makes a figure that is wider than high.
    ax
        The user's axes, one for each panel.

    Raises
    ------
    ValueError
        If the number of the user's axes is not the number of panels.
    """
    import matplotlib.pyplot as plt

    n = len(titles)
    if ax is not None:
        axes = np.ravel(np.array(ax, dtype=object))
        if len(axes) != n:
            msg = f"`ax` must hold {n} axes, one for every panel; found {len(axes)}."
            raise ValueError(msg)
        figure = cast("Figure", axes[0].get_figure(root=True))
    else:
        columns = min(n, ncols or max(1, min(round(np.sqrt(1.5 * n)), 4)))
        rows = -(-n // columns)
        figure = plt.figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
        grid = figure.add_gridspec(rows, columns)
        axes = np.array([figure.add_subplot(grid[i // columns, i % columns]) for i in range(n)], dtype=object)
    color = ink(figure)
    for panel, title in zip(axes, titles, strict=True):
        panel.set_facecolor("none")
        panel.set_title(title, loc="left", fontsize=FONT_SIZE, color=color)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(color)
        panel.tick_params(colors=color, labelsize=FONT_SIZE - 1)
        panel.xaxis.label.set(color=color, fontsize=FONT_SIZE)
        panel.yaxis.label.set(color=color, fontsize=FONT_SIZE)
    return figure, axes


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
    labels = [_shortened(str(handle.get_label()), NAME_LETTERS) for handle in handles]
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
    if loc == "bottom margin" or _size_in(figure, legend)[0] > _width_in(last) / 2:
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
        Line2D([], [], marker=markers.get(name, "o"), linestyle="none", color=color, markersize=6, label=_shortened(name, letters))
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
    letters = max(int(72 * (drawn - 0.4) / (FONT_SIZE * LETTER)), NAME_LETTERS)
    style["labels"] = [_shortened(str(handle.get_label()), letters) for handle in style["handles"]]
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
    return max(int(_width_in(ax) // max(one, 0.1)), 1)

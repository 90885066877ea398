"""Panels of a figure and their titles, and what a plotting function returns.

The figures are laid out in inches: panels have one size, and a legend makes the figure larger, not the panels smaller.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np

from stcontrast.pl._colors import ink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from stcontrast._reading import Slide

__all__ = [
    "EDGE",
    "FONT_SIZE",
    "LETTER",
    "PANEL_IN",
    "choose_slides",
    "finish",
    "given_titles",
    "letters_in",
    "make_panels",
    "one_panel",
    "plain_panels",
    "set_row_title",
    "shortened",
    "width_in",
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
FONT_SIZE: Final = 9
# what a share of empty places weighs against a figure of another shape
EMPTY: Final = 4.0
# a letter's width in sizes of the font, rather too wide than too narrow
LETTER: Final = 0.62
MAX_LINES: Final = 3


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
            ax.set_title(_wrapped(title, width_in(ax)), loc="left", fontsize=FONT_SIZE, color=ink(ax.figure))


def set_row_title(panels: Sequence[Axes] | NDArray[Any], title: str) -> None:
    """Write a title over a row of panels, as long as the row at most."""
    first, last = panels[0], panels[-1]
    figure = cast("Figure", first.get_figure(root=True))
    letters = letters_in((last.get_window_extent().x1 - first.get_window_extent().x0) / figure.dpi)
    text = title if len(title) <= letters else f"{title[: letters - 1]}…"
    first.set_title(text, loc="left", fontsize=FONT_SIZE, color=ink(figure))


def width_in(ax: Axes) -> float:
    """Width of a panel in inches."""
    figure = ax.get_figure(root=True)
    return float(ax.get_window_extent().width / cast("Figure", figure).dpi)


def letters_in(width_in: float, *, least: int = 8) -> int:
    """Letters that are as wide as so many inches."""
    return max(int(width_in * 72 / (FONT_SIZE * LETTER)), least)


def _wrapped(text: str, width_in: float) -> str:
    """Text in lines that fit; what does not fit in three lines is cut, its beginning and its end are kept."""
    return "\n".join(shortened(line, letters_in(width_in)) for line in text.split("\n"))


def shortened(text: str, letters: int) -> str:
    """Text in at most three lines of so many letters; its beginning and its end are kept."""
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

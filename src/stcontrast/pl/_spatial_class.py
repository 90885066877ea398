"""Predicted and annotated subtypes on the H&E."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stcontrast._keys import CLASS
from stcontrast._reading import resolve_slides
from stcontrast.pl._layout import choose_slides, finish, make_panels
from stcontrast.pl._slide import MISSING, draw_picture, draw_scale_bar, draw_spots, read_picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = ["class_colors", "spatial_class"]


def spatial_class(  # noqa: PLR0913
    data: SpatialData | AnnData,
    *,
    key: str = CLASS,
    label_key: str | None = None,
    table_key: str | None = None,
    slides: str | Sequence[str] | None = None,
    image_key: str | Mapping[str, str] | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    library_key: str | None = None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | NDArray[Any] | None:
    """Draw the predicted subtype of every spot on the H&E, and its annotation if there is one.

    A subtype has one colour in all panels: that of ``uns[f"{key}_colors"]``, else of ``uns[f"{label_key}_colors"]``,
    else of scanpy's default palette. Spots without a subtype are outlined in grey. The data are not changed.

    Parameters
    ----------
    data
        SpatialData whose table annotates the spots; or AnnData with scanpy's images in ``uns["spatial"]``.
    key
        Column of `obs` that holds the predicted subtype, as :func:`stcontrast.tl.classify` writes it.
    label_key
        Column of `obs` that holds the annotation, drawn to the left of the prediction; not drawn by default.
    table_key
        Table that holds the spots; the only one by default.
    slides
        Slide or slides to draw, in this order; all by default.
    image_key
        Image, or a mapping from slide to image; the finest RGB image under the spots by default.
    um_per_px
        µm per pixel of the image's finest level, for the scale bar: a number or a mapping from slide to number; by
        default ``uns["stcontrast"]["um_per_px"]`` of the table, else derived from the spots.
    library_key
        AnnData only: column of `obs` that names the slide of a spot.
    ax
        Axes to draw on: one for each slide, or with `label_key` two. A new figure by default.
    show
        Show the figure. The default is ``scanpy.settings.autoshow``, or not to show it if `ax` is given.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if `return_fig`; else `None` if it was shown; else the axes, an array (n_slides, 1), or with `label_key`
    (n_slides, 2).

    Raises
    ------
    KeyError
        If a column, a slide, a table or an image is absent; the message lists the existing ones.
    ValueError
        If `ax` holds too few or too many axes.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=1, n_spots=30)
    >>> sdata["table"].obs["stc_class"] = sdata["table"].obs["subtype_truth"]  # stc.tl.classify writes a real one
    >>> axes = stc.pl.spatial_class(sdata, label_key="subtype", show=False)
    >>> axes.shape
    (1, 2)
    """
    spots = resolve_slides(data, table_key=table_key, image_key=image_key, um_per_px=um_per_px, library_key=library_key)
    columns = {key: _column(spots.table, key, "Call `stc.tl.classify` first, or name another column with `key`.")}
    if label_key is not None:
        columns = {label_key: _column(spots.table, label_key, "Name the annotation with `label_key`."), **columns}
    chosen = choose_slides(spots.slides, slides)
    colors = class_colors(spots.table, [key] if label_key is None else [key, label_key])

    pictures = [read_picture(slide) for slide in chosen]
    figure, axes = make_panels([picture.aspect for picture in pictures], n_panels=len(columns), ax=ax)
    drawn: set[str | None] = set()
    for slide, picture, panels in zip(chosen, pictures, axes, strict=True):
        for panel, column in zip(panels, columns, strict=True):
            names = [columns[column][row] for row in slide.rows]
            draw_picture(panel, picture, title=_title(column, slide.name, key=key, label_key=label_key))
            known = np.array([name is not None for name in names], dtype=bool)
            draw_spots(panel, slide, known, facecolors=[colors[name] for name in names if name is not None])
            drawn.update(names)
        draw_scale_bar(panels[0], slide)
    missing = "no class" if label_key is None else "not annotated"
    entries = {name: color for name, color in colors.items() if name in drawn} | (
        {missing: None} if None in drawn else {}
    )
    _draw_legend(figure, axes, entries, own_figure=ax is None)
    return finish(figure, axes, show=show, return_fig=return_fig, own_figure=ax is None)


def _column(table: AnnData, name: str, hint: str) -> list[str | None]:
    if name not in table.obs:
        msg = f"No column {name!r} in `obs`. {hint} Its columns are {sorted(table.obs.columns)}."
        raise KeyError(msg)
    return [None if pd.isna(value) else str(value) for value in table.obs[name]]


def _title(column: str, slide: str, *, key: str, label_key: str | None) -> str:
    if label_key is None:
        return f"{slide}\n{key}"
    return f"{key}, predicted" if column == key else f"{slide}\n{label_key}, annotated"


def _draw_legend(figure: Figure, axes: NDArray[Any], entries: Mapping[str, str | None], *, own_figure: bool) -> None:
    style = {
        "handles": [_legend_spot(name, color) for name, color in entries.items()],
        "frameon": False,
        "fontsize": 9,
        "ncols": -(-len(entries) // 24),
    }
    if own_figure:
        figure.legend(loc="outside right center", **style)
    else:
        axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), **style)


def _legend_spot(name: str, color: str | None) -> Line2D:
    from matplotlib.lines import Line2D

    face, edge = ("none", MISSING) if color is None else (color, "none")
    return Line2D(
        [], [], marker="o", linestyle="none", markersize=7, markerfacecolor=face, markeredgecolor=edge, label=name
    )


def class_colors(table: AnnData, keys: Sequence[str]) -> dict[str, str]:
    """Colours of the categories of some columns of `obs`.

    Parameters
    ----------
    table
        Table with the columns, and optionally their colours in ``uns[f"{key}_colors"]``; it is not changed.
    keys
        The columns; if a category is in several, the colour of the first is used.

    Returns
    -------
    A colour for every category. Those without a stored colour get the next free ones of scanpy's palette.
    """
    from matplotlib.colors import to_hex
    from scanpy.plotting import palettes

    names: list[str] = []
    colors: dict[str, str] = {}
    for key in keys:
        categories = [str(name) for name in pd.Categorical(table.obs[key]).categories]
        names += [name for name in categories if name not in names]
        # colours of another number of categories are outdated: scanpy ignores them too
        stored = list(table.uns.get(f"{key}_colors", []))
        if len(stored) == len(categories):
            colors = {name: to_hex(color) for name, color in zip(categories, stored, strict=True)} | colors
    palette = next(
        (p for p in (palettes.default_20, palettes.default_28, palettes.default_102) if len(p) >= len(names)),
        palettes.default_102,
    )
    taken = set(colors.values())
    free = [color for color in map(to_hex, palette) if color not in taken] or [to_hex("0.5")]
    rest = [name for name in names if name not in colors]
    colors |= {name: free[i % len(free)] for i, name in enumerate(rest)}
    return {name: colors[name] for name in names}

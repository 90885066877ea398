"""`spatial_class`: draw predicted and annotated classes on the H&E."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast._arguments import FLAG, NAME, POSITIVE, SHARE, TEXT, Rule, checked, listed, one_of, whole
from stcontrast._keys import CLASS
from stcontrast._reading import Keys, as_list, obs_column, resolve_all, slide_outlines
from stcontrast._records import read_record
from stcontrast.pl._colors import CMAP, Limit, Palette, class_colors, class_names, color_scale, faded, is_limit
from stcontrast.pl._layout import choose_slides, finish, given_titles, make_panels, with_slide
from stcontrast.pl._legends import LEGEND_PLACES, ColorBar, add_color_bars, add_legend
from stcontrast.pl._slide import common_views, draw_picture, draw_scale_bar, draw_spots, read_picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import Sections, Slide

__all__ = ["spatial_class"]

NAMES: Final = listed(TEXT, what="the name of a class, or a list of names", alone=True)
LIMIT: Final = Rule("a number, or a percentile such as 'p99'", is_limit)
LEGEND_EDGE: Final = "#808080"
# what the legend shows of the confidence
SHOWN: Final = (1.0, 0.5)


@checked(
    key=NAME,
    confidence=Rule("True, False or the name of a column", lambda value: FLAG.holds(value) or isinstance(value, str)),
    groups=NAMES,
    size=POSITIVE,
    alpha=SHARE,
    img_alpha=SHARE,
    ncols=whole(1),
    legend_loc=one_of(*LEGEND_PLACES, None),
    vmin=LIMIT,
    vmax=LIMIT,
)
def spatial_class(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    *,
    key: str = CLASS,
    label_key: str | None = None,
    confidence: bool | str = True,
    groups: str | Sequence[str] | None = None,
    table_key: str | None = None,
    slides: str | Sequence[str] | None = None,
    image_key: str | Mapping[str, str] | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    library_key: str | None = None,
    palette: Palette | None = None,
    cmap: str | Colormap = CMAP,
    vmin: Limit = None,
    vmax: Limit = None,
    size: float = 1.0,
    alpha: float = 1.0,
    img_alpha: float = 0.5,
    title: str | Sequence[str] | None = None,
    legend_loc: str | None = "right margin",
    ncols: int | None = None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | NDArray[Any] | None:
    """Draw the predicted class of every spot on the H&E, and its annotation if there is one.

    All slides have the same scale in µm, and a class has the same colour in all panels. A prediction is paler the
    closer its confidence is to that of a guess. Spots without a class are outlined in grey. The data are not changed.

    Parameters
    ----------
    data
        SpatialData whose table annotates the spots; or AnnData with scanpy's images in ``uns["spatial"]``; or a list of
        these.
    key
        Column of `obs` that holds the predicted class, as :func:`stcontrast.tl.classify` writes it. Numbers that are
        not classes, such as ``"stc_class_confidence"``, are drawn on a colour scale.
    label_key
        Column of `obs` that holds the annotation, drawn to the left of the prediction; not drawn by default.
    confidence
        Draw spots with an uncertain class in paler colours. The confidence is in the column ``f"{key}_confidence"``,
        if it exists, or in the named column. `False` draws full colours.
    groups
        Class or classes to draw; the spots of the others are outlined. All by default.
    table_key
        Table that holds the spots; the only one by default.
    slides
        Slide or slides to draw, in this order; all by default.
    image_key
        Image, or a mapping from slide to image; the finest RGB image under the spots by default.
    um_per_px
        µm per pixel of the image's finest level: a number or a mapping from slide to number; by default
        ``uns["stcontrast"]["um_per_px"]`` of the table, else derived from the spots. If it is unknown, no scale bar is
        drawn.
    library_key
        AnnData only: column of `obs` that names the slide of a spot.
    palette
        Colours in the order of the classes, the name of a colour map, or a mapping from class to colour. By default
        those of ``uns[f"{key}_colors"]``, else of ``uns[f"{label_key}_colors"]``, else colours that can be
        distinguished on H&E and by colour-blind readers.
    cmap, vmin, vmax
        For numbers that are not classes: colour map and ends of the colour scale, as in
        :func:`~stcontrast.pl.spatial_pred`.
    size
        Width of the spots, relative to their true width.
    alpha
        Opacity of the spots.
    img_alpha
        Opacity of the H&E; 1 does not fade it, 0 hides it.
    title
        Title of every panel, or one for all; by default slide and what the panel shows.
    legend_loc
        ``"right margin"``, ``"bottom margin"``, ``"on data"``, or a place in the last panel as matplotlib names it;
        `None` or ``"none"`` for no legend. A legend that would take more than its share of the right margin is placed
        below.
    ncols
        Largest number of panels in a row. By default chosen so that the figure is wider than high.
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
        If a column, a class, a slide, a table or an image is absent. The message lists those that exist.
    ValueError
        If the annotation or the confidence has the wrong type, an argument is out of range, or `ax` or `title` has the
        wrong length.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", label_key="subtype", method="ridge")
    >>> stc.tl.classify(sdata, model)
    >>> axes = stc.pl.spatial_class(sdata, label_key="subtype", groups=["tumour", "fat"], show=False)
    >>> axes.shape
    (2, 2)
    """
    keys = Keys(table_key=table_key, image_key=image_key, um_per_px=um_per_px, slide_key=library_key)
    sources = resolve_all(as_list(data), keys)
    tables = [source.table for source in sources]
    columns = [key] if label_key is None else [label_key, key]
    _check_columns(tables, key, label_key)
    sure = _confidence_key(tables, key, confidence)
    drawn = choose_slides([(source, slide) for source in sources for slide in source.slides], slides)
    are_classes = all(class_names(table, key) is not None for table in tables)
    colors = class_colors(tables, [key, *columns[:-1]], palette) if are_classes or label_key else {}
    wanted = _wanted(groups, colors)
    titles = given_titles(title, n_slides=len(drawn), n_panels=len(columns)) or [
        with_slide(slide.name, [_title(source.table, column, key, label_key) for column in columns])
        for source, slide in drawn
    ]

    views = common_views([slide for _, slide in drawn])
    width, height = views[0][1] - views[0][0]
    numbers = None if are_classes else [obs_column(table, key).to_numpy(dtype=np.float64) for table in tables]
    bar = None if numbers is None else _color_bar(sources, drawn, numbers, cmap=cmap, key=key, vmin=vmin, vmax=vmax)
    figure, axes = make_panels(titles, block=len(columns), aspect=height / width, ncols=ncols, ax=ax)
    seen: set[str | None] = set()
    for (source, slide), view, panels in zip(drawn, views, axes, strict=True):
        picture = read_picture(slide, view)
        style: dict[str, Any] = {"outlines": slide_outlines(source, slide), "size": size, "alpha": alpha}
        for panel, column in zip(panels, columns, strict=True):
            draw_picture(panel, picture, img_alpha=img_alpha)
            if numbers is not None and bar is not None and column == key:
                values = numbers[sources.index(source)][slide.rows]
                known = np.isfinite(values)
                draw_spots(panel, slide, known, array=values[known], cmap=bar.cmap, norm=bar.norm, **style)
                continue
            names = _names(source.table, column, slide, wanted)
            known = np.array([name is not None for name in names], dtype=bool)
            pale = sure if column == key else None
            draw_spots(panel, slide, known, facecolors=_fills(source.table, slide, names, colors, pale), **style)
            seen.update(names)
            if legend_loc == "on data":
                _name_on_data(panel, slide, names)
        draw_scale_bar(panels[0], slide)
    if bar is not None:
        add_color_bars(figure, list(axes.ravel()), [bar], room=True, own=ax is None)
    handles = _handles(colors, seen, missing=_missing(groups, label_key), sure=sure is not None)
    add_legend(figure, axes, handles, loc=legend_loc, own=ax is None)
    return finish(figure, axes, show=show, return_fig=return_fig, own_figure=ax is None)


def _check_columns(tables: Sequence[AnnData], key: str, label_key: str | None) -> None:
    hints = {key: "Call `stc.tl.classify` first, or name another column with `key`."}
    if label_key is not None:
        hints[label_key] = "Name the annotation with `label_key`."
    for table in tables:
        for name, hint in hints.items():
            if name not in table.obs:
                msg = f"No column {name!r} in `obs`. {hint} Its columns are {sorted(table.obs.columns)}."
                raise KeyError(msg)
        if label_key is not None and class_names(table, label_key) is None:
            msg = (
                f"`label_key`: the column {label_key!r} holds numbers, not classes. Draw it alone: `key={label_key!r}`."
            )
            raise ValueError(msg)


def _confidence_key(tables: Sequence[AnnData], key: str, confidence: bool | str) -> str | None:  # noqa: FBT001
    """Column with the confidence of the classes; `None` to draw full colours."""
    if isinstance(confidence, str):
        absent = [table for table in tables if confidence not in table.obs]
        if absent:
            msg = f"`confidence`: no column {confidence!r} in `obs`; its columns are {sorted(absent[0].obs.columns)}."
            raise KeyError(msg)
        name = confidence
    else:
        name = f"{key}_confidence"
        if not confidence or any(name not in table.obs for table in tables):
            return None
    for table in tables:
        column = obs_column(table, name)
        values = column.dropna() if pd.api.types.is_numeric_dtype(column) else pd.Series([np.nan])
        if not values.between(0, 1).all():
            msg = f"`confidence`: the column {name!r} must hold probabilities, 0 to 1."
            raise ValueError(msg)
    return name


def _wanted(groups: str | Sequence[str] | None, colors: Mapping[str, str]) -> set[str]:
    """The classes to draw."""
    if groups is None:
        return set(colors)
    names = [groups] if isinstance(groups, str) else list(groups)
    absent = [name for name in names if name not in colors]
    if absent:
        msg = f"`groups` names no class: {absent}. The classes are {list(colors)}."
        raise KeyError(msg)
    return set(names)


def _names(table: AnnData, column: str, slide: Slide, wanted: set[str]) -> list[str | None]:
    found = class_names(table, column)
    codes = np.full(table.n_obs, -1) if found is None else found.codes
    categories = [] if found is None else list(found.categories)
    names = [categories[code] if code >= 0 else None for code in codes[slide.rows]]
    return [name if name in wanted else None for name in names]


def _fills(
    table: AnnData, slide: Slide, names: Sequence[str | None], colors: Mapping[str, str], sure: str | None
) -> NDArray[np.float64]:
    """Colours (n, 3) of the spots with a class."""
    known = [name for name in names if name is not None]
    confidence = np.ones(len(names)) if sure is None else obs_column(table, sure).to_numpy(dtype=float)[slide.rows]
    confidence = confidence[[name is not None for name in names]]
    fills = np.empty((len(known), 3))
    for name in set(known):
        rows = [i for i, other in enumerate(known) if other == name]
        fills[rows] = faded(colors[name], confidence[rows], chance=1 / max(len(colors), 2))
    return fills


def _title(table: AnnData, column: str, key: str, label_key: str | None) -> str:
    """What a panel shows, in words: no name of a slot that this package has made."""
    words = "class" if column == CLASS else column.replace("_", " ")
    if column == label_key:
        return f"{words}, annotated"
    stem = column.removesuffix("_confidence")
    if stem != column and stem in table.obs:
        return "Confidence of the predicted class"
    of_label = "class" if label_key is None else label_key.replace("_", " ")
    if column == CLASS or read_record(table, "classification", column) is not None:
        return f"Predicted {of_label}" if label_key is None else f"{of_label}, predicted"
    return words


def _color_bar(
    sources: Sequence[Sections],
    drawn: Sequence[tuple[Sections, Slide]],
    numbers: Sequence[NDArray[np.float64]],
    *,
    cmap: str | Colormap,
    key: str,
    vmin: Limit,
    vmax: Limit,
) -> ColorBar:
    shown = np.concatenate([numbers[sources.index(source)][slide.rows] for source, slide in drawn])
    norm, extend = color_scale(shown, vmin=vmin, vmax=vmax)
    return ColorBar(norm, cmap, "confidence" if key.endswith("_confidence") else key.replace("_", " "), extend)


def _missing(groups: str | Sequence[str] | None, label_key: str | None) -> str:
    return "other" if groups is not None else "no class" if label_key is None else "not annotated"


def _handles(colors: Mapping[str, str], seen: set[str | None], *, missing: str, sure: bool) -> list[Line2D]:
    handles = [_legend_spot(name, color) for name, color in colors.items() if name in seen]
    if None in seen:
        handles.append(_legend_spot(missing, None))
    if sure and handles:
        chance = 1 / max(len(colors), 2)
        for share in (*SHOWN, chance):
            color = tuple(faded("#444444", np.array([share]), chance=chance)[0])
            at_most = " or less" if share == chance else ""
            handles.append(_legend_spot(f"confidence {share:.0%}{at_most}".replace("%", " %"), color))
    return handles


def _legend_spot(name: str, color: Any) -> Line2D:
    from matplotlib.lines import Line2D

    # grey edges are visible on light and on dark pages
    return Line2D(
        [], [], marker="o", linestyle="none", markersize=7, markerfacecolor="none" if color is None else color,
        markeredgecolor=LEGEND_EDGE, markeredgewidth=1.0 if color is None else 0.4, label=name,
    )  # fmt: skip


def _name_on_data(ax: Axes, slide: Slide, names: Sequence[str | None]) -> None:
    """Write every class in the middle of its spots."""
    from matplotlib.patheffects import withStroke

    for name in dict.fromkeys(name for name in names if name is not None):
        x, y = np.median(slide.centers[[other == name for other in names]], axis=0)
        text = ax.text(x, y, name, ha="center", va="center", fontsize=9, fontweight="bold", color="black", clip_on=True)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])

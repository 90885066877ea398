"""`embedding`: draw the joint embedding of image and genes as a UMAP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast._arguments import NAME, POSITIVE, SEED, SHARE, TEXT, checked, listed, whole
from stcontrast._keys import CLASS, EMBEDDING
from stcontrast._reading import as_list, obsm_array, resolve_table
from stcontrast.pl._colors import CLASS_COLORS, CMAP, Palette, class_colors, class_names, color_scale, ink
from stcontrast.pl._layout import finish, given_titles, make_panels
from stcontrast.pl._legends import ColorBar, add_color_bars, legend_width, panel_legend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = ["embedding"]

SIDES: Final = {"image": "o", "gene": "^"}
SIDE: Final = "side"
UNKNOWN: Final = "#b0b0b0"
NAMES: Final = listed(TEXT, what="the name of a column, or a list of names", alone=True)


@checked(key=NAME, color=NAMES, n_neighbors=whole(2), seed=SEED, size=POSITIVE,
         alpha=SHARE, ncols=whole(1))  # fmt: skip
def embedding(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    *,
    key: str = EMBEDDING,
    color: str | Sequence[str] | None = None,
    table_key: str | None = None,
    n_neighbors: int = 15,
    seed: int = 0,
    palette: Palette | None = None,
    cmap: str | Colormap = CMAP,
    size: float = 1.0,
    alpha: float = 0.8,
    title: str | Sequence[str] | None = None,
    ncols: int | None = None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | NDArray[Any] | None:
    """Draw a UMAP of the joint embedding, with images as dots and genes as triangles.

    If the model aligned image and genes, the two points of a spot are close to each other. A donor that stands apart
    has kept its batch effect. The UMAP is computed by scanpy on cosine distances, over all spots of all objects, and
    is not stored.

    Parameters
    ----------
    data
        One object or a list of them, in which :func:`stcontrast.tl.embed` or :func:`stcontrast.tl.fit` has written the
        embedding.
    key
        Start of the names of its two slots, as `key_added` of :func:`stcontrast.tl.embed`.
    color
        Column or columns of `obs` to colour by, one panel for each. ``"side"`` distinguishes image and genes. By
        default the side, and the predicted class if there is one.
    table_key
        Table that holds the spots; the only one by default.
    n_neighbors
        Neighbours of a point in the UMAP.
    seed
        Seed of the UMAP.
    palette
        Colours of classes, as in :func:`~stcontrast.pl.spatial_class`.
    cmap
        Colour map of numbers.
    size
        Size of the points, relative to the default.
    alpha
        Opacity of the points.
    title
        Title of every panel, or one for all.
    ncols
        Largest number of panels in a row.
    ax
        Axes to draw on, one for every panel. A new figure by default.
    show
        Show the figure. The default is ``scanpy.settings.autoshow``, or not to show it if `ax` is given.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if `return_fig`; else `None` if it was shown; else the axes, an array (n_panels,).

    Raises
    ------
    KeyError
        If an object has no embedding or no such column. The message lists those that exist.
    ValueError
        If there are fewer than five points, the embeddings have different widths, or an argument is out of range.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", options={"max_epochs": 5})
    >>> axes = stc.pl.embedding(sdata, color=["side", "donor", "subtype"], show=False)
    >>> axes.shape
    (3,)
    """
    tables = [resolve_table(item, table_key=table_key) for item in as_list(data)]
    points, side, row = _points(tables, key)
    columns = _columns(tables, color)
    found = [_column(tables, name, side, row) for name in columns]
    titles = given_titles(title, n_slides=1, n_panels=len(columns)) or [[_title(name) for name in columns]]
    xy = _umap(points, n_neighbors=n_neighbors, seed=seed)

    colors = [_colors_of(tables, name, values, palette) for name, values in zip(columns, found, strict=True)]
    gutter = max([legend_width(names) for names in colors if names] + [0.85 if None in colors else 0.0])
    figure, axes = make_panels(titles, block=1, aspect=1.0, ncols=ncols, gutter=gutter, ax=ax)
    # the same order for all panels: no group hides another
    order = np.random.default_rng(seed).permutation(len(xy))
    area = size * float(np.clip(6000 / len(xy), 3.0, 30.0))
    for panel, name, values, of_names in zip(axes[0], columns, found, colors, strict=True):
        style = {"s": area, "alpha": alpha, "linewidths": 0}
        bar = None
        if of_names is None:
            norm, extend = color_scale(values.astype(np.float64))
            bar = ColorBar(norm, cmap, "", extend)
        for kind, marker in SIDES.items():
            rows = order[side[order] == kind]
            if bar is not None:
                fill: dict[str, Any] = {"c": values[rows].astype(np.float64), "cmap": bar.cmap, "norm": bar.norm}
            else:
                fill = {"c": [(of_names or {}).get(value, UNKNOWN) for value in values[rows]]}
            if len(rows):
                panel.scatter(*xy[rows].T, marker=marker, label=kind, **fill, **style)
        _frame(panel, kinds=set(side.tolist()))
        if bar is not None:
            add_color_bars(figure, [panel], [bar], room=False, own=ax is None)
        else:
            shown = {item: fill for item, fill in (of_names or {}).items() if item in set(values)}
            missing = {"unknown": UNKNOWN} if any(value is None for value in values) else {}
            panel_legend(panel, shown | missing, markers=SIDES if name == SIDE else {})
    return finish(figure, axes[0], show=show, return_fig=return_fig, own_figure=ax is None)


def _points(tables: Sequence[AnnData], key: str) -> tuple[NDArray[np.float32], NDArray[np.str_], NDArray[np.intp]]:
    """All points (n, d), the side of each, and its row in the tables one after another; NaN is left out."""
    points, side, row, start = [], [], [], 0
    for table in tables:
        there = [kind for kind in SIDES if f"{key}_{kind}" in table.obsm]
        if not there:
            msg = (
                f"No joint embedding in `obsm[{f'{key}_image'!r}]`; its slots are {sorted(table.obsm)}. Call "
                "`stc.tl.embed(data, model)` first, or give `key`."
            )
            raise KeyError(msg)
        for kind in there:
            values = np.asarray(obsm_array(table, f"{key}_{kind}"), dtype=np.float32)
            known = np.flatnonzero(np.isfinite(values).all(axis=1))
            points.append(values[known])
            side += [kind] * len(known)
            row.append(known + start)
        start += table.n_obs
    widths = {values.shape[1] for values in points}
    if len(widths) > 1:
        msg = f"The embeddings have different widths, {sorted(widths)}: they come from different models."
        raise ValueError(msg)
    found = np.concatenate(points)
    if len(found) < 5:
        msg = f"A UMAP needs at least 5 points with an embedding, found {len(found)}."
        raise ValueError(msg)
    return found, np.array(side), np.concatenate(row)


def _columns(tables: Sequence[AnnData], color: str | Sequence[str] | None) -> list[str]:
    if color is None:
        return [SIDE, CLASS] if all(CLASS in table.obs for table in tables) else [SIDE]
    names = [color] if isinstance(color, str) else list(dict.fromkeys(color))
    for name in names:
        for table in tables:
            if name != SIDE and name not in table.obs:
                msg = (
                    f"`color`: no column {name!r} in `obs`; its columns are {sorted(table.obs.columns)}, and {SIDE!r}."
                )
                raise KeyError(msg)
    return names


def _column(tables: Sequence[AnnData], name: str, side: NDArray[np.str_], row: NDArray[np.intp]) -> NDArray[Any]:
    """Class or number of every point; `None` where a class is missing."""
    if name == SIDE:
        return side.astype(object)
    classes = [class_names(table, name) for table in tables]
    parts = [
        np.asarray(table.obs[name], dtype=np.float64)
        if found is None
        else np.array([None if pd.isna(value) else value for value in found], dtype=object)
        for table, found in zip(tables, classes, strict=True)
    ]
    return np.concatenate(parts)[row]


def _colors_of(
    tables: Sequence[AnnData], name: str, values: NDArray[Any], palette: Palette | None
) -> dict[str, str] | None:
    """A colour for every class; `None` for numbers."""
    if name == SIDE:
        return {kind: CLASS_COLORS[i] for i, kind in enumerate(SIDES) if kind in values}
    return class_colors(tables, [name], palette) if values.dtype == object else None


def _umap(points: NDArray[np.float32], *, n_neighbors: int, seed: int) -> NDArray[np.float64]:
    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(obsm={"X": points})
    sc.pp.neighbors(
        adata, use_rep="X", metric="cosine", n_neighbors=min(n_neighbors, len(points) - 1), random_state=seed
    )
    sc.tl.umap(adata, random_state=seed)
    return np.asarray(adata.obsm["X_umap"], dtype=np.float64)


def _title(name: str) -> str:
    if name == SIDE:
        return "Image and genes"
    if name == f"{CLASS}_confidence":
        return "Confidence of the predicted class"
    return "Predicted class" if name == CLASS else name.replace("_", " ")


def _frame(ax: Axes, *, kinds: set[str]) -> None:
    color = ink(ax.figure)  # type: ignore[arg-type]
    ax.set(xticks=[], yticks=[], facecolor="none")
    drawn = "\ndots: image, triangles: genes" if len(kinds) > 1 else ""
    ax.set_xlabel(f"UMAP 1 →, UMAP 2 ↑{drawn}", fontsize=8, color=color, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(color)

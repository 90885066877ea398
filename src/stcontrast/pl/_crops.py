"""`crops`: draw a sheet of H&E crops, by class or by the value of a gene."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import pandas as pd

from stcontrast._arguments import NAME, POSITIVE, SEED, Rule, checked, one_of, whole
from stcontrast._keys import CLASS, PREDICTION_TABLE
from stcontrast._predictions import PREDICTED, measured_expression, read_values
from stcontrast._reading import Keys, as_list, obs_column, require_images, resolve_all, resolve_table
from stcontrast.pl._colors import CMAP, Palette, class_colors, class_names
from stcontrast.pl._layout import finish, given_titles, make_panels, set_row_title
from stcontrast.pl._slide import draw_bar
from stcontrast.pp._crops import iter_crops

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import Sections, Slide

__all__ = ["crops", "cut", "draw_crop"]

# a page of crops, not a wall
MAX_CROPS: Final = 20
SIDE_IN: Final = 1.25
DECILES: Final = 10
CROP_PX: Final = 160


def _names_group(value: Any) -> bool:
    return isinstance(value, str | int | np.integer) and not isinstance(value, bool)


GROUPS: Final = Rule(
    "the name of a class or the number of a bin, or a list of them",
    lambda value: _names_group(value) or (np.ndim(value) == 1 and len(value) > 0 and all(map(_names_group, value))),
)


class _Group(NamedTuple):
    """A row of the sheet: its name, its colour, and its spots as object, slide and position."""

    name: str
    color: Any
    spots: pd.DataFrame


@checked(
    color=NAME, n=whole(1, MAX_CROPS), n_bins=whole(2, 20), groups=GROUPS, field_um=POSITIVE, seed=SEED,
    values=one_of("predicted", "measured"), prediction_key=NAME,
)  # fmt: skip
def crops(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    color: str = CLASS,
    *,
    n: int = 8,
    n_bins: int = DECILES,
    groups: str | int | Sequence[str] | Sequence[int] | None = None,
    values: Literal["predicted", "measured"] = "predicted",
    field_um: float = 200.0,
    palette: Palette | None = None,
    cmap: str | Colormap = CMAP,
    seed: int = 0,
    prediction_key: str = PREDICTION_TABLE,
    layer: str | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_key: str | None = None,
    title: str | Sequence[str] | None = None,
    ax: Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | NDArray[Any] | None:
    """Draw a sheet of H&E crops: one row for each class, or for each decile of a gene or another number.

    The crops of a row are drawn at random from all slides. All crops have the same scale.

    Parameters
    ----------
    data
        One object or a list of them.
    color
        Column of `obs`, of the table or of the prediction (classes, a confidence, a score of
        :func:`stcontrast.tl.score_genes`); or a gene. By default the predicted class.
    n
        Number of crops in a row, at most 20.
    n_bins
        Number of rows for a gene or another number, each with the same number of spots; deciles by default. Equal
        values stay together, so there may be fewer rows.
    groups
        Class or classes to draw, in this order. For numbers, the bins, where 1 is the lowest: ``[1, 10]`` compares the
        ends.
    values
        Whether to use the predicted or the measured values of a gene.
    field_um
        Side of a crop in µm.
    palette
        Colours of the frames of classes, as in :func:`~stcontrast.pl.spatial_class`.
    cmap
        Colours of the frames of bins.
    seed
        Seed of the draw.
    prediction_key
        Table of predictions of a SpatialData.
    layer
        Layer with the counts, for a measured gene.
    um_per_px, table_key, image_key, library_key
        As in :func:`stcontrast.pp.crops`.
    title
        Title of every row, or one for all; by default its name and its number of spots.
    ax
        Axes to draw on, `n` for every row. A new figure by default.
    show
        Show the figure. The default is ``scanpy.settings.autoshow``, or not to show it if `ax` is given.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if `return_fig`; else `None` if it was shown; else the axes, an array (n_rows, n).

    Raises
    ------
    KeyError
        If there is no such column, gene, class, bin or prediction. The message lists those that exist.
    ValueError
        If a slide has no image or its µm per pixel are unknown, no spot has a value, or an argument is out of range.

    See Also
    --------
    stcontrast.pp.crops : the crops as an array.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> axes = stc.pl.crops(sdata, "subtype", n=5, show=False)
    >>> axes.shape
    (4, 5)
    >>> axes = stc.pl.crops(sdata, "GENE1", values="measured", n_bins=3, n=5, show=False)
    >>> axes.shape
    (3, 5)
    """
    keys = Keys(table_key=table_key, layer=layer, image_key=image_key, um_per_px=um_per_px, slide_key=library_key)
    objects = as_list(data)
    of_each = [_keys_of(item, color, keys, prediction_key) for item in objects]
    known: list[pd.Categorical | NDArray[np.float64]]
    if None not in of_each:
        sources = resolve_all(objects, [own for own in of_each if own is not None])
        known = _of_columns(sources, color)
    elif values == "measured":
        sources = resolve_all(objects, keys)
        known = [_measured(source.table, color, layer) for source in sources]
    else:
        found = read_values(objects, [color], [PREDICTED], keys, prediction_key=prediction_key)
        sources, known = [item.source for item in found], [item.of[color, PREDICTED] for item in found]
    for source in sources:
        require_images(source, [field_um])
    rows = _groups(sources, known, color=color, n_bins=n_bins, groups=groups, palette=palette, cmap=cmap)
    titles = given_titles(title, n_slides=len(rows), n_panels=1) or [[row.name] for row in rows]

    figure, axes = make_panels([[""] * n] * len(rows), block=n, aspect=1.0, ncols=n, side=SIDE_IN, ax=ax)
    for panels, row, [words] in zip(axes, rows, titles, strict=True):
        drawn = list(_cut(sources, _chosen(row.spots, n, seed), field_um))
        for i, panel in enumerate(panels):
            draw_crop(panel, drawn[i] if i < len(drawn) else None, frame=row.color if i < len(drawn) else None)
        set_row_title(panels, words)
    draw_bar(axes[-1, 0], field_um / CROP_PX)
    return finish(figure, axes, show=show, return_fig=return_fig, own_figure=ax is None)


def _keys_of(data: SpatialData | AnnData, color: str, keys: Keys, prediction_key: str) -> Keys | None:
    """Where the column is: in the table of the spots, or in that of the prediction; `None` where it is no column."""
    if color in resolve_table(data, table_key=keys.table_key).obs:
        return keys
    tables = getattr(data, "tables", {})
    if prediction_key in tables and color in tables[prediction_key].obs:
        return replace(keys, table_key=prediction_key)
    if color == CLASS:
        msg = f"No column {color!r} in `obs`. Call `stc.tl.classify` first, or name another column or a gene with `color`."
        raise KeyError(msg)
    return None


def _of_columns(sources: Sequence[Sections], color: str) -> list[pd.Categorical | NDArray[np.float64]]:
    classes = [class_names(source.table, color) for source in sources]
    found: list[pd.Categorical | NDArray[np.float64]] = [of_table for of_table in classes if of_table is not None]
    if len(found) == len(sources):
        return found
    columns = [obs_column(source.table, color) for source in sources]
    if not all(pd.api.types.is_numeric_dtype(column) for column in columns):
        msg = f"`color`: the column {color!r} holds classes in one object and numbers in another."
        raise ValueError(msg)
    return [column.to_numpy(dtype=np.float64) for column in columns]


def _measured(table: AnnData, gene: str, layer: str | None) -> NDArray[np.float64]:
    found = measured_expression(table, [gene], layer)
    if not found:
        msg = (
            f"`color`: {gene!r} is neither a column of `obs` ({sorted(table.obs.columns)}) nor one of the {table.n_vars} "
            "measured genes."
        )
        raise KeyError(msg)
    return found[gene]


def _groups(
    sources: Sequence[Sections],
    known: Sequence[pd.Categorical | NDArray[np.float64]],
    *,
    color: str,
    n_bins: int,
    groups: Any,
    palette: Palette | None,
    cmap: str | Colormap,
) -> list[_Group]:
    """The rows of the sheet, those without a spot left out unless they are asked for."""
    spots = pd.DataFrame(
        [
            (i, j, position, row)
            for i, source in enumerate(sources)
            for j, slide in enumerate(source.slides)
            for position, row in enumerate(slide.rows.tolist())
        ],
        columns=["object", "slide", "position", "row"],
    )
    starts = np.concatenate([[0], np.cumsum([len(of_table) for of_table in known])])
    at = starts[spots["object"]] + spots["row"]
    if all(isinstance(of_table, pd.Categorical) for of_table in known):
        named = np.concatenate([np.asarray(of_table, dtype=object) for of_table in known])[at]
        colors: dict[Any, Any] = dict(class_colors([source.table for source in sources], [color], palette))
        names = {name: name for name in colors}
    else:
        numbers = np.concatenate([np.asarray(of_table, dtype=np.float64) for of_table in known])[at]
        named, names = _bins(numbers, n_bins, color)
        colors = dict(zip(names, _shades(len(names), cmap), strict=True))
    seen = set(pd.unique(named[~pd.isna(named)]))
    wanted = (
        [name for name in names if name in seen] if groups is None else list(np.atleast_1d(np.array(groups, object)))
    )
    absent = [name for name in wanted if name not in seen]
    if absent or not wanted:
        there = [name for name in names if name in seen]
        msg = (
            f"`groups`: no spot is in {absent}; there are {there}." if absent else f"No spot has a value of {color!r}."
        )
        raise KeyError(msg) if absent else ValueError(msg)
    rows = []
    for name in wanted:
        here = spots[named == name]
        n_slides = len(here[["object", "slide"]].drop_duplicates())
        told = f"{len(here)} spot{'s' * (len(here) > 1)} of {n_slides} slide{'s' * (n_slides > 1)}"
        rows.append(_Group(f"{names[name]} ({told})", colors[name], here))
    return rows


def _bins(numbers: NDArray[np.float64], n_bins: int, color: str) -> tuple[NDArray[Any], dict[int, str]]:
    """Bin of every spot, counted from 1, and what the bins are called."""
    known = np.isfinite(numbers)
    # spots of one value share the rank of the first: with many zeros the others are still told apart
    rank = pd.Series(numbers[known]).rank(method="min").to_numpy() - 1
    parts, bins = np.unique((rank * n_bins / max(len(rank), 1)).astype(int), return_inverse=True)
    codes = np.zeros(len(numbers), dtype=int)
    codes[known] = bins + 1
    n = len(parts)
    kind = "decile {}" if n == n_bins == DECILES else f"part {{}} of {n}"
    names = {
        i: f"{color.replace('_', ' ')}, {kind.format(i)}: {numbers[codes == i].min():.3g} to {numbers[codes == i].max():.3g}"
        for i in range(1, n + 1)
    }
    return np.array([int(code) or None for code in codes], dtype=object), names


def _shades(n: int, cmap: str | Colormap) -> list[Any]:
    import matplotlib as mpl

    colors = mpl.colormaps[cmap] if isinstance(cmap, str) else cmap
    return [colors(place) for place in np.linspace(0.3, 1, n)]


def _chosen(spots: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """At most n of the spots, at random, in turn of every slide; slides in order."""
    shuffled = spots.sample(frac=1, random_state=seed)
    turn = shuffled.groupby(["object", "slide"]).cumcount()
    taken = shuffled.iloc[np.argsort(turn.to_numpy(), kind="stable")[:n]]
    return taken.sort_values(["object", "slide"], kind="stable")


def _cut(sources: Sequence[Sections], spots: pd.DataFrame, field_um: float) -> Iterator[NDArray[np.uint8]]:
    for _, here in spots.groupby(["object", "slide"], sort=False):
        slide = sources[here["object"].iloc[0]].slides[here["slide"].iloc[0]]
        yield from cut(slide, here["position"].tolist(), field_um)


def cut(slide: Slide, positions: Sequence[int], field_um: float) -> list[NDArray[np.uint8]]:
    """Crops of some spots of a slide that has an image and a scale, by position among its spots."""
    if slide.image is None or slide.um_per_px is None:  # `require_images` has refused these
        msg = f"Slide {slide.name!r} has no image."
        raise ValueError(msg)
    side = field_um / slide.um_per_px
    found = dict(iter_crops(slide.image, slide.centers[list(positions)], side=side, size_px=CROP_PX))
    return [found[i] for i in range(len(positions))]


def draw_crop(ax: Axes, crop: NDArray[np.uint8] | None, *, frame: Any = None) -> None:
    """Show a crop, in a frame of a colour; `None` leaves the panel empty."""
    if crop is not None:
        ax.imshow(crop, interpolation="antialiased")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(frame is not None)
    if frame is not None:
        ax.spines[:].set(color=frame, linewidth=2.0)
    ax.set_facecolor("none")

"""`similar`: draw the crop of a spot next to those of the most similar measured spots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from stcontrast._arguments import POSITIVE, Rule, checked, whole
from stcontrast._reading import Keys, as_list, obs_column, require_images, resolve_all
from stcontrast.pl._crops import cut, draw_crop
from stcontrast.pl._layout import finish, given_titles, make_panels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import Sections, Slide

__all__ = ["similar"]

COLUMNS: Final = ("query", "query_slide", "match", "slide", "donor", "similarity", "rank")
# of the query
FRAME: Final = "#d55e00"
MAX_QUERIES: Final = 20

type Spot = tuple[str, str]


@checked(
    found=Rule("a table", lambda value: isinstance(value, pd.DataFrame)), n=whole(1), field_um=POSITIVE,
    max_queries=whole(1, MAX_QUERIES),
)  # fmt: skip
def similar(  # noqa: PLR0913
    found: pd.DataFrame,
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    training: SpatialData | AnnData | Sequence[SpatialData | AnnData] | None = None,
    *,
    n: int = 5,
    max_queries: int = 5,
    field_um: float = 200.0,
    label_key: str | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_key: str | None = None,
    title: str | Sequence[str] | None = None,
    ax: Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | NDArray[Any] | None:
    """Draw the H&E of spots, each next to the most similar measured spots.

    Each row is a query. Its matches follow in order of similarity, with similarity, donor and class. All crops have
    the same scale.

    Parameters
    ----------
    found
        Result of :func:`stcontrast.tl.find_similar`.
    data
        The object or objects with the queries.
    training
        The object or objects with the matches, the model's training slides; `data` by default.
    n
        Largest number of matches to draw for each query.
    max_queries
        Number of queries to draw, from the top of the table; at most 20.
    field_um
        Side of a crop in µm.
    label_key
        Column of `obs` of the training slides with their class.
    um_per_px, table_key, image_key, library_key
        As in :func:`stcontrast.pp.crops`; mappings may name slides of both.
    title
        Title of every panel, or one for all.
    ax
        Axes to draw on: one for each query, and one for each of its matches. A new figure by default.
    show
        Show the figure. The default is ``scanpy.settings.autoshow``, or not to show it if `ax` is given.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if `return_fig`; else `None` if it was shown; else the axes, an array (n_queries, 1 + n_matches).

    Raises
    ------
    KeyError
        If no object has a spot of the table, or a column is absent.
    ValueError
        If the table has no rows, a slide has no image or its µm per pixel are unknown, or an argument is out of range.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", options={"max_epochs": 5})
    >>> new = stc.datasets.toy(n_donors=1, n_spots=40, n_genes=30, seed=1)
    >>> found = stc.tl.find_similar(new, model, spots=["donor1_a_3", "donor1_a_7"], k=4)
    >>> axes = stc.pl.similar(found, new, sdata, label_key="subtype", show=False)
    >>> axes.shape
    (2, 5)
    """
    _check_table(found)
    queries = found[["query", "query_slide"]].drop_duplicates().head(max_queries)
    chosen = [
        found[(found["query"] == name) & (found["query_slide"] == slide)].nsmallest(n, "rank")
        for name, slide in queries.itertuples(index=False)
    ]
    most = max(len(matches) for matches in chosen)
    mine = as_list(data)
    others = mine if training is None else as_list(training)
    objects = [*mine, *(item for item in others if all(item is not one for one in mine))]
    keys = Keys(table_key=table_key, image_key=image_key, um_per_px=um_per_px, slide_key=library_key)
    sections = resolve_all(objects, keys)
    asked = [item for item, one in zip(sections, objects, strict=True) if any(one is other for other in mine)]
    known = [item for item, one in zip(sections, objects, strict=True) if any(one is other for other in others)]
    wanted = [(slide, name) for name, slide in queries.itertuples(index=False)]
    at_query = _places(asked, wanted, "`data`")
    at_match = _places(known, [spot for matches in chosen for spot in _spots(matches)], "`training`")
    for source in {id(place[0]): place[0] for place in [*at_query.values(), *at_match.values()]}.values():
        require_images(source, [field_um])
    classes = {spot: _class_of(source, slide, i, label_key) for spot, (source, slide, i) in at_match.items()}
    titles = given_titles(title, n_slides=len(wanted), n_panels=1 + most) or [
        [f"{name}\n{slide}", *(_title(row, classes) for row in matches.itertuples(index=False))]
        + [""] * (most - len(matches))
        for (slide, name), matches in zip(wanted, chosen, strict=True)
    ]

    figure, axes = make_panels(titles, block=1 + most, aspect=1.0, ncols=1 + most, ax=ax)
    for panels, spot, matches in zip(axes, wanted, chosen, strict=True):
        places = [at_query[spot], *(at_match[one] for one in _spots(matches))]
        crops = [cut(slide, [i], field_um)[0] for _, slide, i in places]
        for i, panel in enumerate(panels):
            draw_crop(panel, crops[i] if i < len(crops) else None, frame=FRAME if i == 0 else None)
    return finish(figure, axes, show=show, return_fig=return_fig, own_figure=ax is None)


def _check_table(found: pd.DataFrame) -> None:
    absent = [name for name in COLUMNS if name not in found]
    if absent:
        msg = f"`found` lacks the columns {absent}: give the table that `stc.tl.find_similar` returned."
        raise KeyError(msg)
    if found.empty:
        msg = "`found` has no rows."
        raise ValueError(msg)


def _spots(matches: pd.DataFrame) -> list[Spot]:
    return list(zip(matches["slide"], matches["match"], strict=True))


def _places(
    sections: Sequence[Sections], spots: Sequence[Spot], argument: str
) -> dict[Spot, tuple[Sections, Slide, int]]:
    """Where every spot lies: its object, its slide, and its position among the spots of the slide."""
    there: dict[Spot, tuple[Sections, Slide, int]] = {}
    of_slide = {(source, slide.name): slide for source in range(len(sections)) for slide in sections[source].slides}
    for (source, name), slide in of_slide.items():
        wanted = {spot for of, spot in spots if of == name}
        names = sections[source].table.obs_names[slide.rows]
        there |= {(name, spot): (sections[source], slide, i) for i, spot in enumerate(names) if spot in wanted}
    absent = [spot for spot in dict.fromkeys(spots) if spot not in there]
    if absent:
        slides = [name for _, name in of_slide]
        msg = f"{argument} lacks {len(absent)} spots of the table, e.g. {absent[0][1]!r} of slide {absent[0][0]!r}; its slides are {slides}."
        raise KeyError(msg)
    return there


def _class_of(source: Sections, slide: Slide, position: int, label_key: str | None) -> str | None:
    if label_key is None:
        return None
    if label_key not in source.table.obs:
        msg = f"`label_key`: no column {label_key!r} in `obs`; its columns are {sorted(source.table.obs.columns)}."
        raise KeyError(msg)
    value = obs_column(source.table, label_key).iloc[slide.rows[position]]
    return "no class" if pd.isna(value) else str(value)


def _title(row: Any, classes: Mapping[Spot, str | None]) -> str:
    donor = str(row.donor)
    words = [donor if donor.lower().startswith("donor") else f"donor {donor}", classes[row.slide, row.match]]
    return f"{row.rank}. similarity {row.similarity:.2f}\n" + ", ".join(word for word in words if word is not None)

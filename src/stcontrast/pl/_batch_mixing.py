"""`batch_mixing`: draw how batches mix in embeddings, compared with the image features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast._arguments import NAME, SEED, TEXT, checked, listed, whole
from stcontrast._keys import GENE_EMBEDDING, IMAGE_EMBEDDING, IMAGE_FEATURES, TUNED_FEATURES, VAE_LATENT
from stcontrast._reading import as_list, names_of, obs_column, obsm_array, resolve_table, slide_of_row
from stcontrast.metrics import batch_mixing as mixing_of
from stcontrast.pl._colors import COLORS, ink
from stcontrast.pl._layout import finish, given_titles, plain_panels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = ["batch_mixing"]

NAMES: Final = listed(TEXT, what="the name of a slot of `obsm`, or a list of names", alone=True)
# in this order where the user names none
SLOTS: Final = {
    IMAGE_FEATURES: "image features",
    TUNED_FEATURES: "fine-tuned features",
    VAE_LATENT: "gene latent",
    GENE_EMBEDDING: "joint embedding, genes",
    IMAGE_EMBEDDING: "joint embedding, image",
}
# column of the metric, its expectation, title, axis
PANELS: Final = (
    ("same_batch_fraction", "expected", "Mixing of {}s", "share of the nearest spots\nfrom the same {}"),
    ("label_agreement", "label_expected", "Agreement with other {}s", "share of the nearest spots of other\n{}s with the same class"),
)  # fmt: skip
SPREAD: Final = 0.5
MAX_LEGEND: Final = 10
N_NEIGHBORS: Final = 90
# neighbours of more spots take minutes in wide features, and change no digit that is drawn
MAX_SPOTS: Final = 10_000


@checked(keys=NAMES, batch_key=NAME, label_key=NAME, n_neighbors=whole(1), seed=SEED)
def batch_mixing(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    *,
    keys: str | Sequence[str] | None = None,
    batch_key: str | None = None,
    label_key: str | None = None,
    n_neighbors: int | None = None,
    table_key: str | None = None,
    library_key: str | None = None,
    seed: int = 0,
    title: str | Sequence[str] | None = None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | NDArray[Any] | None:
    """Draw how donors, or slides, mix in embeddings, compared with the image features.

    Each row is an embedding, and each dot a donor. Its value is the share of nearest spots from the same donor
    (:func:`stcontrast.metrics.batch_mixing`). The open circle is the expected share if donors mix perfectly. Mixing
    alone is no success, because noise mixes perfectly. With `label_key`, a second panel shows how often the nearest
    spots of *other* donors have the same class.

    Parameters
    ----------
    data
        One object or a list of them.
    keys
        Slot or slots of `obsm`, drawn in this order; by default the image features and all embeddings that stcontrast
        wrote.
    batch_key
        Column of `obs` with the donor; the slide by default.
    label_key
        Column of `obs` with the class, for a second panel.
    n_neighbors
        Number of nearest spots; by default 90, or half of the spots of the smallest donor if this is less. With all
        spots as neighbours, any embedding looks mixed.
    table_key
        Table that holds the spots; the only one by default.
    library_key
        AnnData only: column of `obs` that names the slide of a spot.
    seed
        Random seed. If there are more than 10 000 spots, 10 000 are drawn at random.
    title
        Title of every panel, or one for all.
    ax
        Axes to draw on: one, or with `label_key` two. A new figure by default.
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
        If a slot or a column is absent. The message lists those that exist.
    ValueError
        If there are fewer than two donors, or the width of a slot differs between objects.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", options={"max_epochs": 5})
    >>> axes = stc.pl.batch_mixing(sdata, batch_key="donor", label_key="subtype", show=False)
    >>> [label.get_text() for label in axes[0].get_yticklabels()]
    ['image features', 'joint embedding, genes', 'joint embedding, image']
    """
    tables = [resolve_table(item, table_key=table_key) for item in as_list(data)]
    slots = _slots(tables, keys)
    batch = np.concatenate([_batches(table, batch_key, library_key) for table in tables])
    label = None if label_key is None else np.concatenate([_column(table, "label_key", label_key) for table in tables])
    drawn = _drawn(len(batch), seed)
    if n_neighbors is None:
        counts = pd.Series(batch[drawn]).value_counts()
        n_neighbors = int(np.clip(counts.min() // 2, 1, N_NEIGHBORS)) if len(counts) else N_NEIGHBORS
    found = {
        slot: mixing_of(
            _points(tables, slot)[drawn], batch[drawn], label=None if label is None else label[drawn],
            n_neighbors=n_neighbors,
        )
        for slot in slots
    }  # fmt: skip
    of = "slide" if batch_key is None else batch_key.replace("_", " ")
    panels = PANELS[: 1 if label is None else 2]
    titles = given_titles(title, n_slides=1, n_panels=len(panels)) or [[name.format(of) for *_, name, _ in panels]]
    height = 1.1 + 0.45 * max(len(slots), 3)
    width = 3.0 + 2.6 / len(panels)
    figure, axes = plain_panels(titles[0], size=(width, height), ncols=len(panels), ax=ax)
    for i, (panel, (column, expected, _, words)) in enumerate(zip(axes, panels, strict=True)):
        _draw(panel, {slot: table[column] for slot, table in found.items()}, next(iter(found.values()))[expected])
        panel.set_xlabel(words.format(of))
        panel.set_yticks(np.arange(len(slots)), [SLOTS.get(slot, slot) for slot in slots] if i == 0 else [])
    handles, labels = axes[-1].get_legend_handles_labels()
    n_batches = len(handles) - 1
    if n_batches > MAX_LEGEND:
        handles, labels = handles[-2:], [f"{n_batches} {of}s", labels[-1]]
    place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)} if ax is None else {"loc": "best"}
    axes[-1].legend(handles, labels, frameon=False, fontsize=8, labelcolor=ink(figure), **place)
    return finish(figure, axes, show=show, return_fig=return_fig, own_figure=ax is None)


def _slots(tables: Sequence[AnnData], keys: str | Sequence[str] | None) -> list[str]:
    there = [set(table.obsm) for table in tables]
    if keys is None:
        found = [slot for slot in SLOTS if all(slot in of_table for of_table in there)]
        if not found:
            msg = (
                f"No image features and no embedding in `obsm`; its slots are {sorted(there[0])}. Call `stc.tl.embed`, or name "
                "slots with `keys`."
            )
            raise KeyError(msg)
        return found
    wanted = [keys] if isinstance(keys, str) else list(dict.fromkeys(keys))
    for of_table in there:
        absent = [slot for slot in wanted if slot not in of_table]
        if absent:
            msg = f"`keys`: no slots {absent} in `obsm`; its slots are {sorted(of_table)}."
            raise KeyError(msg)
    return wanted


def _batches(table: AnnData, batch_key: str | None, library_key: str | None) -> NDArray[Any]:
    if batch_key is None:
        return slide_of_row(table, library_key=library_key).astype(object)
    return _column(table, "batch_key", batch_key)


def _column(table: AnnData, argument: str, key: str) -> NDArray[Any]:
    """Names (n_spots,); `None` where there is none."""
    if key not in table.obs:
        msg = f"`{argument}`: no column {key!r} in `obs`; its columns are {sorted(table.obs.columns)}."
        raise KeyError(msg)
    column = obs_column(table, key)
    names = names_of(column).astype(object)
    names[column.isna().to_numpy()] = None
    return names


def _points(tables: Sequence[AnnData], slot: str) -> NDArray[np.float32]:
    parts = [np.asarray(obsm_array(table, slot), dtype=np.float32) for table in tables]
    widths = {part.shape[1:] for part in parts}
    if len(widths) > 1:
        found = sorted(width[0] for width in widths)
        msg = f"`obsm[{slot!r}]` has different widths, {found}: it was made in different ways."
        raise ValueError(msg)
    return np.concatenate(parts)


def _drawn(n: int, seed: int) -> NDArray[np.intp]:
    if n <= MAX_SPOTS:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, MAX_SPOTS, replace=False))


def _draw(panel: Axes, values: dict[str, pd.Series[float]], expected: pd.Series[float]) -> None:
    """A row for every slot, a dot for every batch."""
    batches = list(expected.index)
    color = ink(panel.figure)  # type: ignore[arg-type]
    offsets = np.linspace(-SPREAD / 2, SPREAD / 2, len(batches)) if len(batches) > 1 else np.zeros(1)
    rows = np.arange(len(values))
    for i, (batch, offset) in enumerate(zip(batches, offsets, strict=True)):
        fill = COLORS[i % len(COLORS)]
        of_batch = [of_slot.get(batch, np.nan) for of_slot in values.values()]
        panel.scatter(of_batch, rows + offset, s=30, color=fill, edgecolors="none", label=str(batch), zorder=2)
        panel.scatter(
            [expected[batch]] * len(rows), rows + offset, s=30, facecolors="none", edgecolors=color, linewidths=0.8,
            label="expected by chance" if batch == batches[-1] else None, zorder=1,
        )  # fmt: skip
    for row in rows[1:]:
        panel.axhline(row - 0.5, color="0.6", linewidth=0.5, zorder=0)
    most = max([*expected.dropna(), *(value for of_slot in values.values() for value in of_slot.dropna())], default=1.0)
    panel.set(xlim=(0, min(1.15 * most, 1.03)), ylim=(len(rows) - 0.5, -0.5))
    panel.tick_params(axis="y", length=0)

"""From the user's objects to one table of spots."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy import sparse

from stcontrast._data.genes import lost_genes
from stcontrast._data.spots import Spots
from stcontrast._progress import stage
from stcontrast._reading import are_numbers, is_missing, look_alike, names_of, obs_column, raw_counts, shared_genes
from stcontrast._slides import rows_by_slide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from stcontrast._reading import Keys, Sections

__all__ = ["depth_of", "gather", "stack_tables", "stacked_column"]

logger = logging.getLogger(__name__)

# more classes than this have to be few compared with the annotated spots; fractions are seldom classes
FEW: Final = 20
FEW_NUMBERS: Final = 5
SHARE_OF_NAMES: Final = 0.5
SHARE_OF_NUMBERS: Final = 0.1
# whole numbers of which all are multiples of one mean something; totals of spots that are that near are the same
MANY_COUNTS: Final = 200
SAME_DEPTH: Final = 1e-3
# spots with fewer genes may be equal by chance; slides that share more spots, and this part of them, are one
FEWEST_GENES: Final = 8
FEWEST_COPIES: Final = 5
SHARE_OF_COPIES: Final = 0.5
ROWS_AT_ONCE: Final = 20_000
NUMBER: Final = re.compile(r"[+-]?\d+(?:\.\d+)?")
# how a column of donors may be called; "donor_sex" is another one
DONOR: Final = re.compile(
    r"(?:.*[_. -])?(?:donor|patient|subject|individual|participant|animal|mouse)s?(?:[_. -]?(?:id|name|number|num|no|nr|code|key))?",
    re.IGNORECASE,
)
# names of classes that may mean that there is none
NO_CLASS: Final = (
    "na",
    "n/a",
    "none",
    "null",
    "unknown",
    "undetermined",
    "unassigned",
    "unlabeled",
    "unlabelled",
    "unannotated",
)


@stage("reading counts")
def gather(sources: Sequence[Sections], keys: Keys, *, gene_side: Sequence[Sections] = ()) -> Spots:
    """All spots of all objects. Each slide gives what it has: counts, labels or both.

    Parameters
    ----------
    sources
        Objects with images or image features.
    keys
        What the user named.
    gene_side
        Objects with counts and no image: the gene side of the table.

    Raises
    ------
    KeyError
        If a key is absent; the message lists what is there.
    ValueError
        If counts are not raw, objects share no genes, slides share a name, or a slide occurs under two donors.
    """
    n_spots = sum(source.table.n_obs for source in sources)
    sources = [*sources, *gene_side]
    names = [slide.name for source in sources for slide in source.slides]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        msg = (
            f"Slides share a name: {twice}. Every slide needs its own. "
            "`spatialdata.concatenate({'A': a, 'B': b}, concatenate_tables=True)` makes one object of several and renames "
            "their elements (call it before `stc.pp.image_features`: it drops `uns`); an AnnData object "
            "names its slides in a column of `obs` (`library_key`)."
        )
        raise ValueError(msg)
    donor_key, batch_key = keys.donor_key or keys.batch_key, keys.batch_key or keys.donor_key
    if donor_key is not None:
        for source in sources:
            _check_one_donor_a_slide(source, donor_key, named=keys.slide_key is not None)
    tables = [source.table for source in sources]
    code, xy = stack_positions(sources)
    # without a donor, every slide counts as one
    columns = {"donor": np.array(names, dtype=np.str_)[code], "batch": np.array(names, dtype=np.str_)[code]}
    named = {"donor": donor_key, "batch": batch_key}
    for column, key in named.items():
        if key is not None:
            given = "donor_key" if key == keys.donor_key else "batch_key"
            columns[column] = stacked_column(tables, key, given)
    spots = stack_tables(tables, code, xy, layer=keys.layer, label_key=keys.label_key, slides=names, **columns)
    _check_copies(spots)
    _warn_of_donors(spots)
    _warn_of_shared_donors(spots.donor, tables, donor_key)
    if not gene_side:
        return spots
    rows = np.arange(len(spots))
    alone = spots.take(rows[(rows >= n_spots) & spots.measured])
    return replace(spots.take(rows[:n_spots]), gene_side=alone if len(alone) else None)


def stack_positions(sources: Sequence[Sections]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Slide (n_spots,) and centre (n_spots, 2) of the spots of several objects, one under another."""
    positions = [source.slide_and_xy() for source in sources]
    first = np.cumsum([0, *(len(source.slides) for source in sources)])
    slide = np.concatenate([code + start for (code, _), start in zip(positions, first, strict=False)])
    return slide, np.concatenate([xy for _, xy in positions])


def stack_tables(
    tables: Sequence[AnnData],
    slide: NDArray[np.int64],
    xy: NDArray[np.float64],
    *,
    layer: str | None,
    label_key: str | None,
    **known: Any,
) -> Spots:
    """The spots of several tables, one under another: counts of the genes that they share, depth, names, labels.

    Parameters
    ----------
    tables
        The tables.
    slide, xy
        Slide and centre of all spots.
    layer
        Layer with raw counts.
    label_key
        Column of `obs` with the classes, which some tables may lack.
    **known
        Further attributes of :class:`Spots`.
    """
    genes = shared_genes(tables)
    counts, depth = [], []
    for table in tables:
        if table.n_vars == 0:
            counts.append(sparse.csr_matrix((table.n_obs, len(genes)), dtype=np.float32))
            depth.append(np.zeros(table.n_obs))
            continue
        full = raw_counts(table, layer)
        counts.append(sparse.csr_matrix(full[:, table.var_names.get_indexer(genes)]))
        # depth over the full library, not over the shared genes
        depth.append(np.asarray(full.sum(axis=1), dtype=np.float64).ravel())
    label, classes = _stacked_labels(tables, label_key)
    spots = Spots.of(
        slide, xy, name=np.concatenate([table.obs_names.to_numpy(dtype=np.str_) for table in tables]), genes=genes,
        counts=sparse.csr_matrix(sparse.vstack(counts, format="csr")), depth=np.concatenate(depth), label=label,
        classes=classes, **known,
    )  # fmt: skip
    _warn_of_counts(spots, np.repeat([table.n_vars > 0 for table in tables], [table.n_obs for table in tables]))
    _warn_of_lost_genes(spots)
    return spots


def _warn_of_counts(spots: Spots, counted: NDArray[np.bool_]) -> None:
    """Say at WARNING which slides have no counts at all, or whole numbers that look normalised; `counted`: with genes."""
    told: dict[str, list[str]] = {}
    for rows in rows_by_slide(spots.slide):
        total = spots.depth[rows][spots.depth[rows] > 0]
        values = spots.counts[rows].data
        step = int(np.gcd.reduce(values.astype(np.int64))) if len(values) >= MANY_COUNTS else 1
        if len(total) == 0 and counted[rows].any():
            found = "a table with genes and no counts at all: no expression is learnt from it. Was it joined by ids that differ?"
        elif len(total) >= FEW and np.ptp(total) < SAME_DEPTH * np.median(total):
            found = (
                "the same sum of counts in every spot, as after normalising and rounding, where raw counts are needed. If the "
                "counts were drawn down to one depth, all is well."
            )
        elif step > 1:
            found = f"counts that are all multiples of {step}, where raw counts are needed."
        else:
            continue
        code = int(spots.slide[rows[0]])
        told.setdefault(found, []).append(spots.slides[code] if len(spots.slides) > code else str(code + 1))
    for found, names in told.items():
        logger.warning("Each of the slides %s has %s", names[:5], found)


def _warn_of_lost_genes(spots: Spots) -> None:
    lost = sorted(lost_genes(spots.counts, spots.depth, spots.slide).items(), key=lambda item: -len(item[1]))
    if not lost:
        return
    named = ", ".join(
        f"slide {spots.slides[code]!r}: {len(columns)}, e.g. {[str(spots.genes[i]) for i in columns[:5]]}"
        if len(spots.slides) > code
        else f"slide {code + 1}: {len(columns)}"
        for code, columns in lost[:5]
    )
    logger.warning(
        "Of %d genes some have no count at all on a slide, and are well expressed on other slides (%s%s). Were tables with "
        "different genes joined (`join='outer'` fills the gaps with zeros)? The zeros would be learnt as measured: give the "
        "objects as a list, or join them with `join='inner'`. One or two genes may be absent in a donor.",
        len(spots.genes), named, f", and {len(lost) - 5} further slides" if len(lost) > 5 else "",
    )  # fmt: skip


def depth_of(source: Sections) -> NDArray[np.float64]:
    """Measured counts of every spot in `X` (n_spots,), for an oracle."""
    if source.table.n_vars == 0:
        msg = (
            "The model is an oracle: it needs the measured depth of the spots that it predicts, and the table "
            "has no genes."
        )
        raise ValueError(msg)
    logger.warning(
        "The model is an oracle: it uses the measured depth of the spots that it predicts. Its "
        "scores are an upper limit, not a prediction."
    )
    return np.asarray(raw_counts(source.table, None).sum(axis=1), dtype=np.float64).ravel()


def _check_one_donor_a_slide(source: Sections, donor_key: str, *, named: bool) -> None:
    # An AnnData of several sections with nothing that tells them apart: their coordinates would be mixed. A shapes
    # element is one slide by definition, and may hold several donors (a tissue microarray).
    if source.is_spatialdata or named or "library_id" in source.table.obs or donor_key not in source.table.obs:
        return
    donors = np.unique(names_of(obs_column(source.table, donor_key))).tolist()
    if len(donors) > 1:
        msg = (
            f"The AnnData object holds several donors, {donors[:5]}: name the column of `obs` with the slides "
            "(`library_key`)."
        )
        raise ValueError(msg)


def stacked_column(tables: Sequence[AnnData], key: str, argument: str) -> NDArray[np.str_]:
    """A column of `obs` that every table has in full, as names, one under another (n_spots,)."""
    for table in tables:
        if key not in table.obs:
            msg = f"`{argument}`: no column {key!r} in `obs`; its columns are {sorted(table.obs.columns)}."
            raise KeyError(msg)
        column = obs_column(table, key)
        if n_empty := int(is_missing(column).sum()):
            msg = f"`{argument}`: column {key!r} of `obs` is empty for {n_empty} spots (missing, blank or 'nan'). Fill it in, or remove these spots."
            raise ValueError(msg)
        distinct = column.drop_duplicates()
        if len(distinct) > max(FEW, len(column) * SHARE_OF_NAMES):
            msg = (
                f"`{argument}`: column {key!r} of `obs` has {len(distinct)} different values in {len(column)} spots, e.g. "
                f"{distinct.iloc[:3].tolist()}: does it name spots, or hold a measurement? Name the column with the donor, section "
                "or batch."
            )
            raise ValueError(msg)
    return np.concatenate([names_of(obs_column(table, key)) for table in tables])


def _stacked_labels(tables: Sequence[AnnData], key: str | None) -> tuple[NDArray[np.int64], list[str]]:
    """Class of every spot, one table under another (n_spots,), -1 for none; and the names of the classes."""
    if key is None:
        return np.full(sum(table.n_obs for table in tables), -1, dtype=np.int64), []
    if not any(key in table.obs for table in tables):
        msg = f"`label_key`: no column {key!r} in `obs`; its columns are {sorted(tables[0].obs.columns)}."
        raise KeyError(msg)
    absent = pd.Series(dtype=object)
    columns = [obs_column(table, key) if key in table.obs else absent.reindex(table.obs_names) for table in tables]
    for of_table in columns:
        # one by one: the barcodes of two slides are the same
        _check_classes(of_table[~is_missing(of_table)].astype(object), key)
    column = pd.concat([of_table.astype(object) for of_table in columns])
    known = ~is_missing(column)
    if n_text := int(known.size - known.sum() - column.isna().sum()):
        logger.warning(
            "`label_key`: %d spots have an empty text or 'nan' in column %r of `obs`: they count as not annotated.",
            n_text,
            key,
        )
    classes, index = np.unique(names_of(column[known]), return_inverse=True)
    _warn_of_classes(classes.tolist(), key)
    label = np.full(len(column), -1, dtype=np.int64)
    label[known] = index
    return label, classes.tolist()


def _check_classes(values: pd.Series, key: str) -> None:
    """Raise where a column has about as many values as spots: it holds measurements or names of spots, not classes."""
    distinct = values.unique()
    n_classes = len(distinct)
    measured = are_numbers(distinct)
    few = FEW_NUMBERS if measured and any(value != int(value) for value in distinct if np.isfinite(value)) else FEW
    if n_classes > max(few, len(values) * (SHARE_OF_NUMBERS if measured else SHARE_OF_NAMES)):
        what = "numbers (a measurement?)" if measured else "names (of spots?)"
        msg = (
            f"`label_key`: column {key!r} of `obs` has {n_classes} different {what} in {len(values)} annotated spots, e.g. "
            f"{distinct[:3].tolist()}: too many for classes. Name the column with the annotated tissue, or bin the values "
            "(`pandas.cut`)."
        )
        raise ValueError(msg)


def _warn_of_classes(classes: Sequence[str], key: str) -> None:
    """Say at WARNING where two classes may be one, a class may mean that there is none, or there is only one."""
    numbers = [name for name in classes if NUMBER.fullmatch(name)]
    names = [name for name in classes if name not in numbers and name.strip().casefold() not in NO_CLASS]
    if numbers and names:
        logger.warning(
            "The classes in column %r of `obs` are numbers (%s) and names (%s). Are the numbers codes of the names, in one of the "
            "objects or slides? They are learnt as different classes.", key, numbers[:5], names[:5],
        )  # fmt: skip
    for alike in look_alike(classes):
        logger.warning(
            "The classes %s in column %r of `obs` differ only in how they are written, and are learnt as different classes.",
            alike, key,
        )  # fmt: skip
    if unsure := [name for name in classes if name.strip().casefold() in NO_CLASS]:
        logger.warning(
            "`label_key`: %s in column %r of `obs` is learnt as a class. If it means that a spot is not annotated, set it to "
            "missing: `adata.obs[%r] = adata.obs[%r].astype(object).where(~adata.obs[%r].isin(%s))`.", unsure, key, key, key, key, unsure,
        )  # fmt: skip
    if len(classes) == 1:
        logger.warning(
            "`label_key`: column %r of `obs` has one class, %r: there is nothing to tell apart.", key, classes[0]
        )


def _check_copies(spots: Spots) -> None:
    """Raise where a slide is given again as that of another donor, which would be seen in training; the counts tell."""
    rows = np.flatnonzero(np.diff(spots.counts.indptr) >= FEWEST_GENES)
    if len(rows) == 0:
        return
    # equal counts have equal projections
    direction = np.random.default_rng(0).normal(size=spots.counts.shape[1])
    parts = np.array_split(rows, -(-len(rows) // ROWS_AT_ONCE))
    at = np.round(np.concatenate([spots.counts[part] @ direction for part in parts]), 6)
    found = pd.DataFrame({"at": at, "slide": spots.slide[rows]}).drop_duplicates()
    n_spots = found["slide"].value_counts()
    twice = found[found["at"].duplicated(keep=False)]
    pairs = twice.merge(twice, on="at").query("slide_x < slide_y")[["slide_x", "slide_y"]].value_counts()
    for one, other, n_same in pairs.reset_index().to_numpy(dtype=np.int64).tolist():
        n_smaller = min(n_spots[one], n_spots[other])
        if n_same < max(FEWEST_COPIES, SHARE_OF_COPIES * n_smaller):
            continue
        names = f"Slides {spots.slides[one]!r} and {spots.slides[other]!r} have the same counts in {n_same} of {n_smaller} spots"
        donors = [np.unique(spots.donor[spots.slide == slide]).tolist() for slide in (one, other)]
        if not set(donors[0]) & set(donors[1]):
            msg = (
                f"{names}, and belong to two donors, {donors[0][0]!r} and {donors[1][0]!r}. One of them held out, the other would be "
                "trained on. Remove one of the two, or name the same donor for both."
            )
            raise ValueError(msg)
        logger.warning("%s: they seem to be one slide, which counts twice. Remove one of the two.", names)


def _warn_of_shared_donors(donor: NDArray[np.str_], tables: Sequence[AnnData], key: str | None) -> None:
    """Say at WARNING where what counts as donors may share one; `donor`: of each spot, `key`: its column."""
    n_donors = len(np.unique(donor))
    if n_donors < 2:
        return
    hint = " If slides share a donor, name the column of `obs` with the donors."
    shared = False
    for name in tables[0].obs.columns:
        if name == key or not DONOR.fullmatch(str(name)) or not all(name in table.obs for table in tables):
            continue
        columns = [obs_column(table, name) for table in tables]
        missing = np.concatenate([is_missing(column) for column in columns])
        pairs = pd.DataFrame({"donor": donor, "other": np.concatenate([names_of(column) for column in columns])})
        of_other = pairs[~missing].drop_duplicates().groupby("other")["donor"]
        several = [(value, donors.tolist()) for value, donors in of_other if len(donors) > 1]
        # one value for all: who names another column means to tell slides of one donor apart
        if several and (key is None or len(of_other) > 1):
            value, donors = several[0]
            hint = (
                f" Column {name!r} of `obs` is {value!r} for several of them, {donors[:5]}: if it names the "
                f"donors, give `donor_key={name!r}`."
            )
            shared = True
            break
    if key is None or shared:
        logger.warning(
            "%s.%s Where several of them are one donor, scores and intervals for new donors are too good.",
            f"No `donor_key`: each of {n_donors} slides counts as a donor" if key is None else f"Column {key!r} of `obs` names {n_donors} donors",
            hint,
        )  # fmt: skip


def _warn_of_donors(spots: Spots) -> None:
    """Say at WARNING where donors may be one and the same, or classes may be donors."""
    for alike in look_alike(spots.donor.tolist()):
        logger.warning(
            "The donors %s differ only in how they are written. If they are the same donor, write them in the same way.",
            alike,
        )
    known = spots.label >= 0
    pairs = pd.DataFrame({"donor": spots.donor[known], "label": spots.label[known]}).drop_duplicates()
    n_donors, n_classes = pairs["donor"].nunique(), pairs["label"].nunique()
    if min(n_donors, n_classes) < 2 or not (pairs["donor"].is_unique or pairs["label"].is_unique):
        return
    logger.warning(
        "%s (%d donors, %d classes): classes and donors cannot be told apart, so that a model of these classes may recognise "
        "donors, stains or scanners instead of tissue.",
        "Every class occurs in one donor only" if pairs["label"].is_unique else "Every donor has one class only",
        n_donors, n_classes,
    )  # fmt: skip

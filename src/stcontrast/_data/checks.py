"""What looks wrong in the spots of all slides: counts that are none, slides and donors that are one."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from stcontrast._data.genes import lost_genes
from stcontrast._reading import is_missing, look_alike, names_of, obs_column
from stcontrast._slides import rows_by_slide

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from stcontrast._data.spots import Spots

__all__ = [
    "check_copied_slides",
    "warn_of_chosen_genes",
    "warn_of_counts",
    "warn_of_donors",
    "warn_of_glass",
    "warn_of_lost_genes",
    "warn_of_shared_donors",
]

logger = logging.getLogger(__name__)

# whole numbers of which all are multiples of one mean something; totals of spots that are that near are the same
MANY_COUNTS: Final = 200
MANY_SPOTS: Final = 20
SAME_DEPTH: Final = 1e-3
# where spots have so many times the largest count of a slide, it is too small
DEEP: Final = 100
SMALL: Final = 10
# spots with fewer genes may be equal by chance; slides that share more spots, and this part of them, are one
FEWEST_GENES: Final = 8
FEWEST_COPIES: Final = 5
SHARE_OF_COPIES: Final = 0.5
ROWS_AT_ONCE: Final = 20_000
# columns that Space Ranger and scanpy write, and values of the first for a spot on glass
IN_TISSUE: Final = "in_tissue"
ON_GLASS: Final = ("0", "False", "false", "FALSE")
HIGHLY_VARIABLE: Final = "highly_variable"
# how a column of donors may be called; "donor_sex" is another one
DONOR: Final = re.compile(
    r"(?:.*[_. -])?(?:donor|patient|subject|individual|participant|animal|mouse)s?(?:[_. -]?(?:id|name|number|num|no|nr|code|key))?",
    re.IGNORECASE,
)


def warn_of_glass(tables: Iterable[AnnData]) -> None:
    """Say at WARNING where spots are marked as lying on glass, as in the raw matrix of Space Ranger."""
    marks = [names_of(obs_column(table, IN_TISSUE)) for table in tables if IN_TISSUE in table.obs]
    n_glass = sum(int(np.isin(mark, ON_GLASS).sum()) for mark in marks)
    if n_glass:
        logger.warning(
            "%d of %d spots are marked as lying on glass (`obs[%r]` is 0). They shift the standardisation of image features, and a "
            "model that learns from them learns to tell tissue from glass: correlations are too high then. Leave them out: "
            "`table[table.obs[%r].astype(int) == 1].copy()`.", n_glass, sum(map(len, marks)), IN_TISSUE, IN_TISSUE,
        )  # fmt: skip


def warn_of_chosen_genes(tables: Sequence[AnnData]) -> None:
    """Say at WARNING where a table was cut to highly variable genes: the depth is counted over the genes that are there."""
    cut = [
        table.n_vars
        for table in tables
        if table.n_vars and HIGHLY_VARIABLE in table.var and bool(np.asarray(table.var[HIGHLY_VARIABLE]).all())
    ]
    if cut:
        logger.warning(
            "In %d of %d tables all genes are marked %r (%d of them). If other genes were left out, the depth of a spot lacks their "
            "counts, and expression is another number than on slides with all genes. Give the table with all genes; `fit` chooses "
            "variable genes itself.", len(cut), len(tables), HIGHLY_VARIABLE, cut[0],
        )  # fmt: skip


def warn_of_counts(spots: Spots, counted: NDArray[np.bool_]) -> None:
    """Say at WARNING which slides have no counts at all, or whole numbers that look normalised; `counted`: with genes."""
    told: dict[str, list[str]] = {}
    for rows in rows_by_slide(spots.slide):
        total = spots.depth[rows][spots.depth[rows] > 0]
        counts = spots.counts[rows]
        values = counts.data
        step = int(np.gcd.reduce(values.astype(np.int64))) if len(values) >= MANY_COUNTS else 1
        if len(total) == 0 and counted[rows].any():
            found = "a table with genes and no counts at all: no expression is learnt from it. Was it joined by ids that differ?"
        elif len(total) >= MANY_SPOTS and np.ptp(total) < SAME_DEPTH * np.median(total):
            found = (
                "the same sum of counts in every spot, as after normalising and rounding, where raw counts are needed. If the "
                "counts were drawn down to one depth, all is well."
            )
        elif step > 1:
            found = f"counts that are all multiples of {step}, where raw counts are needed."
        elif len(values) and values.max() <= SMALL and np.median(np.asarray(counts.sum(axis=1))) >= DEEP * values.max():
            found = (
                f"counts of at most {values.max():.0f} although its spots have many, as after taking ones for all counts, clipping, or "
                "rounding logarithms, where raw counts are needed."
            )
        else:
            continue
        code = int(spots.slide[rows[0]])
        told.setdefault(found, []).append(spots.slides[code] if len(spots.slides) > code else str(code + 1))
    for found, names in told.items():
        logger.warning("Each of the slides %s has %s", names[:5], found)


def warn_of_lost_genes(spots: Spots) -> None:
    """Say at WARNING which genes have no count on one slide, and many on the others."""
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


def check_copied_slides(spots: Spots) -> None:
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


def warn_of_shared_donors(donor: NDArray[np.str_], tables: Sequence[AnnData], key: str | None) -> None:
    """Say at WARNING where what counts as donors may share one; `donor`: of each spot, `key`: its column."""
    n_donors = len(np.unique(donor))
    shared = _shared_donor(donor, tables, key)
    if n_donors < 2 or (key is not None and not shared):
        return
    logger.warning(
        "%s. %s Where several of them are one donor, scores and intervals for new donors are too good.",
        f"No `donor_key`: each of {n_donors} slides counts as a donor" if key is None else f"Column {key!r} of `obs` names {n_donors} donors",
        shared or "If slides share a donor, name the column of `obs` with the donors.",
    )  # fmt: skip


def _shared_donor(donor: NDArray[np.str_], tables: Sequence[AnnData], key: str | None) -> str:
    """Which other column, by its name one of donors, has one value for several donors; empty if none has."""
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
            return (
                f"Column {name!r} of `obs` is {value!r} for several of them, {donors[:5]}: if it names the donors, give "
                f"`donor_key={name!r}`."
            )
    return ""


def warn_of_donors(spots: Spots) -> None:
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

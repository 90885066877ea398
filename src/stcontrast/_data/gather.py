"""From the user's objects to one table of spots."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy import sparse

from stcontrast._data.checks import (
    check_copied_slides,
    warn_of_chosen_genes,
    warn_of_counts,
    warn_of_donors,
    warn_of_glass,
    warn_of_lost_genes,
    warn_of_shared_donors,
)
from stcontrast._data.spots import Spots
from stcontrast._progress import stage
from stcontrast._reading import are_numbers, is_missing, look_alike, names_of, obs_column, raw_counts, shared_genes
from stcontrast._records import read_record

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
NUMBER: Final = re.compile(r"[+-]?\d+(?:\.\d+)?")
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
    check_copied_slides(spots)
    warn_of_donors(spots)
    warn_of_shared_donors(spots.donor, tables, donor_key)
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
    warn_of_chosen_genes(tables)
    warn_of_glass(tables)
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
    warn_of_counts(spots, np.repeat([table.n_vars > 0 for table in tables], [table.n_obs for table in tables]))
    warn_of_lost_genes(spots)
    return spots


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
    if any(key in table.obs and read_record(table, "classification", key) is not None for table in tables):
        logger.warning(
            "`label_key`: column %r of `obs` holds classes that `stc.tl.classify` has predicted. A model learns the errors of "
            "another from them, and scores against them say how well two models agree. Name the column of annotations.", key,
        )  # fmt: skip
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

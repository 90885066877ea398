"""Names of genes: unique within a table, and the same kind of name in all of them."""

from __future__ import annotations

import logging
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

__all__ = ["check_named_genes", "check_unique_genes", "close_genes", "shared_genes", "why_few_genes"]

logger = logging.getLogger(__name__)

ENSEMBL: Final = re.compile(r"ENS[A-Z]*[GT]\d{5,}(\.\d+)?")
# features of spatial platforms that are no genes: controls of Xenium, CosMx and MERSCOPE, and spike-ins
CONTROL: Final = re.compile(
    r"(?:neg(?:control|prb)|negative\d|systemcontrol|falsecode|(?:unassigned|deprecated)codeword|blank[-_]|antisense_|"
    r"intergenic_region|ercc-\d)",
    re.IGNORECASE,
)
# of the genes of a table: below the first a warning, below the second (of the smallest table) an error
FEW_SHARED: Final = 0.5
LEAST_SHARED: Final = 0.1


def check_unique_genes(table: AnnData, name: str = "The table") -> None:
    """Raise a ValueError where several columns of a table have one name."""
    if table.var_names.is_unique:
        return
    twice = table.var_names[table.var_names.duplicated()].unique()
    ids = [
        key
        for key in table.var.columns
        if (values := pd.Index(table.var[key])).is_unique and _share_of_ensembl(values) > 0.5
    ]
    other = f"`adata.var_names = adata.var[{ids[0]!r}]` names genes by Ensembl id" if ids else "Ensembl ids are unique"
    msg = (
        f"{name[0].upper()}{name[1:]} has gene names that are not unique: {len(twice)} of them have several columns, e.g. "
        f"{list(twice[:5])}. "
        f"`adata.var_names_make_unique()` keeps the columns apart; {other}."
    )
    raise ValueError(msg)


def shared_genes(tables: Sequence[AnnData]) -> list[str]:
    """Genes that every table with genes has, in the order of the first.

    A table that loses more than half of its genes is named at WARNING.

    Raises
    ------
    ValueError
        If gene names are not unique, or fewer than a tenth of the smallest table's genes are shared.
    """
    named = {_called(table, i, len(tables)): table for i, table in enumerate(tables) if table.n_vars}
    for name, table in named.items():
        check_unique_genes(table, name)
    _warn_of_other_features(named.values())
    if not named:
        return []
    first, *others = named.values()
    of_others = [set(table.var_names) for table in others]
    shared = [gene for gene in first.var_names if all(gene in other for other in of_others)]
    smallest = min(named.values(), key=lambda table: table.n_vars)
    told = (
        f"The objects share {len(shared)} genes, and have "
        f"{', '.join(f'{table.n_vars} ({name})' for name, table in list(named.items())[:5])}."
    )
    if len(shared) < max(1, LEAST_SHARED * smallest.n_vars):
        stranger = min(named.values(), key=lambda table: smallest.var_names.isin(table.var_names).sum())
        # what one lacks, the other may have in a column
        pairs = ((smallest, stranger), (stranger, smallest))
        one, other = next((pair for pair in pairs if _column_with(pair[0].var_names, pair[1])), pairs[0])
        msg = (
            f"{told} Objects that a model learns from must share a tenth of the genes of the smallest. "
            f"{why_few_genes(one.var_names, other)}"
        )
        raise ValueError(msg)
    if len(shared) < FEW_SHARED * max(table.n_vars for table in named.values()):
        logger.warning("%s Only shared genes can be learnt; the others are left out.", told)
    return shared


def close_genes(gene: str, known: Iterable[str]) -> list[str]:
    """Names that may be meant by a name that is not there, at most six."""
    names = [str(name) for name in known]
    # gene symbols of two species may differ only in their case
    alike = [name for name in names if name.lower() == gene.lower()]
    return list(dict.fromkeys(alike + get_close_matches(gene, names, n=5)))[:6]


def check_named_genes(genes: Iterable[str], known: Sequence[str], what: str = "named genes") -> None:
    """Raise a KeyError where genes that the user names are absent from those that were counted, if any were."""
    there = set(known)
    absent = [gene for gene in genes if gene not in there]
    if absent and there:
        close = [name for gene in absent[:5] for name in close_genes(gene, known)[:2]]
        hint = f"Close matches: {close}." if close else f"Some that exist: {list(known[:5])}."
        msg = f"{len(absent)} of the {what} are absent from the counts: {absent[:10]}. {hint}"
        raise KeyError(msg)


def _warn_of_other_features(tables: Iterable[AnnData]) -> None:
    """Say at WARNING where columns of tables are antibodies or controls, which would be learnt as genes."""
    others: set[str] = set()
    for table in tables:
        other = table.var_names.str.match(CONTROL)
        kinds = table.var["feature_types"].astype(str) if "feature_types" in table.var else None
        # where none is of that type, the column means something else
        if kinds is not None and (kinds == "Gene Expression").any():
            other |= (kinds != "Gene Expression").to_numpy()
        others |= set() if other.all() else set(table.var_names[other])
    if others:
        logger.warning(
            "%d features seem to be antibodies, controls or spike-ins, e.g. %s. They count as genes, also in the depth of a spot. "
            "Leave them out: `adata[:, ~adata.var_names.isin(names)]`, or `adata[:, adata.var['feature_types'] == 'Gene "
            "Expression']` where that column is there.", len(others), sorted(others)[:5],
        )  # fmt: skip


def why_few_genes(wanted: Sequence[str] | pd.Index, table: AnnData) -> str:
    """Why a table may lack genes that are wanted, and what to do."""
    wanted, found = pd.Index(wanted), table.var_names
    begin = f"Genes begin {list(wanted[:3])} and {list(found[:3])}."
    if key := _column_with(wanted, table):
        return f"{begin} `adata.var[{key!r}]` has the other kind of names: `adata.var_names = adata.var[{key!r}]`."
    if (_share_of_ensembl(wanted) > 0.5) != (_share_of_ensembl(found) > 0.5):
        return (
            f"{begin} One has Ensembl ids and the other symbols: give both the same kind of names (`adata.var_names`)."
        )
    without_version = [index.str.replace(r"\.\d+$", "", regex=True) for index in (wanted, found)]
    if without_version[0].isin(without_version[1]).mean() > FEW_SHARED:
        return f"{begin} They differ in the version of the Ensembl id: `adata.var_names.str.split('.').str[0]`."
    if wanted.str.upper().isin(found.str.upper()).mean() > FEW_SHARED:
        return f"{begin} They differ in upper and lower case: another species, or another way to write symbols?"
    return f"{begin} Are they of one species, and the same kind of names (symbols, Ensembl ids)?"


def _column_with(wanted: pd.Index, table: AnnData) -> str | None:
    """Column of `var` that holds these names."""
    keys = (str(key) for key in table.var.columns)
    return next((key for key in keys if wanted.isin(table.var[key].astype(str)).mean() > FEW_SHARED), None)


def _share_of_ensembl(names: pd.Index) -> float:
    some = [str(name) for name in names[:1000]]
    return sum(ENSEMBL.fullmatch(name) is not None for name in some) / max(1, len(some))


def _called(table: AnnData, i: int, n: int) -> str:
    """What to call an object in a message: by its slides, else by its place in the list."""
    region = table.uns.get("spatialdata_attrs", {}).get("region")
    if region is not None and len(region):
        names = [region] if isinstance(region, str) else list(region)
        return f"the object with the slides {names[:3]}"
    return "The table" if n == 1 else f"object {i + 1} of {n}"

"""Genes of several tables: unique, of one kind, and enough of them shared."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from stcontrast._reading import shared_genes, why_few_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

SYMBOLS = [f"Gene{i}" for i in range(20)]
ENSEMBL = [f"ENSMUSG{i:011d}" for i in range(20)]


def table(genes: Sequence[str], **var: Sequence[str]) -> ad.AnnData:
    return ad.AnnData(np.ones((2, len(genes)), np.float32), var=pd.DataFrame(var, index=pd.Index(genes)))


@pytest.mark.situation(
    "Genes", "Objects share less than half of their genes", "warning", "Only shared genes can be learnt"
)
@pytest.mark.parametrize(
    ("sizes", "n_shared", "warned"),
    [
        ((20, 20), 20, False),
        ((20, 20), 11, False),
        ((20, 20), 9, True),
        ((20, 20), 3, True),
        ((20, 200), 20, True),
        ((20, 30, 30), 20, False),
        ((0, 20, 20), 20, False),
    ],
)
def test_few_shared_genes_are_said_with_the_numbers(
    sizes: tuple[int, ...], n_shared: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tables = [table([f"g{j}" if j < n_shared else f"g{i}_{j}" for j in range(size)]) for i, size in enumerate(sizes)]
    assert shared_genes(tables) == [f"g{j}" for j in range(n_shared)]
    assert ("Only shared genes can be learnt" in caplog.text) == warned
    if warned:
        assert f"share {n_shared} genes, and have {sizes[0]} (object 1 of 2), {sizes[1]} (object 2 of 2)" in caplog.text
        assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.situation(
    "Genes", "Objects share less than a tenth of the genes of the smallest", "error", "must share a tenth"
)
@pytest.mark.parametrize(("size", "n_shared", "refused"), [(40, 3, True), (40, 4, False), (20, 0, True), (5, 1, False)])
def test_less_than_a_tenth_of_the_smallest_is_refused(size: int, n_shared: int, refused: bool) -> None:
    tables = [table([f"g{j}" if j < n_shared else f"g{i}_{j}" for j in range(size + 9 * i)]) for i in range(2)]
    if not refused:
        assert len(shared_genes(tables)) == n_shared
        return
    with pytest.raises(ValueError, match=rf"share {n_shared} genes.*must share a tenth"):
        shared_genes(tables)


@pytest.mark.situation("Genes", "Two kinds of gene names, such as symbols and Ensembl ids", "error", "Genes begin")
@pytest.mark.parametrize(
    ("wanted", "found", "told"),
    [
        (table(SYMBOLS), table(ENSEMBL, symbol=SYMBOLS), r"`adata.var_names = adata.var\['symbol'\]`"),
        (table(ENSEMBL), table(SYMBOLS, gene_ids=ENSEMBL), r"`adata.var_names = adata.var\['gene_ids'\]`"),
        (table(ENSEMBL), table(SYMBOLS), "One has Ensembl ids and the other symbols"),
        (table(ENSEMBL), table([f"{name}.3" for name in ENSEMBL]), "version of the Ensembl id"),
        (table(SYMBOLS), table([name.upper() for name in SYMBOLS]), "upper and lower case: another species"),
        (table(SYMBOLS), table([f"x{i}" for i in range(20)]), "of one species, and the same kind of names"),
    ],
    ids=["symbols are in var", "ids are in var", "two kinds", "versions", "mouse and human", "strangers"],
)
def test_why_genes_are_not_shared(wanted: ad.AnnData, found: ad.AnnData, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        shared_genes([wanted, found])
    assert "Genes begin" in why_few_genes(wanted.var_names, found)


@pytest.mark.situation("Genes", "Gene names are not unique", "error", "var_names_make_unique")
@pytest.mark.filterwarnings("ignore:Variable names are not unique")  # anndata
def test_names_that_are_not_unique_are_refused_with_advice() -> None:
    twice = [*SYMBOLS[:-1], SYMBOLS[0]]
    with pytest.raises(ValueError, match=r"1 of them have several columns, e.g. \['Gene0'\].*var_names_make_unique"):
        shared_genes([table(SYMBOLS), table(twice)])
    with pytest.raises(ValueError, match=r"`adata.var_names = adata.var\['gene_ids'\]` names genes by Ensembl id"):
        shared_genes([table(twice, gene_ids=ENSEMBL, feature=twice)])


@pytest.mark.situation(
    "Genes", "Antibodies, control probes or spike-ins are among the genes", "warning", "seem to be antibodies, controls"
)
@pytest.mark.parametrize(
    "names",
    [
        [
            "NegControlProbe_00042",
            "antisense_ADCY4",
            "UnassignedCodeword_0001",
            "DeprecatedCodeword_0007",
            "BLANK_0006",
        ],
        ["NegPrb1", "Negative2", "SystemControl3", "FalseCode9"],
        ["Blank-1", "blank-44"],
        ["ERCC-00002"],
    ],
    ids=["Xenium", "CosMx", "MERSCOPE", "spike-ins"],
)
def test_control_probes_are_named(names: list[str], caplog: pytest.LogCaptureFixture) -> None:
    shared_genes([table([*SYMBOLS, *names]), table(SYMBOLS)])
    assert (
        f"{len(names)} features seem to be antibodies, controls or spike-ins, e.g. {sorted(names)[:5]}" in caplog.text
    )


@pytest.mark.parametrize(
    ("kinds", "n_other"),
    [
        (["Gene Expression"] * 17 + ["Antibody Capture"] * 3, 3),
        (["Gene Expression"] * 20, 0),
        # another use of the column
        (["protein_coding"] * 18 + ["lncRNA"] * 2, 0),
        (["Antibody Capture"] * 20, 0),
    ],
    ids=["antibodies", "genes", "biotypes", "antibodies alone"],
)
def test_feature_types_are_looked_at(kinds: list[str], n_other: int, caplog: pytest.LogCaptureFixture) -> None:
    shared_genes([table(SYMBOLS, feature_types=kinds)])
    assert (f"{n_other} features seem to be" in caplog.text) == bool(n_other)


def test_genes_with_names_like_controls_are_genes(caplog: pytest.LogCaptureFixture) -> None:
    shared_genes([table(["ERCC1", "ERCC6L2", "NEGR1", "BLNK", "Blank", "NELFA", "SYS1", "ANTXR1"])])
    assert caplog.text == ""

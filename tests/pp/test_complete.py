from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stcontrast as stc
from stcontrast._data import choose_genes, log_normalize
from stcontrast.pp._complete import USE
from stcontrast.pp._completion import Completer

if TYPE_CHECKING:
    from pathlib import Path

complete = partial(stc.pp.complete, max_steps=3)


@pytest.fixture
def toy():
    return stc.datasets.toy(n_donors=2, n_spots=30, n_genes=30)


def as_adata(toy, slide: str | None = None) -> ad.AnnData:
    table = toy["table"]
    found = table[table.obs["slide"] == slide] if slide else table
    return ad.AnnData(
        found.X.copy(), obs=pd.DataFrame({"slide": found.obs["slide"].astype(str)}, index=found.obs_names),
        var=pd.DataFrame(index=found.var_names), obsm={"spatial": found.obsm["spatial"]},
    )  # fmt: skip


def normalized(table: ad.AnnData) -> np.ndarray:
    counts = sparse.csr_matrix(table.X)
    return log_normalize(counts, np.asarray(counts.sum(axis=1), dtype=float).ravel())


def test_measured_values_stay_and_zeros_of_the_chosen_genes_are_filled(toy) -> None:
    table = toy["table"]
    before = table.X.copy()
    stc.pp.complete(toy, n_genes=12, max_steps=3)
    layer, record = table.layers["stc_completed"], table.uns["stcontrast"]["completion"]
    assert isinstance(layer, sparse.csr_matrix)
    assert layer.dtype == np.float32
    assert layer.shape == table.shape
    expected = normalized(table)
    np.testing.assert_array_equal(layer.toarray()[expected > 0], expected[expected > 0])
    chosen = table.var_names.isin(record["genes"])
    assert chosen.sum() == 12
    np.testing.assert_array_equal(layer[:, ~chosen].toarray(), expected[:, ~chosen])
    holes = expected[:, chosen] == 0
    filled = layer[:, chosen].toarray()[holes]
    assert (filled > 0).mean() > 0.9
    assert record["n_filled"] == (filled > 0).sum() > 0
    assert record["use"] == USE
    assert "training targets only" in record["use"]
    assert record["seed"] == 0
    np.testing.assert_array_equal(table.X.toarray(), before.toarray())
    assert list(toy.tables) == ["table"]


def test_it_is_the_completer_on_log_counts(toy) -> None:
    table = toy["table"]
    complete(toy, n_genes=8, seed=4)
    slide = np.unique(table.obs["slide"].astype(str), return_inverse=True)[1]
    counts = sparse.csr_matrix(table.X)
    total = np.asarray(counts.sum(axis=1), dtype=float).ravel()
    columns = choose_genes(counts, total, slide, n_genes=8)
    assert table.uns["stcontrast"]["completion"]["genes"] == list(table.var_names[columns])
    expression, xy = log_normalize(counts[:, columns], total), np.asarray(table.obsm["spatial"], dtype=float)
    expected = Completer(max_steps=3, seed=4).fit(expression, slide, xy).complete(expression, slide, xy)
    np.testing.assert_allclose(table.layers["stc_completed"][:, columns].toarray(), expected, atol=1e-4)


def test_named_genes_in_any_order(toy) -> None:
    complete(toy, genes=["GENE20", "GENE3", "GENE20"])
    table = toy["table"]
    assert table.uns["stcontrast"]["completion"]["genes"] == ["GENE20", "GENE3"]
    changed = (table.layers["stc_completed"].toarray() != normalized(table)).any(axis=0)
    assert set(table.var_names[changed]) <= {"GENE20", "GENE3"}


def test_named_genes_beside_the_most_variable(toy) -> None:
    complete(toy, n_genes=3)
    chosen = toy["table"].uns["stcontrast"]["completion"]["genes"]
    assert len(chosen) == 3
    other = next(gene for gene in toy["table"].var_names if gene not in chosen)
    complete(toy, n_genes=3, genes=[chosen[0], other])
    assert toy["table"].uns["stcontrast"]["completion"]["genes"] == [*chosen, other]


def test_several_objects_are_completed_by_one_network(toy) -> None:
    together = as_adata(toy)
    complete(together, library_key="slide", genes=["GENE1", "GENE5", "GENE9"])
    parts = [as_adata(toy, slide) for slide in together.obs["slide"].unique()]
    # another order of genes, and one that only the second has
    extra = ad.AnnData(
        sparse.csr_matrix((parts[1].n_obs, 1), dtype=np.float32), obs=parts[1].obs, var=pd.DataFrame(index=["EXTRA"])
    )
    parts[1] = ad.concat([extra, parts[1][:, ::-1]], axis=1, merge="first")
    parts[1].obsm["spatial"] = together[parts[1].obs_names].obsm["spatial"]
    complete(parts, genes=["GENE1", "GENE5", "GENE9"])
    for part in parts:
        found = part[:, together.var_names].layers["stc_completed"].toarray()
        expected = together[part.obs_names].layers["stc_completed"].toarray()
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert part.layers["stc_completed"].shape == part.shape
    n_filled = sum(part.uns["stcontrast"]["completion"]["n_filled"] for part in parts)
    assert n_filled == together.uns["stcontrast"]["completion"]["n_filled"]


def test_counts_in_a_layer_dense_or_unsorted(toy) -> None:
    expected = as_adata(toy)
    complete(expected, library_key="slide")
    dense, unsorted = as_adata(toy), as_adata(toy)
    dense.layers["counts"] = dense.X.toarray()
    dense.X = np.log1p(dense.X)
    complete(dense, library_key="slide", layer="counts")
    reverse = unsorted.X[:, ::-1].tocsr()
    unsorted.X = sparse.csr_matrix((reverse.data, 29 - reverse.indices, reverse.indptr), shape=reverse.shape)
    order = unsorted.X.indices.copy()
    complete(unsorted, library_key="slide")
    for found in (dense, unsorted):
        np.testing.assert_array_equal(
            found.layers["stc_completed"].toarray(), expected.layers["stc_completed"].toarray()
        )
    np.testing.assert_array_equal(unsorted.X.indices, order)


def test_a_spot_without_counts_stays_empty_and_is_nobody_s_neighbour(toy) -> None:
    adata = as_adata(toy)
    holes = adata.copy()
    rows = [0, 7, 40]
    holes.X = sparse.csr_matrix(sparse.diags_array(~np.isin(np.arange(adata.n_obs), rows) * 1.0) @ holes.X)
    complete(holes, library_key="slide", n_genes=10)
    assert holes.layers["stc_completed"][rows].nnz == 0
    without = np.delete(np.arange(adata.n_obs), rows)
    kept = adata[without].copy()
    complete(kept, library_key="slide", n_genes=10)
    np.testing.assert_allclose(
        holes.layers["stc_completed"][without].toarray(), kept.layers["stc_completed"].toarray(), rtol=1e-5, atol=1e-6
    )


def test_it_can_be_run_again_under_the_same_name_and_under_others(toy) -> None:
    complete(toy)
    first = toy["table"].layers["stc_completed"].copy()
    complete(toy)
    np.testing.assert_array_equal(toy["table"].layers["stc_completed"].toarray(), first.toarray())
    complete(toy, key_added="other", genes=["GENE1"])
    uns = toy["table"].uns["stcontrast"]
    assert uns["completion_other"]["genes"] == ["GENE1"]
    assert len(uns["completion"]["genes"]) > 1
    complete(toy, key_added="other")


def test_it_survives_a_file(toy, tmp_path: Path) -> None:
    adata = as_adata(toy)
    complete(adata, library_key="slide")
    adata.write_h5ad(tmp_path / "completed.h5ad")
    found = ad.read_h5ad(tmp_path / "completed.h5ad")
    np.testing.assert_array_equal(found.layers["stc_completed"].toarray(), adata.layers["stc_completed"].toarray())
    record = found.uns["stcontrast"]["completion"]
    assert list(record["genes"]) == adata.uns["stcontrast"]["completion"]["genes"]
    complete(found, library_key="slide")


def logged(adata: ad.AnnData) -> None:
    adata.X = np.log1p(adata.X)


def negative(adata: ad.AnnData) -> None:
    adata.X = -adata.X


def without_x(adata: ad.AnnData) -> None:
    adata.X = None


def taken(adata: ad.AnnData) -> None:
    adata.layers["stc_completed"] = adata.X.copy()


def twice_named(adata: ad.AnnData) -> None:
    adata.var_names = ["A"] * adata.n_vars


def empty(adata: ad.AnnData) -> None:
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize(
    ("change", "arguments", "error", "message"),
    [
        (logged, {}, ValueError, "Raw counts are needed, but `X`"),
        (negative, {}, ValueError, "Raw counts are needed"),
        (without_x, {}, ValueError, "no `X`"),
        (taken, {}, ValueError, "holds something that stcontrast did not write"),
        (twice_named, {}, ValueError, "not unique"),
        (empty, {}, ValueError, "no spot has any counts"),
        (None, {"layer": "counts"}, KeyError, "No layer 'counts'"),
        (None, {"library_key": "absent"}, KeyError, "No column 'absent'"),
        (None, {"genes": ["GENE1", "ABSENT"]}, KeyError, "1 of the named genes are absent"),
        (None, {"genes": []}, ValueError, "`genes` must be a list of names, not empty"),
        (None, {"n_genes": 0}, ValueError, "`n_genes` must be a whole number of at least 1"),
        (None, {"max_steps": 0}, ValueError, "`max_steps` must be a whole number of at least 1"),
        (None, {"seed": -1}, ValueError, "`seed` must be a whole number from 0"),
    ],
)
def test_errors_come_before_any_work(toy, monkeypatch, change, arguments, error, message) -> None:
    adata = as_adata(toy)
    if change is not None:
        change(adata)
    monkeypatch.setattr(Completer, "fit", lambda *_: pytest.fail("work was done"))
    layers = set(adata.layers)
    with pytest.raises(error, match=message):
        complete(adata, **{"library_key": "slide", **arguments})
    assert set(adata.layers) == layers
    assert "stcontrast" not in adata.uns


def test_errors_of_lists(toy) -> None:
    adata = as_adata(toy, "donor1_a")
    other = adata.copy()
    other.var_names = [f"X{i}" for i in range(other.n_vars)]
    with pytest.raises(ValueError, match="share 0 genes"):
        complete([adata, other])
    with pytest.raises(ValueError, match="given twice"):
        complete([adata, adata])
    with pytest.raises(ValueError, match="empty list"):
        complete([])
    with pytest.raises(TypeError, match="found dict"):
        complete({})


def test_no_gene_is_seen_often_enough(toy) -> None:
    adata = as_adata(toy)
    # every spot has a gene, and no gene more than a few spots
    adata.X = sparse.csr_matrix(np.eye(adata.n_vars, dtype=np.float32)[np.arange(adata.n_obs) % adata.n_vars])
    with pytest.raises(ValueError, match="No gene is seen in 10 %"):
        complete(adata, library_key="slide")

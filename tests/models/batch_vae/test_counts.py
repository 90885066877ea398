from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from stcontrast._models.batch_vae.counts import align_genes, check_categories, check_genes, counts_of, not_a_count

GENES = pd.Index([f"G{i}" for i in range(6)])


@pytest.mark.parametrize(
    ("value", "kind"),
    [(0.5, "not a whole number"), (-1.0, "negative"), (np.nan, "not finite"), (np.inf, "not finite")],
)
@pytest.mark.parametrize("as_sparse", [False, True])
def test_one_wrong_value_is_found_and_named(value: float, kind: str, as_sparse: bool):
    values = np.ones((200, 30))
    values[150, 17] = value
    found = not_a_count(sparse.csr_matrix(values) if as_sparse else values)
    assert found is not None
    assert kind in found


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32", "float64"])
def test_counts_of_any_type_pass(dtype: str):
    assert not_a_count(np.array([[0, 1], [1, 0]], dtype=dtype)) is None
    assert not_a_count(sparse.csr_matrix((3, 2), dtype=dtype)) is None


def test_negative_integers_are_not_counts():
    assert not_a_count(np.array([[1, -2]])) == "the value -2 (negative)"


@settings(deadline=None, max_examples=40)
@given(order=st.permutations(range(9)), as_sparse=st.booleans())
def test_alignment_undoes_any_order_and_drops_other_genes(order: list[int], as_sparse: bool):
    names = pd.Index([*GENES, "other1", "other2", "other3"])
    counts = np.arange(27).reshape(3, 9)
    shuffled: Any = counts[:, order]
    aligned: Any = align_genes(sparse.csr_matrix(shuffled) if as_sparse else shuffled, names[order], GENES)
    np.testing.assert_array_equal(aligned.toarray() if as_sparse else aligned, counts[:, :6])


@pytest.mark.parametrize("as_sparse", [False, True])
def test_missing_genes_are_zero_where_allowed(as_sparse: bool):
    counts = np.array([[1, 2, 3], [4, 5, 6]])
    names = pd.Index(["G4", "other", "G0"])
    aligned: Any = align_genes(sparse.csr_matrix(counts) if as_sparse else counts, names, GENES, fill_missing=True)
    dense = aligned.toarray() if as_sparse else aligned
    np.testing.assert_array_equal(dense, [[3, 0, 0, 0, 1, 0], [6, 0, 0, 0, 4, 0]])


def test_missing_genes_are_counted_and_named():
    with pytest.raises(ValueError, match=r"4 of the model's 6 genes are missing: G1, G2, G3, G5.*fill_missing=True"):
        align_genes(np.ones((2, 2)), pd.Index(["G4", "G0"]), GENES)


def test_no_gene_in_common_is_an_error_that_shows_both_namings():
    with pytest.raises(ValueError, match=r"6 of the model's 6 genes are missing: G0.*named ENSG1, ENSG2"):
        align_genes(np.ones((2, 2)), pd.Index(["ENSG1", "ENSG2"]), GENES, fill_missing=True)


def test_a_gene_of_the_model_must_not_stand_twice():
    names = pd.Index([*GENES, "G3"])
    with pytest.raises(ValueError, match="more than one column: G3"):
        align_genes(np.ones((2, 7)), names, GENES)


def test_another_gene_may_stand_twice():
    names = pd.Index(["other", "other", *GENES])
    aligned: Any = align_genes(np.arange(16).reshape(2, 8), names, GENES)
    np.testing.assert_array_equal(aligned, np.arange(16).reshape(2, 8)[:, 2:])


def test_layers():
    adata = ad.AnnData(np.full((2, 3), 0.5), layers={"counts": np.ones((2, 3)), "norm": np.zeros((2, 3))})
    np.testing.assert_array_equal(counts_of(adata, "counts"), np.ones((2, 3)))
    np.testing.assert_array_equal(counts_of(adata, "X"), counts_of(adata, None))
    with pytest.raises(KeyError, match=r"'raw' is not in adata.layers; layers here are 'counts', 'norm'"):
        counts_of(adata, "raw")


def test_no_matrix_at_all():
    with pytest.raises(KeyError, match=r"adata\.X is empty"):
        counts_of(ad.AnnData(obs=pd.DataFrame(index=["a", "b"])), None)


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="3 spots and 0 genes"):
        check_genes(ad.AnnData(np.zeros((3, 0))))


def test_repeated_genes_are_refused():
    adata = ad.AnnData(np.ones((2, 3)))
    adata.var.index = pd.Index(["a", "b", "b"])
    with pytest.raises(ValueError, match="more than one column: b"):
        check_genes(adata)


def test_columns_that_are_absent_or_incomplete():
    adata = ad.AnnData(np.ones((3, 2)))
    adata.obs["donor"] = ["A", None, "B"]
    with pytest.raises(KeyError, match=r"batch_key 'patient' is not in adata.obs, which has \['donor'\]"):
        check_categories(adata, batch_key="patient")
    with pytest.raises(ValueError, match="1 missing values; labels_key"):
        check_categories(adata, batch_key=None, labels_key="donor")

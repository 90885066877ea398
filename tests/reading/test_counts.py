from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from stcontrast._reading import raw_counts, shared_genes


def table(values, names=None) -> AnnData:
    adata = AnnData(np.asarray(values, dtype=np.float32))
    if names is not None:
        adata.var_names = names
    return adata


def test_the_user_s_counts_are_copied():
    adata = table([[1, 0], [0, 3]])
    adata.X = csr_matrix(adata.X)
    counts = raw_counts(adata, None)
    counts.data[:] = 9
    np.testing.assert_array_equal(adata.X.toarray(), [[1, 0], [0, 3]])


@pytest.mark.parametrize("odd", [-1.0, 0.5, np.nan, np.inf])
def test_what_is_no_count_is_shown(odd):
    with pytest.raises(ValueError, match=r"Raw counts are needed, but `X` holds the value"):
        raw_counts(table([[1, odd]]), None)
    adata = table([[1, odd]])
    adata.layers["counts"] = np.array([[1, 2]])
    np.testing.assert_array_equal(raw_counts(adata, "counts").toarray(), [[1, 2]])
    with pytest.raises(KeyError, match=r"No layer 'raw' in the table; its layers are \['counts'\]"):
        raw_counts(adata, "raw")


def test_genes_that_all_have_in_the_order_of_the_first():
    one, two = table(np.ones((1, 3)), ["a", "b", "c"]), table(np.ones((1, 3)), ["c", "x", "a"])
    assert shared_genes([one, two]) == ["a", "c"]
    assert shared_genes([AnnData(np.ones((2, 0))), one]) == ["a", "b", "c"]
    assert shared_genes([AnnData(np.ones((2, 0)))]) == []
    with pytest.raises(ValueError, match="share 0 genes"):
        shared_genes([one, table(np.ones((1, 1)), ["z"])])
    with pytest.raises(ValueError, match="not unique"):
        shared_genes([table(np.ones((1, 2)), ["a", "a"])])

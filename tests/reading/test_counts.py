from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csc_matrix, csr_matrix

from stcontrast._reading import counts as counts_module
from stcontrast._reading import not_a_count, raw_counts, shared_genes
from tests.synthetic import refuse

if TYPE_CHECKING:
    from collections.abc import Callable


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


@pytest.mark.situation(
    "Counts", "One value among all is negative, fractional, NaN or infinite", "error", "Raw counts are needed, but"
)
@pytest.mark.parametrize("kind", ["dense", "csr", "csc", "dask", "integers", "objects"])
@pytest.mark.parametrize("odd", [-7, 0.5, np.nan, np.inf])
@pytest.mark.parametrize("place", ["X", "layer"])
def test_one_wrong_value_among_many_is_found(kind: str, odd: float, place: str, monkeypatch: pytest.MonkeyPatch):
    """Wherever it is: no part is taken for the whole."""
    monkeypatch.setattr(counts_module, "N_CHECKED", 1000)
    monkeypatch.setattr(counts_module, "N_AT_ONCE", 3000)
    rng = np.random.default_rng(0)
    values = rng.poisson(2.0, (240, 50)).astype(float)
    good = values.copy()
    values[rng.integers(240), rng.integers(50)] = odd
    if kind == "integers":
        if odd != -7:
            pytest.skip("no such integer")
        values, good = values.astype(np.int8), good.astype(np.int8)
    make: dict[str, Callable[[np.ndarray], Any]] = {
        "dense": np.asarray,
        "csr": csr_matrix,
        "csc": csc_matrix,
        "dask": lambda x: da.from_array(x, chunks=(70, 50)),
        "integers": np.asarray,
        "objects": lambda x: x.astype(object),
    }
    adata = AnnData(np.ones((240, 50), dtype=np.float32))
    for matrix, wrong in ((good, False), (values, True)):
        if place == "X":
            adata.X = make[kind](matrix)
        else:
            adata.layers["counts"] = make[kind](matrix)
        layer = None if place == "X" else "counts"
        if wrong:
            where = "X" if place == "X" else r"layers\['counts'\]"
            what = {-7: r"-7 \(negative\)", 0.5: r"0.5 \(not a whole number\)"}.get(odd, rf"{odd} \(not finite\)")
            with pytest.raises(ValueError, match=rf"Raw counts are needed, but `{where}` holds the value {what}"):
                raw_counts(adata, layer)
        else:
            np.testing.assert_array_equal(raw_counts(adata, layer).toarray(), good)


def test_counts_of_arrow_and_nullable_types():
    pa = pytest.importorskip("pyarrow")
    names = [f"s{i}" for i in range(3)]
    for dtype in (pd.ArrowDtype(pa.float64()), pd.ArrowDtype(pa.int32()), "Int64"):
        frame = pd.DataFrame({"a": [1, 2, 3], "b": [0, 4, 0]}, index=names).astype(dtype)
        np.testing.assert_array_equal(raw_counts(AnnData(frame), None).toarray(), [[1, 0], [2, 4], [3, 0]])
        frame.iloc[1, 1] = pd.NA
        with pytest.raises(ValueError, match=r"`X` holds (values that are no numbers|the value nan)"):
            raw_counts(AnnData(frame), None)


@pytest.mark.parametrize("kind", [np.asarray, csr_matrix], ids=["dense", "sparse"])
def test_lazy_counts_are_computed_in_this_process(kind):
    """Not on a cluster, which may not see the files."""
    counts = np.arange(12, dtype=np.float32).reshape(4, 3)
    adata = table(counts)
    adata.X = da.from_array(counts, chunks=(2, 3)).map_blocks(kind)
    with dask.config.set(scheduler=refuse):
        np.testing.assert_array_equal(raw_counts(adata, None).toarray(), counts)


@pytest.mark.parametrize(
    "values", [np.array([["a", "1"]], dtype=object), np.array([[1 + 2j, 0]])], ids=["text", "complex"]
)
def test_what_is_no_number_is_no_count(values: np.ndarray):
    assert not_a_count(values) is not None


@pytest.mark.situation(
    "Counts", "`X` is normalised, and raw counts are in a layer or in `raw`", "error", "holds raw counts"
)
def test_the_message_says_where_counts_are():
    adata = table(np.log1p([[1, 2], [3, 4]]), ["a", "b"])
    with pytest.raises(ValueError, match=r"`layer='counts'`\.$"):
        raw_counts(adata, None)
    adata.raw = table([[1, 2], [3, 4]], ["a", "b"])
    with pytest.raises(ValueError, match=r"`adata\.raw` holds raw counts: `adata\.layers\['counts'\] = adata\.raw\["):
        raw_counts(adata, None)
    adata.layers["counts"] = adata.raw[:, adata.var_names].X
    adata.layers["scaled"] = adata.X - 1
    with pytest.raises(ValueError, match=r"These layers hold raw counts: \['counts'\]"):
        raw_counts(adata, None)
    assert raw_counts(adata, "counts").sum() == 10


def test_genes_that_all_have_in_the_order_of_the_first():
    one, two = table(np.ones((1, 3)), ["a", "b", "c"]), table(np.ones((1, 3)), ["c", "x", "a"])
    assert shared_genes([one, two]) == ["a", "c"]
    assert shared_genes([AnnData(np.ones((2, 0))), one]) == ["a", "b", "c"]
    assert shared_genes([AnnData(np.ones((2, 0)))]) == []
    with pytest.raises(ValueError, match="share 0 genes"):
        shared_genes([one, table(np.ones((1, 1)), ["z"])])
    with pytest.raises(ValueError, match="not unique"):
        shared_genes([table(np.ones((1, 2)), ["a", "a"])])

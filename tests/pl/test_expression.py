from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import stcontrast as stc
from stcontrast.pl._expression import observed_expression

if TYPE_CHECKING:
    from spatialdata import SpatialData


@pytest.mark.parametrize(
    ("gene", "message"),
    [
        ("gene3", r"not among the 10 genes of the prediction.*nor among the 20 measured.*Close matches: \['GENE3'"),
        ("GENE15", r"it was measured, but is not modelled.*Close matches"),
        ("xyz", r"'xyz' is.*The first of them: \['GENE1'"),
    ],
)
def test_unknown_gene(sdata: SpatialData, gene: str, message: str):
    with pytest.raises(KeyError, match=message):
        stc.pl.spatial_pred(sdata, gene, show=False)


def test_layer_of_counts(sdata: SpatialData):
    table = sdata["table"]
    table.layers["counts"] = table.X.copy()
    table.X = table.X.multiply(0.5).tocsr()
    counts = table.layers["counts"].toarray()
    expected = np.log1p(counts[:, 0] / counts.sum(axis=1) * 1e4)
    np.testing.assert_allclose(observed_expression(table, "GENE1", layer="counts"), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"`X` holds no raw counts.*`layer`"):
        stc.pl.spatial_pred(sdata, "GENE1", show=False)
    with pytest.raises(KeyError, match=r"No layer 'raw'.*'counts'"):
        stc.pl.spatial_pred(sdata, "GENE1", layer="raw", show=False)


def test_gene_named_twice(sdata: SpatialData):
    sdata["stc_pred"].var_names = ["GENE1", "GENE1", *sdata["stc_pred"].var_names[2:]]
    with pytest.raises(ValueError, match="var_names_make_unique"):
        stc.pl.spatial_pred(sdata, "GENE1", show=False)


def test_table_without_matrix(sdata: SpatialData):
    sdata["table"].X = None
    with pytest.raises(ValueError, match=r"no `X`.*`layer`"):
        stc.pl.spatial_pred(sdata, "GENE1", show=False)

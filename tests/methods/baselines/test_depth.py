from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import stcontrast as stc
from stcontrast._data import inner_folds
from stcontrast.methods.baselines import Depth
from tests.methods.synthetic import training_data
from tests.tl.toy import bare


def test_it_uses_the_depth_of_a_spot_alone():
    data = training_data()
    method = Depth()
    method.fit(data, inner_folds(data))
    view = data.unseen(depth=True)
    predicted = method.predict_expression(view)
    np.testing.assert_array_equal(
        predicted, method.predict_expression(replace(view, design=np.zeros_like(view.design)))
    )
    # within a slide, every gene is a line in log depth
    depth = np.log1p(view.depth)
    for code in range(3):
        rows = view.slide == code
        for gene in range(5):
            r = np.corrcoef(depth[rows], predicted[rows, gene])[0, 1]
            assert abs(r) == pytest.approx(1, abs=1e-4)


def test_spots_for_other_methods_have_no_depth():
    data = training_data()
    assert not data.unseen().depth.any()
    with pytest.raises(ValueError, match="needs the measured depth"):
        Depth().seen(data.unseen())


def test_moving_counts_between_genes_changes_nothing(caplog):
    sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=20)
    model = stc.tl.fit(sdata, batch_key="donor", label_key="subtype", method="depth")
    new = stc.datasets.toy(n_donors=1, n_spots=40, n_genes=20, seed=1)
    stc.tl.predict_expression(new, model)
    assert "oracle: it uses the measured depth" in caplog.text
    assert model.spec["oracle"]
    before = new["stc_pred"].X.copy()
    table = new["table"]
    table.X = table.X[:, np.random.default_rng(0).permutation(20)]
    stc.tl.predict_expression(new, model)
    np.testing.assert_array_equal(new["stc_pred"].X, before)
    table.X = csr_matrix(table.X.toarray() * np.arange(1, 41, dtype=np.float32)[:, None])
    stc.tl.predict_expression(new, model)
    assert not np.array_equal(new["stc_pred"].X, before)


def test_a_table_without_genes_is_refused():
    sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=20)
    model = stc.tl.fit(sdata, batch_key="donor", method="depth")
    with pytest.raises(ValueError, match="oracle"):
        stc.tl.predict_expression(bare(stc.datasets.toy(n_donors=1, n_spots=40, n_genes=20, seed=1)), model)

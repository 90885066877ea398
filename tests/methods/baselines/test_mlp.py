from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stcontrast._data.folds import inner_folds
from stcontrast.fitted._disk import read_state, write_state
from stcontrast.methods.baselines import Mlp
from stcontrast.metrics import mean_slide_correlation
from tests.methods.synthetic import training_data


def test_it_learns_stops_by_held_out_donors_and_is_saved(tmp_path):
    data, new = training_data(n_spots=60), training_data(n_spots=60, seed=1)
    method = Mlp(max_epochs=30)
    found = method.fit(data, inner_folds(data))
    assert 1 <= method.stop_epoch <= 30
    assert method.network.model.config.n_gene == 0
    assert mean_slide_correlation(found.expression, data.observed, data.slide) > 0.6
    view = new.unseen()
    assert mean_slide_correlation(method.predict_expression(view), new.observed, new.slide) > 0.6
    assert (method.predict_proba(view).argmax(axis=1) == new.label).mean() > 0.8
    write_state(tmp_path, method.state())
    again = Mlp(**method.spec)
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.predict_expression(view), method.predict_expression(view))


def test_labels_alone():
    data = training_data()
    data = replace(data, depth=np.zeros(90))
    method = Mlp(max_epochs=20)
    method.fit(data, inner_folds(data))
    assert (method.predict_proba(data.unseen()).argmax(axis=1) == data.label).mean() > 0.8
    with pytest.raises(ValueError, match="without counts"):
        method.predict_expression(data.unseen())


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="must be at least 1"):
        Mlp(n_hidden=0)

from __future__ import annotations

import numpy as np
import pytest

from stcontrast._files import read_state, write_state
from stcontrast.methods._base import METHODS, get_method
from stcontrast.metrics import mean_slide_correlation
from tests.methods.quick import QUICK
from tests.methods.synthetic import training_data

WITH_A_REGRESSION = ["deepspot", "magic", "mvitgene", "nh2st", "triplex"]
LONGER = {"max_epochs": 20, "batch_size": 32, "learning_rate": 8e-3}


def made(name: str, **options):
    decoder = {"decoder": "regression"} if name in ("magic", "mvitgene", "nh2st") else {}
    return get_method(name, options={**QUICK[name], **decoder, "expression_loss": "rank", **options})


def test_every_trained_regression_has_the_option():
    assert (
        sorted(name for name, kind in METHODS.items() if "expression_loss" in kind.option_names()) == WITH_A_REGRESSION
    )


@pytest.mark.parametrize("name", WITH_A_REGRESSION)
def test_it_learns_differences_and_keeps_the_level(name, tmp_path):
    data, new = training_data(n_spots=40), training_data(n_spots=40, seed=1)
    method = made(name, **LONGER)
    method.fit_parts(data)
    found = method.predict_expression(new.unseen())
    assert mean_slide_correlation(found, new.observed, new.slide) > 0.5
    mean, _ = data.slide_means()
    np.testing.assert_allclose(method.predict_expression(data.unseen()).mean(axis=0), mean, atol=1e-4)
    write_state(tmp_path, method.state())
    again = METHODS[name](**method.spec)
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.predict_expression(new.unseen()), found)


def test_it_is_another_training():
    data = training_data()
    found = []
    for loss in ("squared", "rank"):
        method = made("triplex", expression_loss=loss)
        method.fit_parts(data)
        found.append(method.predict_expression(data.unseen()))
    assert not np.allclose(*found)


@pytest.mark.parametrize("decoder", ["retrieval", "regression"])
def test_fitting_again_with_other_spots_forgets_the_level(decoder):
    one, other = training_data(), training_data(seed=3)
    method, fresh = made("nh2st", decoder=decoder), made("nh2st", decoder=decoder)
    method.fit_parts(one)
    method.fit_parts(other)
    fresh.fit_parts(other)
    np.testing.assert_array_equal(method.predict_expression(one.unseen()), fresh.predict_expression(one.unseen()))

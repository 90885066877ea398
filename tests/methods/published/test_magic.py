from __future__ import annotations

import logging

import numpy as np
import pytest

from stcontrast.methods._base import get_method
from stcontrast.methods.published import Magic
from tests.methods.quick import CONTRASTIVE
from tests.methods.synthetic import training_data


def test_the_settings_of_albef():
    options = Magic().options
    assert (options.momentum, options.distillation, options.temperature, options.learn_temperature) == (
        0.995,
        0.4,
        0.07,
        True,
    )
    assert (options.n_embedding, options.learning_rate, options.weight_decay) == (256, 1e-4, 0.02)


def test_the_decoder_predicts_unless_retrieval_is_asked_for():
    data = training_data()
    own, retrieving = Magic(**CONTRASTIVE["magic"]), Magic(**CONTRASTIVE["magic"], decoder="retrieval", k=10)
    for method in (own, retrieving):
        method.fit_parts(data)
    assert retrieving.neighbors(data.unseen()).ids.shape == (90, 10)
    with pytest.raises(ValueError, match="no neighbours to show"):
        own.neighbors(data.unseen())
    mean, _ = data.slide_means()
    expected = own._apply(own._table(data.unseen()), "regress") + mean
    np.testing.assert_allclose(own.predict_expression(data.unseen()), expected, atol=1e-5)


def test_the_same_seed_gives_the_same_model():
    data = training_data()
    found = []
    for seed in (0, 0, 1):
        method = Magic(**CONTRASTIVE["magic"], seed=seed)
        method.fit_parts(data)
        found.append(method.predict_expression(data.unseen()))
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


def test_a_contrast_that_learns_nothing_is_warned_of(caplog):
    options = {**CONTRASTIVE["magic"], "max_epochs": 11, "learning_rate": 0.0, "temperature": 100.0}
    with caplog.at_level(logging.WARNING):
        Magic(**options, learn_temperature=False).fit_parts(training_data(n_spots=16))
    assert "image and genes are not being aligned" in caplog.text
    caplog.clear()
    options |= {"learning_rate": 3e-3, "temperature": 0.1, "queue_size": 0}
    with caplog.at_level(logging.WARNING):
        Magic(**options).fit_parts(training_data(n_spots=16))
    assert "not being aligned" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "`momentum` must be a finite number of at least 0 and below 1"),
        ({"queue_size": -1}, "`queue_size` must be a whole number of at least 0"),
        ({"distillation": 1.5}, "`distillation` must be a finite number of at least 0 and of at most 1"),
        ({"n_embedding": 20, "n_heads": 8}, "multiple of `n_heads`, found 20 and 8"),
        ({"negatives": "within-slide"}, "Unknown negatives 'within-slide'. Valid options are 'all'"),
        ({"n_fields": 0}, "`n_fields` must be a whole number of at least 1"),
    ],
)
def test_options_are_checked_before_any_work(options, message):
    with pytest.raises(ValueError, match=message):
        get_method("magic", options=options)

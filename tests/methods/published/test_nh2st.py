from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stcontrast.methods.published import Nh2st
from tests.methods.quick import CONTRASTIVE
from tests.methods.synthetic import training_data


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_neighbours_enter_the_prediction_in_the_paper_alone(variant):
    data = training_data()
    method = Nh2st(**CONTRASTIVE["nh2st"], variant=variant)
    method.fit_parts(data)
    design = data.design.copy()
    first = np.flatnonzero(data.slide == 0)[0]
    others = np.setdiff1d(np.arange(90), first)
    design[others] += np.random.default_rng(0).normal(size=design[others].shape).astype(np.float32)
    changed = replace(data.unseen(), design=design)
    before, after = (method.predict_expression(view)[first] for view in (data.unseen(), changed))
    assert np.allclose(before, after, atol=1e-6) == (variant == "code")


def test_the_published_configuration():
    options = Nh2st().options
    assert Nh2st.n_nearest == 9
    assert (options.n_embedding, options.n_layers, options.n_heads, options.dropout) == (512, 1, 8, 0.5)
    assert (options.temperature, options.query_weight, options.neighbor_weight) == (0.05, 1.0, 0.5)
    assert (options.learning_rate, options.decoder, options.variant) == (5e-4, "regression", "paper")


def test_the_code_is_trained_as_published():
    assert (Nh2st(variant="code").options.batch_size, Nh2st(variant="code").options.max_epochs) == (8, 200)
    given = Nh2st(variant="code", batch_size=16, max_epochs=3).options
    assert (given.batch_size, given.max_epochs) == (16, 3)
    assert (Nh2st().options.batch_size, Nh2st().options.max_epochs) == (64, 50)
    adam, schedule = Nh2st(variant="code").optimizer(Nh2st().build(n_image=3, n_gene=2, n_targets=2))
    rates = []
    for _ in range(101):
        rates.append(adam.param_groups[0]["lr"])
        adam.step()
        schedule.step()
    np.testing.assert_allclose([rates[0], rates[49], rates[50], rates[100]], [5e-4, 5e-4, 4.5e-4, 4.05e-4])


def test_it_can_retrieve_too():
    data = training_data()
    method = Nh2st(**CONTRASTIVE["nh2st"], decoder="retrieval", k=10)
    method.fit_parts(data)
    assert method.neighbors(data.unseen()).ids.shape == (90, 10)
    own = Nh2st(**CONTRASTIVE["nh2st"])
    own.fit_parts(data)
    with pytest.raises(ValueError, match="no neighbours to show"):
        own.neighbors(data.unseen())


def test_the_losses_of_both_scales_are_noted():
    names = {}
    for variant in ("paper", "code"):
        method = Nh2st(**CONTRASTIVE["nh2st"], variant=variant)
        method.fit_parts(training_data())
        names[variant] = set(method.history.columns)
    assert names["paper"] >= {"contrastive", "neighbourhood", "expression"}
    assert names["code"] >= {"query", "neighbourhood", "expression"}


def test_what_fast_stands_for():
    def how(**options):
        made = Nh2st(**options).options
        return made.n_embedding, made.batch_size, made.max_epochs

    assert how() == (512, 64, 50)
    assert how(fast=True) == (256, 64, 50)
    assert how(variant="code") == (512, 8, 200)
    assert how(variant="code", fast=True) == (256, 64, 50)
    assert how(variant="code", fast=True, n_embedding=32, batch_size=5) == (32, 5, 50)
    again = Nh2st(**Nh2st(variant="code", fast=True, max_epochs=3).spec).options
    assert (again.n_embedding, again.batch_size, again.max_epochs) == (256, 64, 3)
    with pytest.raises(ValueError, match="`fast` must be True or False"):
        Nh2st(fast="yes")

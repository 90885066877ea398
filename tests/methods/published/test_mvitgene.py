from __future__ import annotations

import numpy as np
import pytest

from stcontrast.methods._base import get_method
from stcontrast.methods.published import Mvitgene
from tests.methods.quick import CONTRASTIVE
from tests.methods.synthetic import training_data


def test_the_published_settings():
    options = Mvitgene().options
    assert (options.n_embedding, options.dropout, options.temperature, options.bandwidth) == (256, 0.55, 0.3, 0.2)
    assert (options.learning_rate, options.weight_decay, options.batch_size, options.k) == (1e-3, 1e-2, 128, 50)


def test_the_rate_falls_along_half_a_cosine_and_stays():
    method = Mvitgene(max_epochs=10, n_embedding=4)
    adam, schedule = method.optimizer(method.build(n_image=3, n_gene=2, n_targets=2))
    rates = []
    for _ in range(15):
        rates.append(adam.param_groups[0]["lr"])
        adam.step()
        schedule.step()
    expected = [1e-6 + (1e-3 - 1e-6) * (1 + np.cos(np.pi * min(epoch, 10) / 10)) / 2 for epoch in range(15)]
    np.testing.assert_allclose(rates, expected)


def test_a_rate_below_the_least_does_not_rise():
    method = Mvitgene(learning_rate=1e-8, n_embedding=4)
    adam, schedule = method.optimizer(method.build(n_image=3, n_gene=2, n_targets=2))
    adam.step()
    schedule.step()
    assert adam.param_groups[0]["lr"] == pytest.approx(1e-8)


def test_retrieval_or_its_own_regression():
    data = training_data()
    retrieving, regressing = (Mvitgene(**CONTRASTIVE["mvitgene"], decoder=name) for name in ("retrieval", "regression"))
    for method in (retrieving, regressing):
        method.fit_parts(data)
    assert retrieving.neighbors(data.unseen()).ids.shape == (90, 50)
    with pytest.raises(ValueError, match="no neighbours to show"):
        regressing.neighbors(data.unseen())
    mean, _ = data.slide_means()
    expected = regressing._apply(regressing._table(data.unseen()), "regress") + mean
    np.testing.assert_allclose(regressing.predict_expression(data.unseen()), expected, atol=1e-5)


@pytest.mark.parametrize("part", ["contrastive", "soft", "second", "expression"])
def test_every_loss_teaches_what_it_should(part):
    data = training_data(n_spots=20)
    zero = {f"{name}_weight": 0.0 for name in ("contrastive", "soft", "second", "expression")}
    options = {**CONTRASTIVE["mvitgene"], **zero, "weight_decay": 0.0}
    still, taught = Mvitgene(**options), Mvitgene(**options | {f"{part}_weight": 1.0})
    weights = []
    for method in (still, taught):
        method.fit_parts(data)
        weights.append({name: value.numpy() for name, value in method.module.state_dict().items()})
    moved = {name.split(".")[0] for name, value in weights[0].items() if not np.array_equal(value, weights[1][name])}
    expected = {
        "contrastive": {"image_heads", "gene_head"}, "soft": {"image_heads", "gene_head"},
        "second": {"gene_head", "second"}, "expression": {"image_heads", "decoder"},
    }  # fmt: skip
    assert moved == expected[part]
    assert {"contrastive", "soft", "second", "expression", "chance"} <= set(taught.history)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "similarity_target"}, "Unknown loss 'similarity_target'. Valid options are 'info_nce'"),
        ({"normalize": False}, "Unknown normalize False. Valid options are True"),
        ({"n_fields": 0}, "`n_fields` must be a whole number of at least 1, found 0"),
        ({"bandwidth": 0.0}, "`bandwidth` must be a finite number above 0"),
        ({"soft_weight": -1.0}, "`soft_weight` must be a finite number of at least 0"),
        ({"n_embedding": 1}, "`n_embedding` must be a whole number of at least 2"),
        ({"expression_loss": "hinge"}, "Unknown expression_loss 'hinge'. Valid options are 'squared', 'rank'"),
        ({"decoder": "vae"}, "has no decoder 'vae'"),
    ],
)
def test_options_are_checked_before_any_work(options, message):
    with pytest.raises(ValueError, match=message):
        get_method("mvitgene", options=options)

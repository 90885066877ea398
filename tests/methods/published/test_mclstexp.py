from __future__ import annotations

import numpy as np
import pytest
import torch

from stcontrast._files import read_state, write_state
from stcontrast.methods.published import Mclstexp
from tests.methods.quick import CONTRASTIVE
from tests.methods.synthetic import training_data


def test_the_published_defaults():
    options = Mclstexp().options
    assert (options.n_layers, options.n_heads, options.n_per_head) == (2, 8, 64)
    assert (options.n_embedding, options.dropout) == (256, 0.0)
    assert (options.loss, options.normalize, options.temperature) == ("info_nce", False, 1.0)
    assert (options.learning_rate, options.weight_decay, options.batch_size) == (1e-4, 1e-3, 128)
    assert (options.decoder, options.k, options.metric) == ("retrieval", 200, "cosine")
    assert (options.weights, options.weight_metric) == ("inverse_square", "l2")


def test_the_embedding_of_a_slide_does_not_depend_on_the_others():
    data = training_data()
    method = Mclstexp(**CONTRASTIVE["mclstexp"])
    method.fit_parts(data)
    whole = method.embed(data)["X_stc_gene"]
    rows = np.flatnonzero(data.slide == 1)
    np.testing.assert_allclose(method.embed(data.take(rows))["X_stc_gene"], whole[rows], atol=1e-5)
    order = np.concatenate([np.flatnonzero(data.slide == code) for code in (2, 0, 1)])
    np.testing.assert_allclose(method.embed(data.take(order))["X_stc_gene"], whole[order], atol=1e-5)


def test_spots_of_a_slide_inform_one_another():
    data = training_data()
    method = Mclstexp(**CONTRASTIVE["mclstexp"])
    method.fit_parts(data)
    whole = method.embed(data)["X_stc_gene"]
    part = np.flatnonzero(data.slide == 1)[:20]
    assert not np.allclose(method.embed(data.take(part))["X_stc_gene"], whole[part], atol=1e-5)


def test_a_long_slide_is_cut():
    data = training_data(n_spots=50)
    method = Mclstexp(**CONTRASTIVE["mclstexp"], max_sequence=20)
    method.fit_parts(data)
    parts = method.module.evaluation_batches(method._table(data, gene=data.target), 16)
    assert max(len(part) for part in method.module._sequences(method._table(data, gene=data.target))) <= 20
    assert sorted(np.concatenate([part.numpy() for part in parts])) == list(range(150))
    assert np.isfinite(method.embed(data)["X_stc_gene"]).all()


def test_some_spots_of_a_slide_are_what_they_are_among_all():
    data = training_data()
    method = Mclstexp(**CONTRASTIVE["mclstexp"])
    method.fit_parts(data)
    table = method._table(data, gene=data.target)
    whole = method.module.embed_genes(table, torch.arange(90))
    rows = torch.tensor([70, 3, 31])
    torch.testing.assert_close(method.module.embed_genes(table, rows), whole[rows])


def test_the_width_of_the_transformer():
    sizes = {"n_image": 3, "n_gene": 20, "n_targets": 20}
    widths = [
        method.build(**sizes).transformer.x_position.embedding_dim
        for method in (Mclstexp(), Mclstexp(fast=True), Mclstexp(n_model=7), Mclstexp(fast=True, n_model=7))
    ]
    assert widths == [20, 128, 7, 7]
    assert Mclstexp(**Mclstexp(fast=True, n_model=7).spec).options.n_model == 7


def test_a_narrow_transformer_is_trained_and_saved(tmp_path):
    data = training_data()
    method = Mclstexp(**CONTRASTIVE["mclstexp"], n_model=3)
    method.fit_parts(data)
    write_state(tmp_path, method.state())
    again = Mclstexp(**method.spec)
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.predict_expression(data.unseen()), method.predict_expression(data.unseen()))
    weights = method.module.narrow.weight.detach()
    assert weights.shape == (3, 5)
    expected = method.module.transformer(
        method.module.narrow(method._table(data, gene=data.target).gene[:30]), method._table(data).lattice[:30]
    )
    found = method.module._informed(method._table(data, gene=data.target), torch.arange(30))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fast": 1}, "`fast` must be True or False, found 1"),
        ({"n_model": 0}, "`n_model` must be a whole number of at least 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Mclstexp(**options)

from __future__ import annotations

import numpy as np
import torch

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

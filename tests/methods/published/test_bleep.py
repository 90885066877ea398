from __future__ import annotations

import numpy as np

from stcontrast.methods.published import Bleep
from tests.methods.synthetic import training_data


def test_the_published_defaults():
    options = Bleep().options
    assert (options.n_embedding, options.dropout) == (256, 0.1)
    assert (options.loss, options.targets, options.normalize, options.temperature) == (
        "similarity_target", "embedding", False, 1.0,
    )  # fmt: skip
    assert (options.learning_rate, options.weight_decay, options.batch_size) == (1e-3, 1e-3, 512)
    assert (options.decoder, options.k, options.metric, options.weights) == ("retrieval", 50, "cosine", "uniform")


def test_the_repaired_targets_train_other_towers():
    data = training_data()
    common = {"max_epochs": 3, "n_embedding": 8, "temperature": 0.1, "normalize": True}
    one, other = Bleep(**common), Bleep(targets="input", **common)
    for method in (one, other):
        method.fit_parts(data)
    assert not np.array_equal(one.embed(data)["X_stc_image"], other.embed(data)["X_stc_image"])


def test_the_mean_of_the_nearest_by_cosine():
    data = training_data(n_spots=40)
    method = Bleep(max_epochs=3, n_embedding=8, k=11)
    method.fit_parts(data)
    found = method.embed(data)
    order = np.argsort(-(found["X_stc_image"] @ found["X_stc_gene"].T), axis=1)[:, :11]
    mean, of_spot = data.slide_means()
    expected = (data.target - of_spot + mean)[order].mean(axis=1)
    np.testing.assert_allclose(method.predict_expression(data.unseen()), expected, atol=1e-4)

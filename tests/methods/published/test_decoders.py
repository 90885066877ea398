from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stcontrast._files import read_state, write_state
from stcontrast.methods._linear import RidgePath
from stcontrast.methods.published._decoders import LatentDecoder, RegressionDecoder, RetrievalDecoder
from tests.methods.synthetic import training_data


class Squares:
    """In place of the VAE: a latent that is two columns of the counts, decoded to their squares."""

    def encode(self, spots):
        return spots.counts[:, :2].toarray()

    def decode(self, latent):
        return latent**2


@pytest.fixture
def spots():
    data = training_data()
    rng = np.random.default_rng(0)
    image, gene, query = (rng.normal(size=(n, 4)).astype(np.float32) for n in (90, 90, 7))
    return data, image, gene, query


def test_retrieval_averages_expression_that_is_centred_within_slides(spots, tmp_path):
    data, image, gene, query = spots
    decoder = RetrievalDecoder(k=3, metric="l2", weights="uniform", weight_metric="l2")
    decoder.fit(image, gene, data)
    nearest = np.argsort(((query[:, None] - gene) ** 2).sum(axis=-1), axis=1)[:, :3]
    means = np.stack([data.target[data.slide == code].mean(axis=0) for code in range(3)])
    expected = (data.target - means[data.slide] + means.mean(axis=0))[nearest].mean(axis=1)
    np.testing.assert_allclose(decoder.predict(query), expected, atol=1e-5)
    write_state(tmp_path, decoder.state())
    again = RetrievalDecoder(k=3, metric="l2", weights="uniform", weight_metric="l2")
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.predict(query), decoder.predict(query))


def test_the_level_of_a_slide_does_not_change_the_retrieved_expression(spots):
    data, image, gene, query = spots
    shift = np.array([0.0, 3.0, -3.0], dtype=np.float32)[data.slide, None]
    predictions = []
    for target in (data.target, data.target + shift):
        decoder = RetrievalDecoder(k=5, metric="cosine", weights="similarity", weight_metric="l2")
        decoder.fit(image, gene, replace(data, target=target))
        predictions.append(decoder.predict(query))
    np.testing.assert_allclose(predictions[0], predictions[1], atol=1e-4)


def test_regression_is_ridge_on_the_image_embedding(spots, tmp_path):
    data, image, gene, query = spots
    decoder = RegressionDecoder(penalty=30.0)
    decoder.fit(image, gene, data)
    np.testing.assert_array_equal(decoder.predict(query), RidgePath().fit(image, data).predict(query, 30.0))
    write_state(tmp_path, decoder.state())
    again = RegressionDecoder(penalty=30.0)
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.predict(query), decoder.predict(query))


def test_the_latent_is_regressed_and_decoded(spots):
    data, image, gene, query = spots
    decoder = LatentDecoder(penalty=30.0, latent=Squares())
    decoder.fit(image, gene, data)
    latent = replace(data, target=data.counts[:, :2].toarray())
    expected = RidgePath().fit(image, latent).predict(query, 30.0) ** 2
    np.testing.assert_allclose(decoder.predict(query), expected, rtol=1e-5)

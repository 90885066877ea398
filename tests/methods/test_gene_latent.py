from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stcontrast.methods._gene_latent import GeneLatent
from tests.methods.synthetic import training_data


@pytest.fixture(scope="module")
def fitted():
    data = replace(training_data(), depth=training_data.depth * (np.arange(90) % 6 > 0))
    latent = GeneLatent(n_latent=3, max_epochs=5)
    latent.fit(data)
    return latent, data


def test_decoded_expression_is_per_ten_thousand_of_the_full_library(fitted):
    latent, data = fitted
    decoded = latent.decode(latent.encode(data.counts[:4]))
    # the modelled genes are the whole library here
    assert latent.share == pytest.approx(1.0)
    np.testing.assert_allclose(np.expm1(decoded).sum(axis=1), 1e4, rtol=1e-3)
    half = GeneLatent(n_latent=3, max_epochs=5)
    half.fit(replace(data, depth=2 * data.depth))
    np.testing.assert_allclose(np.expm1(half.decode(half.encode(data.counts[:4]))).sum(axis=1), 5e3, rtol=1e-3)


def test_spots_without_counts_are_not_trained_on(fitted):
    latent, data = fitted
    counts = data.counts.toarray()
    counts[~data.measured] = 77
    again = GeneLatent(n_latent=3, max_epochs=5)
    again.fit(replace(data, counts=type(data.counts)(counts)))
    np.testing.assert_array_equal(again.encode(data.counts[:9]), latent.encode(data.counts[:9]))


def test_saved_and_read_again(fitted, tmp_path):
    latent, data = fitted
    latent.save(tmp_path)
    again = GeneLatent(n_latent=3, max_epochs=5)
    again.load(tmp_path)
    codes = latent.encode(data.counts)
    np.testing.assert_allclose(again.encode(data.counts), codes, atol=1e-6)
    np.testing.assert_allclose(again.decode(codes), latent.decode(codes), atol=1e-5)


def test_before_it_is_fitted(tmp_path):
    latent = GeneLatent(n_latent=3, max_epochs=5)
    latent.save(tmp_path)
    latent.load(tmp_path)
    with pytest.raises(RuntimeError, match="not been fitted with counts"):
        latent.fitted()

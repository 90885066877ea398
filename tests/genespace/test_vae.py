from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stcontrast._files import read_state, write_state
from stcontrast._genespace import VaeSpace
from tests.methods.synthetic import training_data


def made(**options) -> VaeSpace:
    return VaeSpace(n_latent=3, max_epochs=5, **options)


@pytest.fixture(scope="module")
def data():
    data = training_data()
    return replace(data, depth=data.depth * (np.arange(90) % 6 > 0))


@pytest.fixture(scope="module")
def fitted(data):
    latent = made()
    latent.fit(data)
    return latent


def test_decoded_expression_is_per_ten_thousand_of_the_full_library(fitted, data):
    # the modelled genes are the whole library here
    assert fitted.share == pytest.approx(1.0)
    total = np.expm1(fitted.decode(fitted.encode(data))).sum(axis=1)
    np.testing.assert_allclose(total, 1e4, rtol=1e-3)
    half = made()
    half.fit(replace(data, depth=2 * data.depth))
    np.testing.assert_allclose(np.expm1(half.decode(half.encode(data))).sum(axis=1), 5e3, rtol=1e-3)


def test_spots_without_counts_are_not_trained_on(fitted, data):
    counts = data.counts.toarray()
    counts[~data.measured] = 77
    again = made()
    again.fit(replace(data, counts=type(data.counts)(counts)))
    np.testing.assert_array_equal(again.encode(data), fitted.encode(data))


def test_the_latent_has_a_row_for_every_measured_spot(fitted, data):
    latent = fitted.encode(data)
    assert latent.shape == (data.measured.sum(), 3)
    # whole slides: a spot is encoded against its own
    some = data.slide < 2
    part = fitted.encode(data.take(np.flatnonzero(some)))
    np.testing.assert_allclose(part, latent[some[data.measured]], atol=1e-6)


def test_a_spot_is_seen_against_its_slide(fitted, data):
    latent = fitted.encode(data)
    rows = np.flatnonzero(data.measured & (data.slide == 0))
    half = rows[: len(rows) // 2]
    part = fitted.encode(data.take(half))
    assert np.abs(part - latent[np.isin(np.flatnonzero(data.measured), half)]).max() > 0.01


@pytest.mark.parametrize("guided", [False, True])
def test_saved_and_read_again(data, guided, tmp_path):
    """The VAE is built again from names and weights, whether classes guided it or not; some batches are small."""
    data = replace(data, label=np.where(np.arange(90) % 3, data.label, -1))
    latent = made(guided=guided)
    latent.fit(data)
    write_state(tmp_path, latent.state())
    again = made(guided=guided)
    again.restore(read_state(tmp_path))
    codes = latent.encode(data)
    np.testing.assert_allclose(again.encode(data), codes, atol=1e-6)
    np.testing.assert_allclose(again.decode(codes), latent.decode(codes), atol=1e-5)
    assert again.share == latent.share
    vaes = (again.fitted(), latent.fitted())
    assert [list(vae.genes) for vae in vaes] == 2 * [data.genes]
    assert list(vaes[0].classes) == list(vaes[1].classes) == (data.classes if guided else [])


def test_before_it_is_fitted(tmp_path):
    write_state(tmp_path, made().state())
    latent = made()
    latent.restore(read_state(tmp_path))
    with pytest.raises(RuntimeError, match="not been fitted with counts"):
        latent.fitted()

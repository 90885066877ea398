from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np

import stcontrast as stc
from stcontrast.methods.published import Tpirbae
from tests.methods.quick import CONTRASTIVE
from tests.methods.synthetic import training_data

ALL = np.arange(90)


def fitted(data, **options):
    method = Tpirbae(**{**CONTRASTIVE["tpirbae"], **options})
    method.fit_parts(data)
    return method


def test_the_gene_encoder_is_frozen_and_blind_to_the_batch():
    data = training_data()
    method = fitted(data)
    latent = method.embed(data)["X_stc_vae"]
    other = replace(data, batch=np.full(90, "0"), donor=np.full(90, "0"))
    np.testing.assert_array_equal(method.embed(other)["X_stc_vae"], latent)
    # stage 2 left it as stage 1 made it
    again = fitted(data, max_epochs=1)
    np.testing.assert_array_equal(again.embed(data)["X_stc_vae"], latent)


def test_the_gene_tower_gets_a_standardised_latent():
    data = training_data()
    method = fitted(data)
    given, latent = method.gene_input(data), method.embed(data)["X_stc_vae"]
    np.testing.assert_allclose(given.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(given.std(axis=0), 1, atol=1e-4)
    assert np.abs(latent.std(axis=0) - 1).max() > 0.05


def test_the_weight_of_the_classes_is_that_of_embed_genes():
    """A spot has a log-likelihood of hundreds: a weight near 1 would not guide the latent."""
    data = training_data()
    weights = [fitted(data, guided=guided).latent.vae.module.class_weight for guided in (True, False)]
    default = inspect.signature(stc.tl.embed_genes).parameters["class_weight"].default
    assert weights == [50.0, 0.0]
    assert default == 50.0


def test_classes_guide_the_latent_only_if_asked():
    data = training_data()
    other = replace(data, label=1 - data.label)
    plain = [fitted(part).embed(data)["X_stc_vae"] for part in (data, other)]
    np.testing.assert_array_equal(plain[0], plain[1])
    unguided, guided = plain[0], fitted(data, guided=True).embed(data)["X_stc_vae"]
    assert not np.array_equal(unguided, guided)
    some = replace(data, label=np.where(data.donor == "0", data.label, -1))
    assert np.isfinite(fitted(some, guided=True).embed(data)["X_stc_vae"]).all()


def test_guided_without_labels_is_unguided():
    data = replace(training_data(), label=np.full(90, -1))
    latents = [fitted(data, guided=guided).embed(data)["X_stc_vae"] for guided in (True, False)]
    np.testing.assert_array_equal(latents[0], latents[1])


def test_expression_through_the_vae_is_in_the_units_of_the_target():
    data = training_data(n_spots=60)
    counts = data.counts.toarray()
    # the five genes are a tenth of the library
    depth = 10 * counts.sum(axis=1)
    target = np.log1p(1e4 * counts / depth[:, None]).astype(np.float32)
    data = replace(data, depth=depth, target=target, observed=target)
    method = fitted(data, vae_epochs=80, max_epochs=10)
    predicted = method.predict_expression(data.unseen())
    np.testing.assert_allclose(predicted.mean(axis=0), target.mean(axis=0), atol=0.5)
    assert method.latent.share == np.float32(0.1)

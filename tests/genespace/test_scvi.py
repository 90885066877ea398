from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stcontrast._genespace import ScviSpace
from stcontrast._genespace._vae import adata_of
from stcontrast.methods._base import get_method
from tests.methods.synthetic import training_data

DATA = training_data(donors=2, n_spots=40, n_genes=12)


@pytest.fixture(scope="module", params=[False, True], ids=["scVI", "scANVI"])
def space(request: pytest.FixtureRequest) -> ScviSpace:
    made = ScviSpace(n_latent=3, max_epochs=2, guided=request.param)
    made.fit(DATA)
    return made


def test_the_model_is_that_of_scvi_tools(space: ScviSpace) -> None:
    from scvi.model import SCANVI, SCVI

    assert type(space.vae) is (SCANVI if space.guided else SCVI)
    # its own latent of its own spots
    np.testing.assert_allclose(space.encode(DATA), space.vae.get_latent_representation(), rtol=1e-4, atol=1e-5)


def test_expression_is_the_mean_over_batches_of_what_it_generates(space: ScviSpace) -> None:
    latent = space.encode(DATA)[:5]
    module, z = space.vae.module, torch.from_numpy(latent)
    with torch.no_grad():
        of_batch = [
            # with a library of one count
            module.generative(z, torch.zeros(5, 1), torch.full((5, 1), code))["px"].scale.numpy()
            for code in (0, 1)
        ]
    np.testing.assert_allclose(space.decode(latent), np.log1p(1e4 * space.share * np.mean(of_batch, axis=0)), rtol=1e-4)
    assert not np.allclose(*of_batch)


def test_a_spot_s_latent_depends_on_no_other_spot_and_no_batch(space: ScviSpace) -> None:
    some = DATA.take(np.array([3, 50]))
    elsewhere = replace(some, batch=np.array(["new", "new"]), slide=np.array([0, 0]))
    np.testing.assert_allclose(space.encode(elsewhere), space.encode(DATA)[[3, 50]], atol=1e-6)


def test_a_restored_space_is_the_same(space: ScviSpace) -> None:
    other = ScviSpace(n_latent=3, max_epochs=2, guided=space.guided)
    other.restore(space.state())
    latent = space.encode(DATA)
    np.testing.assert_array_equal(other.encode(DATA), latent)
    np.testing.assert_array_equal(other.decode(latent), space.decode(latent))


def test_without_classes_there_is_nothing_to_guide() -> None:
    from scvi.model import SCVI

    space = ScviSpace(n_latent=3, max_epochs=1, guided=True)
    space.fit(replace(DATA, label=np.full(len(DATA), -1)))
    assert type(space.vae) is SCVI
    assert space.losses()["gene VAE"]["elbo"].notna().all()


def test_tpirbae_takes_it() -> None:
    options: dict[str, Any] = {"vae": "scvi-tools", "n_latent": 3, "vae_epochs": 2, "max_epochs": 2}
    method = get_method("tpirbae", options=options)
    method.fit_parts(DATA)
    again = get_method("tpirbae", options=options)
    again.restore(method.state())
    np.testing.assert_array_equal(again.predict_expression(DATA), method.predict_expression(DATA))
    assert set(method.losses()) == {"gene VAE", "contrastive network"}


def test_a_given_seed_makes_the_same_model() -> None:
    made = []
    for _ in range(2):
        state = torch.get_rng_state()
        space = ScviSpace(n_latent=3, max_epochs=1)
        space.fit(DATA)
        made.append(space.encode(DATA))
        assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(made[0], made[1])


def test_the_name_of_spots_without_a_class_is_no_class() -> None:
    data = replace(DATA, classes=["unlabelled", "unlabelled_"], label=np.where(np.arange(80) % 3 == 0, -1, DATA.label))
    space = ScviSpace(n_latent=3, max_epochs=1, guided=True)
    space.fit(data)
    assert space.names["classes"] == ["unlabelled", "unlabelled_"]
    assert space.vae.module.n_labels == 2
    assert adata_of(data.counts, data.batch, data.slide, data.genes).n_obs == 80

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from stcontrast.models import BatchAgnosticVAE
from tests.models.batch_vae.synthetic import N_GENES, make_adata

if TYPE_CHECKING:
    import anndata as ad


def points(n: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


def test_names_of_the_batches(model: BatchAgnosticVAE):
    assert model.batches == ["A", "B", "C"]


@pytest.mark.parametrize("batch", ["A", ["B"], ("A", "C"), None])
def test_proportions_are_positive_and_sum_to_one(model: BatchAgnosticVAE, batch):
    decoded = model.decode_latent(points(), transform_batch=batch)
    assert decoded.shape == (20, N_GENES)
    assert decoded.dtype == np.float32
    assert (decoded >= 0).all()
    np.testing.assert_allclose(decoded.sum(axis=1), 1, rtol=1e-5)


def test_several_batches_are_averaged(model: BatchAgnosticVAE):
    single = {name: model.decode_latent(points(), transform_batch=name) for name in "ABC"}
    np.testing.assert_allclose(
        model.decode_latent(points(), transform_batch=["A", "C"]), (single["A"] + single["C"]) / 2, atol=1e-6
    )
    np.testing.assert_allclose(model.decode_latent(points()), sum(single.values()) / 3, atol=1e-6)
    assert np.abs(single["A"] - single["C"]).max() > 1e-3


def test_is_what_the_decoder_generates(model: BatchAgnosticVAE):
    latent = torch.as_tensor(points())
    with torch.inference_mode():
        generated = model.module.eval().generative(
            # proportions do not depend on the library
            z=latent, library=torch.full((20, 1), 3.0), batch_index=torch.full((20, 1), 1)
        )  # fmt: skip
    np.testing.assert_allclose(
        model.decode_latent(latent.numpy(), transform_batch="B"), generated["px"].scale.numpy(), atol=1e-6
    )


@pytest.mark.parametrize("batches", [["A"], ["A", "B", "C"]])
def test_is_the_normalized_expression_of_scvi_at_the_posterior_mean(
    model: BatchAgnosticVAE, monkeypatch: pytest.MonkeyPatch, batches: list[str]
):
    draws = model.module._regular_inference

    def at_the_mean(*args, **kwargs):
        outputs = draws(*args, **kwargs)
        return {**outputs, "z": outputs["qz"].loc}

    monkeypatch.setattr(model.module, "_regular_inference", at_the_mean)
    expected = model.get_normalized_expression(transform_batch=batches, return_numpy=True)
    decoded = model.decode_latent(model.get_latent_representation(), transform_batch=batches)
    np.testing.assert_allclose(decoded, expected, atol=1e-6)


def test_latents_of_an_unseen_donor_decode_close_to_its_own_proportions(model: BatchAgnosticVAE, unseen: ad.AnnData):
    counts = unseen.X.toarray()
    decoded = model.decode_latent(model.get_latent_representation(unseen))
    own = counts / counts.sum(axis=1, keepdims=True)
    flat = np.full_like(own, 1 / N_GENES)
    assert np.abs(decoded - own).mean() < 0.7 * np.abs(flat - own).mean()


def test_points_are_decoded_one_by_one(model: BatchAgnosticVAE, monkeypatch: pytest.MonkeyPatch):
    from stcontrast._models.batch_vae import decoding

    whole = model.decode_latent(points())
    np.testing.assert_allclose(model.decode_latent(points()[7:8]), whole[7:8], atol=1e-6)
    monkeypatch.setattr(decoding, "DECODED_AT_ONCE", 3)
    np.testing.assert_allclose(model.decode_latent(points()), whole, atol=1e-6)


def test_no_points(model: BatchAgnosticVAE):
    assert model.decode_latent(np.zeros((0, 6))).shape == (0, N_GENES)


def test_decoding_draws_no_random_numbers_and_leaves_no_gradient(model: BatchAgnosticVAE):
    before = torch.get_rng_state()
    first, second = model.decode_latent(points()), model.decode_latent(points())
    np.testing.assert_array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.module.training


def test_unknown_batches(model: BatchAgnosticVAE):
    with pytest.raises(ValueError, match=r"batches \['D'\] are not among those trained on: \['A', 'B', 'C'\]"):
        model.decode_latent(points(), transform_batch=["A", "D"])
    with pytest.raises(ValueError, match=r"batches \['AB'\] are not among"):
        model.decode_latent(points(), transform_batch="AB")
    with pytest.raises(ValueError, match="are not among those trained on"):
        model.decode_latent(points(), transform_batch=[])


@pytest.mark.parametrize("shape", [(5,), (4, 5), (4, 7), (2, 3, 6)])
def test_latents_of_another_shape(model: BatchAgnosticVAE, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="the model has 6 dimensions, one per column"):
        model.decode_latent(np.zeros(shape))


def test_a_model_that_has_not_been_trained():
    adata = make_adata("AB", n_spots=5)
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    untrained = BatchAgnosticVAE(adata, n_latent=6, n_hidden=8)
    with pytest.raises(RuntimeError, match="train"):
        untrained.decode_latent(points())


def test_without_a_batch_there_is_one():
    adata = make_adata("A", n_spots=20)
    BatchAgnosticVAE.setup_anndata(adata)
    single = BatchAgnosticVAE(adata, n_latent=6, n_hidden=8)
    single.train(max_epochs=1)
    (only,) = single.batches
    np.testing.assert_array_equal(single.decode_latent(points()), single.decode_latent(points(), transform_batch=only))


def test_a_loaded_model_decodes_without_its_data(model: BatchAgnosticVAE, tmp_path):
    model.save(tmp_path / "model")
    loaded = BatchAgnosticVAE.load(tmp_path / "model")
    assert loaded.batches == ["A", "B", "C"]
    np.testing.assert_allclose(loaded.decode_latent(points()), model.decode_latent(points()), atol=1e-6)

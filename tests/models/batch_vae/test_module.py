from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scvi import REGISTRY_KEYS

from stcontrast._models.batch_vae import BatchAgnosticVAEModule

N_GENES, N_BATCH = 12, 3


def make_module(**kwargs: Any) -> BatchAgnosticVAEModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BatchAgnosticVAEModule(N_GENES, n_batch=N_BATCH, n_labels=1, n_hidden=16, n_latent=4, **kwargs)


def make_tensors(n_spots: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        REGISTRY_KEYS.X_KEY: torch.poisson(3 * torch.rand(n_spots, N_GENES, generator=generator), generator=generator),
        REGISTRY_KEYS.BATCH_KEY: torch.randint(N_BATCH, (n_spots, 1), generator=generator),
        REGISTRY_KEYS.LABELS_KEY: torch.zeros(n_spots, 1, dtype=torch.long),
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encode_covariates", True),
        ("latent_distribution", "ln"),
        ("use_observed_lib_size", False),
        ("use_batch_norm", "encoder"),
        ("use_batch_norm", "both"),
    ],
)
def test_options_that_show_the_batch_to_the_encoder_are_refused(name: str, value: object):
    with pytest.raises(TypeError, match=rf"{name} is .*: "):
        make_module(**{name: value})


def test_the_fixed_values_may_be_spelled_out():
    make_module(encode_covariates=False, latent_distribution="normal", use_observed_lib_size=True)


def test_no_batch_statistics_anywhere_by_default():
    assert not any(isinstance(layer, torch.nn.BatchNorm1d) for layer in make_module().modules())
    with_decoder = make_module(use_batch_norm="decoder")
    assert not any(isinstance(layer, torch.nn.BatchNorm1d) for layer in with_decoder.z_encoder.modules())
    assert any(isinstance(layer, torch.nn.BatchNorm1d) for layer in with_decoder.decoder.modules())


@settings(deadline=None, max_examples=25)
@given(codes=st.lists(st.integers(0, N_BATCH - 1), min_size=9, max_size=9), n_layers=st.integers(1, 2))
def test_posterior_is_the_same_whatever_the_batch_codes(codes: list[int], n_layers: int):
    module, tensors = make_module(n_layers=n_layers).eval(), make_tensors()
    other = {**tensors, REGISTRY_KEYS.BATCH_KEY: torch.tensor(codes).unsqueeze(1)}
    posteriors = [module.inference(**module._get_inference_input(t))["qz"] for t in (tensors, other)]
    assert torch.equal(posteriors[0].loc, posteriors[1].loc)
    assert torch.equal(posteriors[0].scale, posteriors[1].scale)


def test_no_gradient_of_the_posterior_reaches_the_batch():
    module, tensors = make_module().eval(), make_tensors()
    mean, _ = module.encode(tensors[REGISTRY_KEYS.X_KEY])
    mean.sum().backward()
    assert all(parameter.grad is None for parameter in module.decoder.parameters())


def test_the_decoder_does_see_the_batch():
    module, tensors = make_module().eval(), make_tensors()
    outputs = module.inference(**module._get_inference_input(tensors))
    inputs = module._get_generative_input(tensors, outputs)
    rates = [module.generative(**inputs, transform_batch=torch.tensor(b))["px"].mean for b in (0, 1)]
    assert (rates[0] - rates[1]).abs().max() > 1e-3


def test_encode_is_what_inference_computes():
    module, tensors = make_module().eval(), make_tensors()
    mean, variance = module.encode(tensors[REGISTRY_KEYS.X_KEY])
    posterior = module.inference(**module._get_inference_input(tensors))["qz"]
    assert torch.equal(mean, posterior.loc)
    assert torch.equal(variance, posterior.variance)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_an_empty_spot_has_finite_latent_loss_and_gradients(likelihood: str):
    module, tensors = make_module(gene_likelihood=likelihood), make_tensors()
    tensors[REGISTRY_KEYS.X_KEY][4] = 0
    mean, variance = module.encode(tensors[REGISTRY_KEYS.X_KEY])
    assert mean.isfinite().all()
    assert variance.isfinite().all()
    _, _, losses = module(tensors)
    losses.loss.backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert losses.loss.isfinite()
    assert len(gradients) > 5
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_loss_is_that_of_scvi_given_the_same_weights(dispersion: str):
    from scvi.module import VAE

    ours = make_module(dispersion=dispersion).eval()
    sizes = {"n_input": N_GENES, "n_batch": N_BATCH, "n_labels": 1, "n_hidden": 16, "n_latent": 4}
    norms = {"use_batch_norm": "none", "use_layer_norm": "both"}
    theirs = VAE(**sizes, **norms, gene_likelihood="nb", dispersion=dispersion).eval()
    missing, _ = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert all(name.startswith(("l_encoder", "decoder.px_dropout")) for name in missing)
    tensors = make_tensors()
    tensors[REGISTRY_KEYS.X_KEY][0, 0] = 500
    losses = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        losses.append(module(tensors)[2])
    torch.testing.assert_close(losses[0].loss, losses[1].loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses[0].kl_local["kl_divergence_z"], losses[1].kl_local["kl_divergence_z"])


def test_the_adversary_learns_and_the_encoder_works_against_it():
    # one latent value is the batch: the adversary's gradient must lower its loss, and the encoder's raise it
    module, tensors = make_module(adversarial_weight=3.0), make_tensors()
    assert module.adversary is not None
    plain = make_module()

    def gradients(module: BatchAgnosticVAEModule) -> tuple[dict[str, torch.Tensor], float]:
        module.zero_grad()
        torch.manual_seed(0)
        inference = module.eval().inference(**module._get_inference_input(tensors))
        generative = module.generative(**module._get_generative_input(tensors, inference))
        losses = module.loss(tensors, inference, generative)
        losses.loss.backward()
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}, losses.loss.item()

    plain.load_state_dict(module.state_dict(), strict=False)
    (with_adversary, loss), (without, plain_loss) = gradients(module), gradients(plain)
    torch.manual_seed(0)
    z = module.inference(**module._get_inference_input(tensors))["z"]
    batch = tensors[REGISTRY_KEYS.BATCH_KEY].flatten()
    entropy = torch.nn.functional.cross_entropy(module.adversary(z), batch)
    assert loss == pytest.approx(plain_loss + entropy.item(), rel=1e-6)
    module.zero_grad()
    entropy.backward()
    for name, parameter in module.named_parameters():
        if parameter.grad is None:
            continue
        if name.startswith("adversary"):
            torch.testing.assert_close(with_adversary[name], parameter.grad)
        else:
            torch.testing.assert_close(
                with_adversary[name] - without[name], -3.0 * parameter.grad, atol=1e-4, rtol=1e-3
            )


def test_no_adversary_by_default_or_for_one_batch():
    assert make_module().adversary is None
    with torch.random.fork_rng():
        assert BatchAgnosticVAEModule(N_GENES, n_batch=1, adversarial_weight=1.0).adversary is None

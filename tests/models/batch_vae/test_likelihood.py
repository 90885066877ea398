from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scvi.distributions import NegativeBinomial

from stcontrast._models.batch_vae.likelihood import CountNegativeBinomial, Entries

N_SPOTS, N_GENES = 7, 5


def make(seed: int, largest: int, log_theta: float, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Counts, logits, logarithm of the library, logarithm of theta, weight of each spot."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, largest + 1, size=(N_SPOTS, N_GENES)) * rng.integers(0, 2, size=(N_SPOTS, N_GENES))
    values = (
        counts,
        rng.normal(scale=2.0, size=counts.shape),
        np.log(np.maximum(counts.sum(1, keepdims=True), 1)),
        log_theta + rng.normal(size=N_GENES),
        rng.uniform(0.1, 1.0, size=N_SPOTS),
    )
    return tuple(torch.tensor(value, dtype=dtype) for value in values)


def ours(
    counts: torch.Tensor, logits: torch.Tensor, log_library: torch.Tensor, log_theta: torch.Tensor
) -> torch.Tensor:
    distribution = CountNegativeBinomial(logits=logits, log_library=log_library, theta=log_theta.exp())
    return distribution.log_prob_of_spots(Entries.of(counts))


def scvi(
    counts: torch.Tensor, logits: torch.Tensor, log_library: torch.Tensor, log_theta: torch.Tensor
) -> torch.Tensor:
    mu = log_library.exp() * torch.softmax(logits, dim=-1)
    return NegativeBinomial(mu=mu, theta=log_theta.exp()).log_prob(counts).sum(-1)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    largest=st.sampled_from([0, 1, 5, 63, 64, 65, 300, 20_000]),
    log_theta=st.floats(-4, 6),
)
def test_value_and_gradients_are_those_of_scvi(seed: int, largest: int, log_theta: float):
    counts, *parameters, weight = make(seed, largest, log_theta, torch.float64)
    found = []
    for of in (ours, scvi):
        leaves = [parameter.clone().requires_grad_() for parameter in parameters]
        value = of(counts, *leaves)
        found.append([value.detach(), *torch.autograd.grad((value * weight).sum(), leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_the_slope_of_the_value():
    # without zero counts and with the library size free, so that every branch has a slope
    counts, *parameters, _ = make(1, 200, 0.5, torch.float64)
    entries = Entries.of(counts + 1)

    def value(logits: torch.Tensor, log_library: torch.Tensor, log_theta: torch.Tensor) -> torch.Tensor:
        px = CountNegativeBinomial(logits=logits, log_library=log_library, theta=log_theta.exp())
        return px.log_prob_of_spots(entries)

    assert torch.autograd.gradcheck(value, [parameter.requires_grad_() for parameter in parameters])


def test_single_precision_equals_log_gamma_to_five_digits():
    rng = np.random.default_rng(0)
    counts = torch.tensor(rng.poisson(rng.gamma(0.3, 8.0, size=(200, 500))), dtype=torch.float64)
    logits, log_theta = torch.tensor(rng.normal(size=(200, 500))), torch.tensor(rng.normal(size=500))
    log_library = counts.sum(1, keepdim=True).log()
    found = []
    for of, dtype in ((ours, torch.float32), (scvi, torch.float64)):
        leaves = [v.to(dtype).requires_grad_() for v in (logits, log_library, log_theta)]
        value = of(counts.to(dtype), *leaves)
        found.append([value.detach().double(), *(g.double() for g in torch.autograd.grad(value.sum(), leaves))])
    for a, b in zip(*found, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5


def test_an_empty_minibatch_entry_for_entry():
    counts, *parameters, _ = make(0, 0, 0.0, torch.float64)
    torch.testing.assert_close(ours(counts, *parameters), scvi(counts, *parameters))


@pytest.mark.parametrize("n_samples", [None, 2])
def test_entry_by_entry_it_is_the_distribution_of_scvi(n_samples: int | None):
    generator = torch.Generator().manual_seed(0)
    shape = (N_SPOTS, N_GENES) if n_samples is None else (n_samples, N_SPOTS, N_GENES)
    logits = torch.randn(shape, generator=generator)
    log_library = torch.randn((*shape[:-1], 1), generator=generator)
    theta = torch.rand(N_GENES, generator=generator) + 0.1
    counts = torch.randint(0, 100, shape[-2:], generator=generator).float()
    found = CountNegativeBinomial(logits=logits, log_library=log_library, theta=theta)
    expected = NegativeBinomial(mu=log_library.exp() * logits.softmax(-1), theta=theta, scale=logits.softmax(-1))
    for name in ("mean", "variance", "scale"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    torch.testing.assert_close(found.log_prob(counts), expected.log_prob(counts))
    for seed in (0, 1):
        torch.manual_seed(seed)
        a = found.sample()
        torch.manual_seed(seed)
        assert torch.equal(a, expected.sample())


def test_entries_are_what_is_not_zero():
    counts = torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 2.0]])
    found = [values.tolist() for values in Entries.of(counts)]
    assert found == [[0, 1, 1], [1, 0, 2], [1, 3, 5], [3.0, 1.0, 2.0]]

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scvi.distributions import NegativeBinomial

from stcontrast.models.batch_vae._likelihood import CountNegativeBinomial


def value_and_gradients(cls: type, counts: torch.Tensor, mu: torch.Tensor, theta: torch.Tensor) -> list[torch.Tensor]:
    mu, theta = mu.clone().requires_grad_(), theta.clone().requires_grad_()
    log_prob = cls(mu=mu, theta=theta).log_prob(counts)
    log_prob.sum().backward()
    assert mu.grad is not None
    assert theta.grad is not None
    return [log_prob.detach(), mu.grad, theta.grad]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    largest=st.sampled_from([0, 1, 5, 63, 64, 65, 300, 20_000]),
    log_theta=st.floats(-4, 6),
)
def test_value_and_gradients_are_those_of_scvi(seed: int, largest: int, log_theta: float):
    rng = np.random.default_rng(seed)
    counts = torch.tensor(rng.integers(0, largest + 1, size=(7, 5)), dtype=torch.float64)
    mu = torch.tensor(rng.gamma(1.0, largest + 1, size=(7, 5))) + 1e-3
    theta = torch.tensor(np.exp(log_theta + rng.normal(size=5)))
    ours = value_and_gradients(CountNegativeBinomial, counts, mu, theta)
    theirs = value_and_gradients(NegativeBinomial, counts, mu, theta)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_single_precision_is_as_good_as_log_gamma():
    rng = np.random.default_rng(0)
    counts = torch.tensor(rng.poisson(rng.gamma(0.5, 40.0, size=(200, 50))), dtype=torch.float64)
    mu, theta = torch.full((200, 50), 20.0, dtype=torch.float64), torch.linspace(0.05, 50.0, 50, dtype=torch.float64)
    exact = NegativeBinomial(mu=mu, theta=theta).log_prob(counts)
    ours = CountNegativeBinomial(mu=mu.float(), theta=theta.float()).log_prob(counts.float())
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)


def test_several_samples_of_the_mean():
    counts, theta = torch.randint(0, 100, (4, 3)).float(), torch.rand(3) + 0.1
    mu = torch.rand(2, 4, 3) + 0.1
    torch.testing.assert_close(
        CountNegativeBinomial(mu=mu, theta=theta).log_prob(counts),
        NegativeBinomial(mu=mu, theta=theta).log_prob(counts),
        rtol=1e-4,
        atol=1e-4,
    )

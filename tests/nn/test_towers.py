from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import erf

from stcontrast._training import seeded
from stcontrast.nn import ProjectionHead


def head(**options) -> ProjectionHead:
    with seeded(0):
        made = ProjectionHead(5, 4, **options)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter)
    return made.double()


def test_head_by_hand():
    made = head().eval()
    w = {name: value.detach().numpy() for name, value in made.named_parameters()}
    x = np.random.default_rng(0).normal(size=(7, 5))
    p = x @ w["projection.weight"].T + w["projection.bias"]
    gelu = p * (1 + erf(p / np.sqrt(2))) / 2
    summed = gelu @ w["hidden.weight"].T + w["hidden.bias"] + p
    centred = summed - summed.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    expected = normed * w["norm.weight"] + w["norm.bias"]
    with torch.no_grad():
        np.testing.assert_allclose(made(torch.as_tensor(x)).numpy(), expected, atol=1e-9)


def test_embeddings_have_length_root_d():
    with seeded(0):
        made = ProjectionHead(30, 256).eval()
        lengths = made(torch.randn(50, 30)).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((50,), 16.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dropout", ["dropout", "input_dropout"])
def test_each_dropout_acts_in_training_only(dropout):
    made = head(**{"dropout": 0.0, "input_dropout": 0.0, dropout: 0.5})
    x = torch.ones(3, 5, dtype=torch.float64)
    with seeded(1):
        made.train()
        assert not torch.equal(made(x), made(x))
        made.eval()
        assert torch.equal(made(x), made(x))

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from stcontrast._models.image_tower.augment import augment
from stcontrast._models.image_tower.training import cached_backward
from stcontrast.nn import info_nce


class Tower(nn.Module):
    """Convolution and dropout on augmented crops."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3)
        )

    def forward(self, crops: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return self.layers(augment(crops, stain=0.2, color=0.2)[:, 0])


@pytest.mark.parametrize("micro_batch", [1, 4, 5, 12])
def test_gradients_are_those_of_one_pass_over_the_whole_batch(micro_batch: int) -> None:
    torch.manual_seed(0)
    crops, gene = torch.rand(12, 1, 3, 8, 8), torch.randn(12, 4)
    tower, head = Tower(), nn.Linear(6, 4)
    parts = [partial(tower, part, seed) for seed, part in enumerate(crops.split(micro_batch))]

    def loss(features: Tensor) -> Tensor:
        # not a sum over spots: every one has the others as negatives
        return info_nce(gene, head(features), temperature=0.1)

    def backward(features: Tensor) -> Tensor:
        whole = features.requires_grad_()
        loss(whole).backward()
        assert whole.grad is not None
        return whole.grad

    weights = [*tower.parameters(), *head.parameters()]
    expected = torch.autograd.grad(loss(torch.cat([part() for part in parts])), weights)
    cached_backward(parts, backward)
    for weight, gradient in zip(weights, expected, strict=True):
        assert weight.grad is not None
        assert float(gradient.abs().max()) > 1e-3
        torch.testing.assert_close(weight.grad, gradient, atol=1e-5, rtol=1e-5)


def test_only_one_micro_batch_has_a_graph_at_a_time() -> None:
    tower, graphs = Tower(), []

    def part(crops: Tensor) -> Tensor:
        found = tower(crops, 0)
        graphs.append(found.requires_grad)
        return found

    parts = [partial(part, torch.rand(2, 1, 3, 8, 8)) for _ in range(3)]
    cached_backward(parts, torch.ones_like)
    assert graphs == [False] * 3 + [True] * 3

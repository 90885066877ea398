"""Learning rates of an image tower: by depth, and over the training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from stcontrast._models.image_tower._options import TowerOptions

__all__ = ["tower_groups", "warmup_cosine"]


def tower_groups(backbone: nn.Module, options: TowerOptions) -> list[dict[str, Any]]:
    """Groups of the backbone's parameters, each with the learning rate of its depth; biases and norms do not decay."""
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(backbone, weight_decay=options.weight_decay, layer_decay=options.layer_decay)
    return [
        {
            "params": group["params"],
            "weight_decay": group["weight_decay"],
            "lr": options.learning_rate * group["lr_scale"],
        }
        for group in groups
    ]


def warmup_cosine(step: int, *, n_steps: int, n_warmup: int) -> float:
    """Factor on the learning rate at a step, counted from 0: a rise to 1, then a cosine down to 0.

    Examples
    --------
    >>> [round(warmup_cosine(step, n_steps=6, n_warmup=2), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - n_warmup) / max(n_steps - n_warmup, 1))

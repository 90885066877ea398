"""Options that make every method quick to fit, for tests of what does not depend on how well it is fitted."""

from __future__ import annotations

from typing import Any

__all__ = ["CONTRASTIVE", "QUICK", "REGRESSING"]

_TOWERS: dict[str, Any] = {"max_epochs": 3, "batch_size": 16, "n_embedding": 16}

CONTRASTIVE: dict[str, dict[str, Any]] = {
    "bleep": _TOWERS,
    "magic": {**_TOWERS, "n_heads": 2, "queue_size": 20},
    "mclstexp": {**_TOWERS, "n_heads": 2, "n_per_head": 4},
    "mvitgene": _TOWERS,
    "nh2st": {**_TOWERS, "n_heads": 2},
    "tpirbae": {**_TOWERS, "vae_epochs": 2, "n_latent": 4},
}
REGRESSING: dict[str, dict[str, Any]] = {
    "deepspot": {"max_epochs": 3, "batch_size": 16, "n_hidden": 16, "n_members": 3},
    "triplex": {"max_epochs": 3, "batch_size": 16, "n_hidden": 16, "n_heads": 2},
}
QUICK: dict[str, dict[str, Any]] = {
    **CONTRASTIVE,
    **REGRESSING,
    "stcontrast": {"max_epochs": 3, "n_coordinates": 3},
    "mlp": {"max_epochs": 3},
    "ridge": {},
    "knn": {},
    "kernel": {},
    "color": {},
    "field": {},
    "mean": {},
    "depth": {},
}

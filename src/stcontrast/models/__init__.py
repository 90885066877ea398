"""Trained models: the model that `fit` returns, the gene VAE, the image–gene network, the fine-tuned image encoder."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stcontrast._models.batch_vae import BatchAgnosticVAE, BatchAgnosticVAEModule, SpotsOnDisk
    from stcontrast._models.contrastive import ContrastiveModel
    from stcontrast._models.image_tower import TowerOptions, TunedEncoder
    from stcontrast.fitted import Prediction, Predictor, Retrieved, TilePredictor, load

_HOMES = {
    "BatchAgnosticVAE": "stcontrast._models.batch_vae",
    "BatchAgnosticVAEModule": "stcontrast._models.batch_vae",
    "ContrastiveModel": "stcontrast._models.contrastive",
    "Prediction": "stcontrast.fitted",
    "Predictor": "stcontrast.fitted",
    "Retrieved": "stcontrast.fitted",
    "SpotsOnDisk": "stcontrast._models.batch_vae",
    "TilePredictor": "stcontrast.fitted",
    "TowerOptions": "stcontrast._models.image_tower",
    "TunedEncoder": "stcontrast._models.image_tower",
    "load": "stcontrast.fitted",
}

__all__ = [
    "BatchAgnosticVAE",
    "BatchAgnosticVAEModule",
    "ContrastiveModel",
    "Prediction",
    "Predictor",
    "Retrieved",
    "SpotsOnDisk",
    "TilePredictor",
    "TowerOptions",
    "TunedEncoder",
    "load",
]


def __getattr__(name: str) -> Any:
    # torch and scvi take seconds to import: a model's module is imported when the model is asked for (PEP 562).
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    msg = f"module 'stcontrast.models' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)

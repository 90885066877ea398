"""Trained models: the model that `fit` returns, the gene VAE, the image–gene network, the fine-tuned image encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stcontrast._lazy import lazily

if TYPE_CHECKING:
    from stcontrast._models.batch_vae import BatchAgnosticVAE, BatchAgnosticVAEModule, SpotsOnDisk
    from stcontrast._models.contrastive import ContrastiveModel
    from stcontrast._models.image_tower import TowerOptions, TunedEncoder
    from stcontrast.fitted import Prediction, Predictor, Retrieved, TilePredictor, from_hub, load

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
    "from_hub": "stcontrast.fitted",
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
    "from_hub",
    "load",
]

__getattr__, __dir__ = lazily(__name__, _HOMES, __all__)

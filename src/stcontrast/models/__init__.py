"""Trained models: what `fit` returns and reads back from disk, the gene model, the image–gene network."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stcontrast._models.batch_vae import BatchAgnosticVAE, SpotsOnDisk
    from stcontrast._models.contrastive import ContrastiveModel
    from stcontrast._models.image_tower import TowerOptions
    from stcontrast.fitted import TilePredictor, load

_HOMES = {
    "BatchAgnosticVAE": "stcontrast._models.batch_vae",
    "ContrastiveModel": "stcontrast._models.contrastive",
    "SpotsOnDisk": "stcontrast._models.batch_vae",
    "TilePredictor": "stcontrast.fitted",
    "TowerOptions": "stcontrast._models.image_tower",
    "load": "stcontrast.fitted",
}

__all__ = ["BatchAgnosticVAE", "ContrastiveModel", "SpotsOnDisk", "TilePredictor", "TowerOptions", "load"]


def __getattr__(name: str) -> Any:
    # torch and scvi take seconds to import: a model's module is imported when the model is asked for (PEP 562).
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    msg = f"module 'stcontrast.models' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)

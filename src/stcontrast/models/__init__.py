"""Trained models: the batch-agnostic gene encoder, the image–gene model, and the way back from disk."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stcontrast.methods._load import load
    from stcontrast.methods._tile_predictor import TilePredictor
    from stcontrast.models.batch_vae import BatchAgnosticVAE, SpotsOnDisk
    from stcontrast.models.contrastive import ContrastiveModel

__all__ = ["BatchAgnosticVAE", "ContrastiveModel", "SpotsOnDisk", "TilePredictor", "load"]

_HOMES = {
    "BatchAgnosticVAE": "stcontrast.models.batch_vae",
    "ContrastiveModel": "stcontrast.models.contrastive",
    "SpotsOnDisk": "stcontrast.models.batch_vae",
    "TilePredictor": "stcontrast.methods._tile_predictor",
    "load": "stcontrast.methods._load",
}


def __getattr__(name: str) -> Any:
    # torch and scvi take seconds to import: a model's module is imported when the model is asked for (PEP 562).
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    msg = f"module 'stcontrast.models' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)

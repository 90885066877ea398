"""The model that `fit` returns: predict, calibrate, save, load."""

from __future__ import annotations

from stcontrast.fitted._load import load
from stcontrast.fitted._model import Prediction, Predictor, Retrieved
from stcontrast.fitted._tile_predictor import TilePredictor

__all__ = ["Prediction", "Predictor", "Retrieved", "TilePredictor", "load"]

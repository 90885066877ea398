"""The model that `fit` returns: predict, calibrate, save, load."""

from __future__ import annotations

from stcontrast._data import Prediction
from stcontrast.fitted._load import as_model, from_hub, load
from stcontrast.fitted._model import Predictor, Retrieved
from stcontrast.fitted._moments import StandardizeBy
from stcontrast.fitted._tile_predictor import TilePredictor

__all__ = ["Prediction", "Predictor", "Retrieved", "StandardizeBy", "TilePredictor", "as_model", "from_hub", "load"]

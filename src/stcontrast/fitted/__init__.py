"""The model that `fit` returns: predict, calibrate, save, load."""

from __future__ import annotations

from stcontrast._data.spots import Prediction
from stcontrast.fitted._model import Predictor, Retrieved, as_model, load
from stcontrast.fitted._moments import StandardizeBy
from stcontrast.fitted._tile_predictor import TilePredictor

__all__ = ["Prediction", "Predictor", "Retrieved", "StandardizeBy", "TilePredictor", "as_model", "load"]

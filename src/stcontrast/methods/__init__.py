"""Methods: one a file, all behind :class:`~stcontrast.methods.Method`."""

from __future__ import annotations

from stcontrast.methods._bleep import Bleep
from stcontrast.methods._color import Color
from stcontrast.methods._contrastive import ContrastiveMethod, ContrastiveOptions
from stcontrast.methods._depth import Depth
from stcontrast.methods._field import Field
from stcontrast.methods._kernel import Kernel
from stcontrast.methods._knn import Knn
from stcontrast.methods._mclstexp import Mclstexp
from stcontrast.methods._mean import Mean
from stcontrast.methods._method import METHODS, Method, get_method
from stcontrast.methods._mlp import Mlp
from stcontrast.methods._nh2st import Nh2st
from stcontrast.methods._predictor import Prediction, Predictor, Retrieved
from stcontrast.methods._ridge import Ridge
from stcontrast.methods._stcontrast import Stcontrast
from stcontrast.methods._tile_predictor import TilePredictor
from stcontrast.methods._tpirbae import Tpirbae
from stcontrast.nn._pairs import PairModule

__all__ = [
    "METHODS",
    "Bleep",
    "Color",
    "ContrastiveMethod",
    "ContrastiveOptions",
    "Depth",
    "Field",
    "Kernel",
    "Knn",
    "Mclstexp",
    "Mean",
    "Method",
    "Mlp",
    "Nh2st",
    "PairModule",
    "Prediction",
    "Predictor",
    "Retrieved",
    "Ridge",
    "Stcontrast",
    "TilePredictor",
    "Tpirbae",
    "get_method",
]

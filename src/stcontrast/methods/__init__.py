"""Methods: one a file, all behind :class:`~stcontrast.methods.Method`."""

from __future__ import annotations

from stcontrast.methods._color import Color
from stcontrast.methods._mean import Mean
from stcontrast.methods._method import METHODS, Method, get_method
from stcontrast.methods._predictor import Prediction, Predictor
from stcontrast.methods._ridge import Ridge
from stcontrast.methods._stcontrast import Stcontrast

__all__ = ["METHODS", "Color", "Mean", "Method", "Prediction", "Predictor", "Ridge", "Stcontrast", "get_method"]

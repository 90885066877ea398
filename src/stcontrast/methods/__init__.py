"""Methods: how expression and subtypes are learnt, each behind :class:`~stcontrast.methods.Method`.

The classes of the methods that come with the package are private: name a method by its string.
"""

from __future__ import annotations

from stcontrast._data.folds import Fold
from stcontrast._data.spots import Prediction, Spots
from stcontrast.methods import baselines, published, stcontrast
from stcontrast.methods._base import Method
from stcontrast.methods.published import ContrastiveMethod, ContrastiveOptions
from stcontrast.nn._pairs import PairModule

__all__ = ["ContrastiveMethod", "ContrastiveOptions", "Fold", "Method", "PairModule", "Prediction", "Spots"]

"""Methods: how expression and subtypes are learnt, each behind :class:`~stcontrast.methods.Method`.

The classes of the methods that come with the package are private: name a method by its string.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stcontrast._data import Fold, Prediction, Spots
from stcontrast._lazy import lazily
from stcontrast.methods import baselines, published, stcontrast
from stcontrast.methods._base import Method
from stcontrast.methods.published import ContrastiveMethod, ContrastiveOptions

if TYPE_CHECKING:
    from stcontrast.nn import PairModule

__all__ = ["ContrastiveMethod", "ContrastiveOptions", "Fold", "Method", "PairModule", "Prediction", "Spots"]

# (torch takes seconds to import)
__getattr__, __dir__ = lazily(__name__, {"PairModule": "stcontrast.nn"}, __all__)

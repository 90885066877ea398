"""Methods: one a file, all behind :class:`~stcontrast.methods.Method`."""

from __future__ import annotations

from stcontrast.methods._base import METHODS, Method, get_method
from stcontrast.methods.baselines._color import Color
from stcontrast.methods.baselines._depth import Depth
from stcontrast.methods.baselines._field import Field
from stcontrast.methods.baselines._kernel import Kernel
from stcontrast.methods.baselines._knn import Knn
from stcontrast.methods.baselines._mean import Mean
from stcontrast.methods.baselines._mlp import Mlp
from stcontrast.methods.baselines._ridge import Ridge
from stcontrast.methods.published._bleep import Bleep
from stcontrast.methods.published._contrastive import ContrastiveMethod, ContrastiveOptions
from stcontrast.methods.published._mclstexp import Mclstexp
from stcontrast.methods.published._nh2st import Nh2st
from stcontrast.methods.published._tpirbae import Tpirbae
from stcontrast.methods.stcontrast._method import Stcontrast
from stcontrast.nn import PairModule

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
    "Ridge",
    "Stcontrast",
    "Tpirbae",
    "get_method",
]

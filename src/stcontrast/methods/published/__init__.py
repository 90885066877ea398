"""Published methods, one a file."""

from __future__ import annotations

from stcontrast.methods.published._bleep import Bleep
from stcontrast.methods.published._contrastive import ContrastiveMethod, ContrastiveOptions
from stcontrast.methods.published._deepspot import Deepspot
from stcontrast.methods.published._magic import Magic
from stcontrast.methods.published._mclstexp import Mclstexp
from stcontrast.methods.published._mvitgene import Mvitgene
from stcontrast.methods.published._nh2st import Nh2st
from stcontrast.methods.published._tpirbae import Tpirbae
from stcontrast.methods.published._triplex import Triplex

__all__ = [
    "Bleep",
    "ContrastiveMethod",
    "ContrastiveOptions",
    "Deepspot",
    "Magic",
    "Mclstexp",
    "Mvitgene",
    "Nh2st",
    "Tpirbae",
    "Triplex",
]

"""Published methods, one a file."""

from __future__ import annotations

from stcontrast.methods.published._bleep import Bleep
from stcontrast.methods.published._contrastive import ContrastiveMethod, ContrastiveOptions
from stcontrast.methods.published._mclstexp import Mclstexp
from stcontrast.methods.published._nh2st import Nh2st
from stcontrast.methods.published._tpirbae import Tpirbae

__all__ = ["Bleep", "ContrastiveMethod", "ContrastiveOptions", "Mclstexp", "Nh2st", "Tpirbae"]

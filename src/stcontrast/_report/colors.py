"""Colours of classes, the same in the report and in figures."""

from __future__ import annotations

from typing import Final

__all__ = ["CLASS_COLORS"]

# The first five are of Okabe and Ito 2008. Each next one is the colour that is farthest (CIE Lab) from those before it
# and from faded H&E, for normal vision and the three kinds of colour blindness (Machado et al. 2009). The first 14 have
# no purple, in which haematoxylin lies.
CLASS_COLORS: Final = (
    "#e69f00", "#009e73", "#56b4e9", "#d55e00", "#f0e442", "#691e00", "#004bb4", "#00ff87", "#e1004b", "#a5d2a5",
    "#0f78ff", "#4b693c", "#874b00", "#e1b45a", "#4b2d5a", "#7800ff", "#4b3c87", "#7869c3", "#b40fe1", "#9696ff",
    "#965a78", "#2d00c3", "#78b469", "#c3783c",
)  # fmt: skip

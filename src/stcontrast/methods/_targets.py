"""Targets made of training spots, once for all that learn from them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from stcontrast._data import Spots

__all__ = ["completed"]


def completed(spots: Spots) -> Spots:
    """The spots with the zeros of their target filled by a model of these spots alone; see :func:`stcontrast.pp.complete`."""
    if not spots.has_counts:
        return spots
    from stcontrast.pp._completion import Completer

    rows = np.flatnonzero(spots.measured)
    measured = (spots.observed[rows], spots.slide[rows], spots.xy[rows])
    target = spots.observed.copy()
    target[rows] = Completer().fit(*measured).complete(*measured)
    return replace(spots, target=target)

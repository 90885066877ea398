"""The loop over slides: most of what is computed of spots is computed within a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["rows_by_slide"]


def rows_by_slide(slide: NDArray[Any], among: NDArray[np.intp] | None = None) -> list[NDArray[np.intp]]:
    """Rows of the spots of every slide, slides in ascending order.

    Parameters
    ----------
    slide
        Slide of each spot (n_spots,).
    among
        Rows to look at, in any order, which is kept; all by default.
    """
    rows = np.arange(len(slide)) if among is None else among
    of_row = slide[rows]
    return [rows[of_row == code] for code in np.unique(of_row)]

"""The oracle that knows the depth of the spots it predicts: the score of sequencing depth alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stcontrast._slides import rows_by_slide
from stcontrast.methods.baselines._ridge import Ridge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data import Spots

__all__ = ["Depth"]


class Depth(Ridge):
    """Linear and logistic regression on the logarithm of a spot's own measured depth, standardised in the slide.

    An oracle: it looks at the sum of the counts of the spots that it predicts. It shows how much of a score depth
    would explain, and cannot be used on H&E alone.
    """

    name: ClassVar[str] = "depth"
    reference: ClassVar[str] = "Oracle: regression on the measured log depth of the predicted spots"
    n_neighbors: ClassVar[int] = 0
    oracle: ClassVar[bool] = True

    def seen(self, spots: Spots) -> NDArray[np.float32]:
        """Log depth (n_spots, 1), to mean 0 and deviation 1 within every slide."""
        if not spots.has_counts:
            msg = "The oracle needs the measured depth of the spots."
            raise ValueError(msg)
        depth = np.log1p(spots.depth)
        for rows in rows_by_slide(spots.slide):
            depth[rows] -= depth[rows].mean()
            depth[rows] /= max(depth[rows].std(), 1e-6)
        return depth[:, None].astype(np.float32)

"""The baseline that looks at nothing: the mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stcontrast._state import fitted
from stcontrast.methods._base import Method

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data import Spots

__all__ = ["Mean"]


class Mean(Method):
    """The training slides' mean of every gene, and the frequency of every class."""

    name: ClassVar[str] = "mean"
    spotwise: ClassVar[bool] = True
    reference: ClassVar[str] = "Mean of the training slides (as in He et al. 2020, ST-Net)"
    held: ClassVar[tuple[float, float]] = (5.7, 5.3)
    learnt: ClassVar[tuple[str, ...]] = ("arrays",)

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.arrays: dict[str, NDArray[Any]] = {}

    def fit_parts(self, spots: Spots) -> None:
        """Take the means."""
        self.arrays = {}
        if spots.has_counts:
            self.arrays["expression"] = spots.slide_means()[0]
        if spots.has_labels:
            self.arrays["frequency"] = class_frequency(spots).astype(np.float32)

    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """The mean profile for every spot (n_spots, n_genes)."""
        return np.tile(fitted(self.arrays.get("expression"), needs="counts"), (len(spots), 1))

    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """The class frequencies for every spot (n_spots, n_classes)."""
        return np.tile(fitted(self.arrays.get("frequency"), needs="labels"), (len(spots), 1))


def class_frequency(spots: Spots) -> NDArray[np.float64]:
    """Share of every class among the annotated spots (n_classes,)."""
    counted = np.bincount(spots.label[spots.label >= 0], minlength=spots.n_classes)
    share: NDArray[np.float64] = counted / counted.sum()
    return share

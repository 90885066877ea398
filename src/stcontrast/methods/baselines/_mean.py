"""The baseline that looks at nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stcontrast.methods._arrays import load_arrays, save_arrays
from stcontrast.methods._base import Method

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stcontrast._data.spots import TrainingData, View

__all__ = ["Mean"]


class Mean(Method):
    """The training slides' mean of every gene, and the frequency of every class."""

    name: ClassVar[str] = "mean"
    spotwise: ClassVar[bool] = True
    reference: ClassVar[str] = "Mean of the training slides (as in He et al. 2020, ST-Net)"

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.expression: NDArray[np.float32] | None = None
        self.frequency: NDArray[np.float32] | None = None

    def fit_parts(self, data: TrainingData) -> None:
        """Take the means."""
        if data.measured.any():
            self.expression = data.slide_means()[0]
        if data.has_labels:
            counted = np.bincount(data.label[data.label >= 0], minlength=data.n_classes)
            self.frequency = (counted / counted.sum()).astype(np.float32)

    def predict_expression(self, view: View) -> NDArray[np.float32]:
        """The mean profile for every spot (n_spots, n_genes)."""
        if self.expression is None:
            msg = "The model was trained without counts: it predicts no expression."
            raise ValueError(msg)
        return np.tile(self.expression, (len(view.design), 1))

    def predict_proba(self, view: View) -> NDArray[np.float32]:
        """The class frequencies for every spot (n_spots, n_classes)."""
        if self.frequency is None:
            msg = "The model was trained without labels: it predicts no subtype."
            raise ValueError(msg)
        return np.tile(self.frequency, (len(view.design), 1))

    def save_parts(self, folder: Path) -> None:
        """Write the means."""
        save_arrays(folder / "mean.npz", {"expression": self.expression, "frequency": self.frequency})

    def load_parts(self, folder: Path) -> None:
        """Read the means."""
        arrays = load_arrays(folder / "mean.npz")
        self.expression, self.frequency = arrays.get("expression"), arrays.get("frequency")

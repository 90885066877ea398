"""The baseline that is smooth and knows nothing: a random field over the slide."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from stcontrast._data.lattice import lattice_coordinates
from stcontrast.methods._arrays import load_arrays, save_arrays
from stcontrast.methods._base import Method

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stcontrast._data.spots import TrainingData, View

__all__ = ["Field"]

# waves that a field is the sum of
N_WAVES: Final = 256


class Field(Method):
    """Chance, made to look like tissue: for every gene a smooth random field, as wide as the gene varies.

    It looks at the positions of the spots and at no image. What a score of it differs from 0 by is what smoothness and
    the choice of genes do to that score: the best of many genes are well above 0. Fields are Gaussian, approximated by
    random Fourier features. Subtypes are drawn in patches: the class whose field, shifted by the logarithm of its
    frequency, is highest.

    Parameters
    ----------
    length
        Distance over which the field stays alike, in pitches of the slide.
    seed
        Seed of the fields.

    References
    ----------
    Rahimi and Recht 2007 (random Fourier features).
    """

    name: ClassVar[str] = "field"
    reference: ClassVar[str] = "Chance: a smooth random field for every gene"
    n_neighbors: ClassVar[int] = 0

    def __init__(self, *, length: float = 5.0, seed: int = 0) -> None:
        super().__init__(seed=seed)
        if length <= 0:
            msg = f"`length` must be positive, found {length}."
            raise ValueError(msg)
        self.length = length
        self.arrays: dict[str, NDArray[Any]] = {}

    @property
    def hyper(self) -> dict[str, Any]:
        """Arguments that make the same method again."""
        return {"length": self.length, "seed": self.seed}

    def fit_parts(self, data: TrainingData) -> None:
        """Take means and deviations of the genes, and frequencies of the classes."""
        self.arrays = {}
        if data.measured.any():
            mean, of_spot = data.slide_means()
            self.arrays |= {"mean": mean, "deviation": (data.target - of_spot)[data.measured].std(axis=0)}
        if data.has_labels:
            counted = np.bincount(data.label[data.label >= 0], minlength=data.n_classes)
            self.arrays["frequency"] = counted / counted.sum()

    def predict_expression(self, view: View) -> NDArray[np.float32]:
        """A field a gene (n_spots, n_genes), in units of expression."""
        if "mean" not in self.arrays:
            msg = "The model was trained without counts: it predicts no expression."
            raise ValueError(msg)
        mean, deviation = self.arrays["mean"], self.arrays["deviation"]
        return (mean + deviation * self._fields(view, len(mean), salt=0)).astype(np.float32)

    def predict_proba(self, view: View) -> NDArray[np.float32]:
        """Softmax of a field a class (n_spots, n_classes)."""
        if "frequency" not in self.arrays:
            msg = "The model was trained without labels: it predicts no subtype."
            raise ValueError(msg)
        frequency = self.arrays["frequency"]
        odds = np.exp(self._fields(view, len(frequency), salt=1)) * frequency
        return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)

    def save_parts(self, folder: Path) -> None:
        """Write means, deviations and frequencies."""
        (folder / "field.json").write_text(json.dumps({"length": self.length}))
        save_arrays(folder / "field.npz", self.arrays)

    def load_parts(self, folder: Path) -> None:
        """Read means, deviations and frequencies."""
        self.arrays = load_arrays(folder / "field.npz")

    def _fields(self, view: View, n_fields: int, *, salt: int) -> NDArray[np.float64]:
        """Fields of deviation 1 (n_spots, n_fields), the same wherever a slide stands among others."""
        rng = np.random.default_rng([self.seed, salt])
        waves = rng.normal(size=(n_fields, 2, N_WAVES)) / self.length
        phases = rng.uniform(0, 2 * np.pi, size=(n_fields, N_WAVES))
        position = lattice_coordinates(view.xy, view.slide)
        # one field at a time: all of them would be n_spots × n_fields × n_waves
        fields = [np.cos(position @ wave + phase).sum(axis=1) for wave, phase in zip(waves, phases, strict=True)]
        return np.stack(fields, axis=1) * np.sqrt(2 / N_WAVES)

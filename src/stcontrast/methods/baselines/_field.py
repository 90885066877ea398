"""Chance: a smooth random field over the slide for every gene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from stcontrast._arguments import checked
from stcontrast._data import lattice_coordinates
from stcontrast._state import fitted
from stcontrast.methods._base import Method
from stcontrast.methods.baselines._mean import class_frequency

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data import Spots

__all__ = ["Field"]

# waves that a field is the sum of
N_WAVES: Final = 256


class Field(Method):
    """Chance that is smooth like tissue: a random field for every gene, with the deviation of that gene.

    It looks at the positions of the spots and at no image. Its score shows what smoothness and the choice of genes do
    to a score: the best of many genes are well above 0. Fields are Gaussian, approximated by
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
    learnt: ClassVar[tuple[str, ...]] = ("arrays",)

    @checked()
    def __init__(self, *, length: float = 5.0, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.length = length
        self.arrays: dict[str, NDArray[Any]] = {}

    def fit_parts(self, spots: Spots) -> None:
        """Take means and deviations of the genes, and frequencies of the classes."""
        self.arrays = {}
        if spots.has_counts:
            mean, of_spot = spots.slide_means()
            self.arrays |= {"mean": mean, "deviation": (spots.target - of_spot)[spots.measured].std(axis=0)}
        if spots.has_labels:
            self.arrays["frequency"] = class_frequency(spots)

    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """A field a gene (n_spots, n_genes), in units of expression."""
        mean = fitted(self.arrays.get("mean"), needs="counts")
        return (mean + self.arrays["deviation"] * self._fields(spots, len(mean), salt=0)).astype(np.float32)

    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """Softmax of a field a class (n_spots, n_classes)."""
        frequency = fitted(self.arrays.get("frequency"), needs="labels")
        odds = np.exp(self._fields(spots, len(frequency), salt=1)) * frequency
        return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)

    def _fields(self, spots: Spots, n_fields: int, *, salt: int) -> NDArray[np.float64]:
        """Fields of deviation 1 (n_spots, n_fields), the same whatever other slides there are."""
        rng = np.random.default_rng([self.seed, salt])
        waves = rng.normal(size=(n_fields, 2, N_WAVES)) / self.length
        phases = rng.uniform(0, 2 * np.pi, size=(n_fields, N_WAVES))
        position = lattice_coordinates(spots.xy, spots.slide)
        # one field at a time: all of them would be n_spots × n_fields × n_waves
        fields = [np.cos(position @ wave + phase).sum(axis=1) for wave, phase in zip(waves, phases, strict=True)]
        return np.stack(fields, axis=1) * np.sqrt(2 / N_WAVES)

"""Mean and deviation of a slide's design, also gathered piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

__all__ = ["SlideMoments"]


@dataclass(frozen=True, slots=True)
class SlideMoments:
    """Mean, squared deviations and largest value of every column, of some spots of a slide.

    Attributes
    ----------
    n
        Number of spots.
    mean, squares, largest
        Mean, sum of squared deviations from it, and largest absolute value (n_columns,).
    """

    n: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    largest: NDArray[np.float64]

    @classmethod
    def of(cls, block: NDArray[np.floating]) -> Self:
        """Those of spots (n, n_columns)."""
        exact = block.astype(np.float64)
        mean = exact.mean(axis=0)
        largest = np.maximum(exact.max(axis=0), -exact.min(axis=0))
        return cls(len(exact), mean, exact.var(axis=0) * len(exact), largest)

    def merged(self, other: Self) -> Self:
        """Those of both (Chan et al. 1979)."""
        n = self.n + other.n
        apart = other.mean - self.mean
        return type(self)(
            n,
            self.mean + apart * (other.n / n),
            self.squares + other.squares + apart**2 * (self.n * other.n / n),
            np.maximum(self.largest, other.largest),
        )

    def standardized(self, block: NDArray[np.floating]) -> NDArray[np.float32]:
        """Spots (n, n_columns) of the slide with zero mean and unit deviation; a constant column says nothing: zero."""
        deviation = np.sqrt(self.squares / self.n)
        flat = deviation <= 1e-6 * np.maximum(self.largest, 1e-12)
        scaled = (block.astype(np.float64) - self.mean) / np.where(flat, 1.0, deviation)
        scaled[:, flat] = 0.0
        return scaled.astype(np.float32)

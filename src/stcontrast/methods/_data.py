"""What a method learns from and what it gives back: plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray
    from scipy import sparse

__all__ = ["Fold", "Held", "TrainingData"]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Training spots of all slides, one under another.

    Attributes
    ----------
    design
        What a method sees of the image (n_spots, n_design).
    color
        Plain colour statistics of the crops (n_spots, n_color), for the colour baseline; width 0 if not asked for.
    slide, donor, batch
        Codes of slide, donor and batch (n_spots,).
    xy
        Centres of the spots (n_spots, 2).
    counts
        Raw counts of the modelled genes (n_spots, n_genes); empty rows where a spot is not measured.
    target
        log(1 + counts per 10 000) (n_spots, n_genes).
    measured
        Whether a spot has counts (n_spots,).
    label
        Class codes (n_spots,), -1 where a spot is not annotated.
    n_classes
        Number of classes.
    """

    design: NDArray[np.float32]
    color: NDArray[np.float32]
    slide: NDArray[np.int64]
    donor: NDArray[np.int64]
    batch: NDArray[np.int64]
    xy: NDArray[np.float64]
    counts: sparse.csr_matrix
    target: NDArray[np.float32]
    measured: NDArray[np.bool_]
    label: NDArray[np.int64]
    n_classes: int

    @property
    def n_genes(self) -> int:
        """Number of modelled genes."""
        return self.target.shape[1]

    @property
    def has_labels(self) -> bool:
        """Whether any spot is annotated."""
        return bool((self.label >= 0).any())

    def take(self, rows: NDArray[np.intp]) -> Self:
        """The same for some of the spots."""
        names = ("design", "color", "slide", "donor", "batch", "xy", "counts", "target", "measured", "label")
        parts: dict[str, Any] = {name: getattr(self, name)[rows] for name in names}
        return replace(self, **parts)

    def slide_means(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean expression of every gene over its slides (n_genes,), and of its own slide for every spot.

        Slides count alike, whatever their size. Rows of spots without counts are zero.
        """
        of_spot = np.zeros_like(self.target)
        means = []
        for code in np.unique(self.slide[self.measured]):
            rows = np.flatnonzero((self.slide == code) & self.measured)
            means.append(self.target[rows].mean(axis=0))
            of_spot[rows] = means[-1]
        return np.mean(means, axis=0, dtype=np.float32), of_spot


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows to train on and rows held out."""

    train: NDArray[np.intp]
    held_out: NDArray[np.intp]


@dataclass(slots=True)
class Held:
    """Predictions for spots while their group was held out; NaN where there is none.

    Attributes
    ----------
    expression
        (n_spots, n_genes), in the units of the target.
    proba
        (n_spots, n_classes).
    """

    expression: NDArray[np.float32]
    proba: NDArray[np.float32]

    @classmethod
    def empty(cls, data: TrainingData) -> Self:
        """Nothing held out yet."""
        n = len(data.design)
        return cls(
            np.full((n, data.n_genes), np.nan, dtype=np.float32), np.full((n, data.n_classes), np.nan, dtype=np.float32)
        )

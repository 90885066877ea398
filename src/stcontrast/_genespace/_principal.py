"""Principal axes of expression within slides, to which donors contribute alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from stcontrast._progress import stage
from stcontrast._slides import rows_by_slide
from stcontrast._state import Learns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data import Spots

__all__ = ["PrincipalSpace"]


class PrincipalSpace(Learns):
    """The first principal axes of log expression.

    Expression is centred within the slide, every gene is scaled to unit deviation, and every donor to the same total
    variance: neither the donor with the most spots nor the noisiest one sets the axes. What genes have in common is what
    an image can tell; the rest is mostly counting noise.

    Parameters
    ----------
    n_coordinates
        How many axes; fewer where there are fewer genes.
    """

    learnt: ClassVar[tuple[str, ...]] = ("mean", "scale", "axes")

    def __init__(self, *, n_coordinates: int) -> None:
        self.n_coordinates = n_coordinates
        self.mean: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self.scale: NDArray[np.float32] = self.mean
        self.axes: NDArray[np.float32] = np.zeros((0, 0), dtype=np.float32)

    @stage("gene space")
    def fit(self, spots: Spots) -> Self:
        """Find the axes of the measured spots, with an image or without."""
        n_genes = spots.n_genes
        means = []
        covariances: dict[str, NDArray[np.float64]] = {}
        for rows in rows_by_slide(spots.slide, np.flatnonzero(spots.measured)):
            means.append(spots.target[rows].mean(axis=0))
            centered = spots.target[rows] - means[-1]
            # a slide may hold several donors (a tissue microarray)
            for donor in np.unique(spots.donor[rows]):
                here = centered[spots.donor[rows] == donor]
                of_donor = covariances.setdefault(str(donor), np.zeros((n_genes, n_genes)))
                of_donor += (here.T @ here) / int((spots.measured & (spots.donor == donor)).sum())
        self.mean = np.mean(means, axis=0, dtype=np.float32)
        variance = np.mean([np.diag(covariance) for covariance in covariances.values()], axis=0)
        scale = np.sqrt(np.where(variance > 0, variance, 1.0))
        self.scale = scale.astype(np.float32)
        total = np.zeros((n_genes, n_genes))
        for covariance in covariances.values():
            scaled = covariance / scale[:, None] / scale
            total += scaled / max(float(np.trace(scaled)), 1e-12)
        _, vectors = np.linalg.eigh(total)
        first = vectors[:, ::-1][:, : self.n_coordinates]
        # an axis has no direction of its own: the gene that weighs most points up
        axes = first * np.sign(first[np.abs(first).argmax(axis=0), np.arange(first.shape[1])])
        self.axes = np.ascontiguousarray(axes, dtype=np.float32)
        return self

    def encode(self, spots: Spots) -> NDArray[np.float32]:
        """Coordinates of the spots with counts (n_measured, n_coordinates), each against its own slide."""
        coordinates = np.zeros((len(spots), self.axes.shape[1]), dtype=np.float32)
        for rows in rows_by_slide(spots.slide, np.flatnonzero(spots.measured)):
            here = spots.target[rows]
            coordinates[rows] = ((here - here.mean(axis=0)) / self.scale) @ self.axes
        return coordinates[spots.measured]

    def decode(self, coordinates: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        expression: NDArray[np.float32] = coordinates @ (self.axes.T * self.scale) + self.mean
        return expression

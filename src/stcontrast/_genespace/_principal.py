"""Principal axes of expression within slides, to which donors contribute alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from stcontrast._slides import rows_by_slide
from stcontrast._state import Learns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data.spots import Spots

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
        self.mean = self.scale = np.zeros(0, dtype=np.float32)
        self.axes = np.zeros((0, 0), dtype=np.float32)

    def fit(self, spots: Spots) -> Self:
        """Find the axes of the measured spots, with an image or without."""
        self.mean, of_spot = spots.slide_means()
        n_genes = spots.n_genes
        codes = np.unique(spots.donor, return_inverse=True)[1]
        of_donor = [np.flatnonzero((codes == code) & spots.measured) for code in range(codes.max() + 1)]
        of_donor = [rows for rows in of_donor if len(rows)]
        covariances = [np.zeros((n_genes, n_genes)) for _ in of_donor]
        for rows, covariance in zip(of_donor, covariances, strict=True):
            for here in rows_by_slide(spots.slide, rows):
                centered = spots.target[here] - of_spot[here]
                covariance += (centered.T @ centered) / len(rows)
        variance = np.mean([np.diag(covariance) for covariance in covariances], axis=0)
        self.scale = np.sqrt(np.where(variance > 0, variance, 1.0)).astype(np.float32)
        total = np.zeros((n_genes, n_genes))
        for covariance in covariances:
            scaled = covariance / self.scale[:, None] / self.scale
            total += scaled / max(float(np.trace(scaled)), 1e-12)
        _, vectors = np.linalg.eigh(total)
        axes = vectors[:, ::-1][:, : self.n_coordinates]
        # an axis has no direction of its own: the gene that weighs most points up
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        self.axes = np.ascontiguousarray(axes, dtype=np.float32)
        return self

    def encode(self, spots: Spots) -> NDArray[np.float32]:
        """Coordinates of the spots with counts (n_measured, n_coordinates), each against its own slide."""
        _, of_spot = spots.slide_means()
        rows = spots.measured
        centered = (spots.target - of_spot)[rows]
        return ((centered / self.scale) @ self.axes).astype(np.float32)

    def decode(self, coordinates: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        return (coordinates @ (self.axes.T * self.scale) + self.mean).astype(np.float32)

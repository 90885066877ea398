"""How far to trust a prediction: intervals, correlation of each gene, and whether a spot looks familiar."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA
from sklearn.metrics import f1_score

from stcontrast.metrics import gene_correlation, mean_slide_correlation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast.methods._data import Held, TrainingData
    from stcontrast.methods._folds import Folds

__all__ = ["Calibration", "calibrate", "conformal_half_width"]

LEVEL: Final = 0.9
N_COMPONENTS: Final = 16
N_NEIGHBORS: Final = 10
FAMILIAR: Final = 0.99


@dataclass(frozen=True, slots=True)
class Calibration:
    """Numbers from held-out training spots.

    Attributes
    ----------
    half_width
        Half the width of every gene's interval (n_genes,).
    held_out_r
        Correlation of every gene on held-out groups, mean over slides (n_genes,).
    center, rotation
        Projection of a design onto the training's principal components.
    reference
        Training spots in that projection.
    radius
        Mean distance to the nearest training spots up to which a spot counts as familiar.
    """

    half_width: NDArray[np.float32]
    held_out_r: NDArray[np.float32]
    center: NDArray[np.float32]
    rotation: NDArray[np.float32]
    reference: NDArray[np.float32]
    radius: NDArray[np.float32]

    def is_familiar(self, design: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether spots (n_spots, n_design) look like those of the training slides."""
        return _distance(design, self.center, self.rotation, self.reference) <= float(self.radius)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, by name."""
        return {item.name: np.asarray(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Calibration:
        """The reverse of :meth:`arrays`."""
        return cls(**arrays)


def conformal_half_width(residual: NDArray[np.float32], *, level: float = LEVEL) -> NDArray[np.float32]:
    """Split-conformal half width of every gene.

    Parameters
    ----------
    residual
        Residuals (n_spots, n_genes) of spots that were held out.
    level
        Nominal coverage.

    Returns
    -------
    The ⌈(n + 1) · level⌉-th smallest absolute residual (n_genes,), infinite where n is too small for the level.

    References
    ----------
    Vovk et al. 2005; Lei et al. 2018.
    """
    n = len(residual)
    rank = int(np.ceil((n + 1) * level))
    if rank > n:
        return np.full(residual.shape[1], np.inf, dtype=np.float32)
    return np.partition(np.abs(residual), rank - 1, axis=0)[rank - 1].astype(np.float32)


def calibrate(
    held: Held, data: TrainingData, design: NDArray[np.float32], folds: Folds
) -> tuple[Calibration, dict[str, Any]]:
    """Turn held-out predictions of training spots into intervals and scores.

    Parameters
    ----------
    held
        Predictions of every spot while its group was held out.
    data
        The training spots.
    design
        What the method saw of them (n_spots, n_design).
    folds
        The folds that `held` comes from.

    Returns
    -------
    The calibration; and scores for the model card.
    """
    half_width = held_out_r = np.zeros(0, dtype=np.float32)
    scores: dict[str, Any] = {"held_out_unit": folds.unit}
    rows = np.flatnonzero(np.isfinite(held.expression).all(axis=1) & data.measured)
    if data.n_genes:
        predicted = np.maximum(held.expression[rows], 0.0)
        half_width = conformal_half_width(predicted - data.target[rows])
        slides = [rows[data.slide[rows] == code] for code in np.unique(data.slide[rows])]
        correlations = [gene_correlation(held.expression[s], data.target[s]) for s in slides]
        per_slide = np.array(correlations).reshape(-1, data.n_genes)
        scored = np.isfinite(per_slide)
        held_out_r = (np.where(scored, per_slide, 0.0).sum(axis=0) / np.maximum(scored.sum(axis=0), 1)).astype(
            np.float32
        )
        scores["held_out_r"] = mean_slide_correlation(held.expression, data.target, data.slide)
    labelled = np.flatnonzero(np.isfinite(held.proba).all(axis=1) & (data.label >= 0))
    if data.n_classes and len(labelled):
        guess = held.proba[labelled].argmax(axis=1)
        scores["held_out_macro_f1"] = float(f1_score(data.label[labelled], guess, average="macro"))
    center = design.mean(axis=0)
    pca = PCA(min(N_COMPONENTS, *design.shape), random_state=0).fit(design - center)
    rotation = pca.components_.T.astype(np.float32)
    reference = ((design - center) @ rotation).astype(np.float32)
    familiar = [_distance(design[fold.held_out], center, rotation, reference[fold.train]) for fold in folds.folds]
    radius = np.float32(np.quantile(np.concatenate(familiar), FAMILIAR))
    return Calibration(half_width, held_out_r, center, rotation, reference, np.asarray(radius)), scores


def _distance(
    design: NDArray[np.float32],
    center: NDArray[np.float32],
    rotation: NDArray[np.float32],
    reference: NDArray[np.float32],
) -> NDArray[np.float64]:
    k = min(N_NEIGHBORS, len(reference))
    distances, _ = cKDTree(reference).query((design - center) @ rotation, k=k)
    return np.asarray(distances).reshape(len(design), k).mean(axis=1)

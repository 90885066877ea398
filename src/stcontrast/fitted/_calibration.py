"""How far to trust a prediction: intervals, correlation of each gene, and whether a spot looks familiar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from sklearn.metrics import f1_score

from stcontrast.fitted._out_of_distribution import Familiarity
from stcontrast.metrics import gene_correlation, mean_slide_correlation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data.folds import Folds
    from stcontrast._data.spots import Held, TrainingData

__all__ = ["Calibration", "calibrate", "conformal_half_width"]

LEVEL: Final = 0.9


@dataclass(frozen=True, slots=True)
class Calibration:
    """Numbers from held-out training spots.

    Attributes
    ----------
    half_width
        Half the width of every gene's interval (n_genes,).
    held_out_r
        Correlation of every gene on held-out groups, mean over slides (n_genes,).
    design
        What the method saw of the training spots.
    appearance
        Their image features before they were standardised within the slide: an image of another kind (inverted,
        fluorescence, another stain) may look like any other once it has been standardised.
    """

    half_width: NDArray[np.float32]
    held_out_r: NDArray[np.float32]
    design: Familiarity
    appearance: Familiarity

    def is_familiar(self, design: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether spots, by their design and their plain image features, look like those of the training slides."""
        return self.design.includes(design) & self.appearance.includes(features)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, by name."""
        own = {"half_width": self.half_width, "held_out_r": self.held_out_r}
        return own | self.design.arrays("design") | self.appearance.arrays("appearance")

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Calibration:
        """The reverse of :meth:`arrays`."""
        design, appearance = (Familiarity.from_arrays(arrays, prefix) for prefix in ("design", "appearance"))
        return cls(arrays["half_width"], arrays["held_out_r"], design, appearance)


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
    held: Held, data: TrainingData, features: NDArray[np.float32], folds: Folds
) -> tuple[Calibration, dict[str, Any]]:
    """Turn held-out predictions of training spots into intervals and scores.

    Parameters
    ----------
    held
        Predictions of every spot while its group was held out.
    data
        The training spots.
    features
        Their image features (n_spots, n_features), not standardised.
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
        half_width = conformal_half_width(predicted - data.observed[rows])
        slides = [rows[data.slide[rows] == code] for code in np.unique(data.slide[rows])]
        correlations = [gene_correlation(held.expression[s], data.observed[s]) for s in slides]
        per_slide = np.array(correlations).reshape(-1, data.n_genes)
        scored = np.isfinite(per_slide)
        held_out_r = (np.where(scored, per_slide, 0.0).sum(axis=0) / np.maximum(scored.sum(axis=0), 1)).astype(
            np.float32
        )
        scores["held_out_r"] = mean_slide_correlation(held.expression, data.observed, data.slide)
    labelled = np.flatnonzero(np.isfinite(held.proba).all(axis=1) & (data.label >= 0))
    if data.n_classes and len(labelled):
        guess = held.proba[labelled].argmax(axis=1)
        scores["held_out_macro_f1"] = float(f1_score(data.label[labelled], guess, average="macro"))
    familiar = (
        Familiarity.fit(data.design, folds, in_fold=[fold.design for fold in folds.folds]),
        Familiarity.fit(features, folds, in_fold=[fold.features for fold in folds.folds]),
    )
    return Calibration(half_width, held_out_r, *familiar), scores

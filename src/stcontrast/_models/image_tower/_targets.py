"""What an image tower learns to tell: components of expression, and classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils.extmath import randomized_svd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data.spots import Spots

__all__ = ["TowerTargets"]


@dataclass(frozen=True, slots=True)
class TowerTargets:
    """Targets of all spots, in a space that is fitted on the training rows alone.

    Attributes
    ----------
    components
        Principal components of standardised expression (n_spots, k), scaled so that their variances on the training
        rows sum to 1; 0 in spots without counts. k is 0 where no training spot has counts.
    measured
        Whether a spot has counts that are learnt from (n_spots,).
    label
        Class codes (n_spots,), -1 for none.
    slide
        Code of the slide (n_spots,).
    n_classes
        Number of classes; 0 where no training spot is annotated.
    """

    components: NDArray[np.float32]
    measured: NDArray[np.bool_]
    label: NDArray[np.int64]
    slide: NDArray[np.int64]
    n_classes: int

    @classmethod
    def of(cls, data: Spots, rows: NDArray[np.intp], *, n_components: int) -> TowerTargets:
        """From training data; everything is fitted on some of its rows.

        Expression is centred within its slide and every gene brought to unit deviation; the components are those of
        the training rows.

        Parameters
        ----------
        data
            Spots, those held out among them.
        rows
            Training rows: whole slides, or blocks of an only one.
        n_components
            Components at most.
        """
        data = replace(data, target=data.observed)
        train = data.take(rows)
        label = data.label if train.has_labels else np.full_like(data.label, -1)
        n_classes = data.n_classes if train.has_labels else 0
        if not train.measured.any():
            empty = np.zeros((len(data.slide), 0), dtype=np.float32)
            return cls(empty, np.zeros(len(data.slide), dtype=bool), label, data.slide, n_classes)
        centered = (data.observed - data.slide_means()[1]).astype(np.float64)
        # blocks of one slide: what is held out has no part in the mean
        centered[rows] = train.observed - train.slide_means()[1]
        seen = rows[train.measured]
        deviation = centered[seen].std(axis=0)
        scaled = centered / np.where(deviation > 1e-6, deviation, 1.0)
        _, _, right = randomized_svd(scaled[seen], min(n_components, *scaled[seen].shape), random_state=0)
        components = scaled @ right.T
        components /= max(np.sqrt(components[seen].var(axis=0).sum()), 1e-6)
        components[~data.measured] = 0.0
        return cls(components.astype(np.float32), data.measured, label, data.slide, n_classes)

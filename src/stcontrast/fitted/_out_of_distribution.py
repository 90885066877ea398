"""Whether a spot looks like those that a model has learnt from."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA

from stcontrast.methods._state import Learns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from numpy.typing import NDArray

    from stcontrast._data.folds import Fold

__all__ = ["InDistribution"]

N_COMPONENTS: Final = 16
N_NEIGHBORS: Final = 10
QUANTILE: Final = 0.99


class InDistribution(Learns):
    """Mean distance to the nearest training spots, compared with that of held-out training spots."""

    learnt: ClassVar[tuple[str, ...]] = ("center", "scale", "rotation", "reference", "radius")

    def __init__(self) -> None:
        nothing = np.zeros(0, dtype=np.float32)
        self.center, self.scale, self.rotation, self.reference = nothing, nothing, nothing, nothing
        self.radius = np.inf

    def fit(
        self,
        features: NDArray[np.float32],
        folds: Sequence[Fold],
        *,
        in_fold: Sequence[NDArray[np.float32]] | None = None,
    ) -> Self:
        """Learn from training spots.

        Parameters
        ----------
        features
            Features of the training spots (n_spots, n_features).
        folds
            Inner folds: the distance of held-out spots from the others sets the radius.
        in_fold
            Features of the same spots in every fold (n_spots, n_features), where an encoder was trained for each. Their
            distances are measured in a projection of their own: the final encoder has seen every spot, and brings
            them nearer to the others than it would bring a new one. `None` where all folds have the same features.
        """
        self._project(features)
        if in_fold is None:
            held_out = [_distance(self.reference[fold.held_out], self.reference[fold.train]) for fold in folds]
        else:
            held_out = [
                InDistribution()._project(seen[fold.train]).distance(seen[fold.held_out])
                for fold, seen in zip(folds, in_fold, strict=True)
            ]
        self.radius = float(np.float32(np.quantile(np.concatenate(held_out), QUANTILE)))
        return self

    def _project(self, features: NDArray[np.float32]) -> Self:
        center, scale = features.mean(axis=0), features.std(axis=0)
        scale = np.where(scale < 1e-6 * np.maximum(np.abs(center), 1e-6), 1.0, scale).astype(np.float32)
        scaled = (features - center) / scale
        pca = PCA(min(N_COMPONENTS, *features.shape), random_state=0).fit(scaled)
        self.center, self.scale, self.rotation = center, scale, pca.components_.T.astype(np.float32)
        self.reference = (scaled @ self.rotation).astype(np.float32)
        return self

    def distance(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean distance of spots (n_spots, n_features) to the nearest training spots."""
        scaled = (features - self.center) / self.scale
        return _distance((scaled @ self.rotation).astype(np.float32), self.reference)

    def includes(self, features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether spots (n_spots, n_features) lie within the radius."""
        return self.distance(features) <= self.radius


def _distance(points: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float64]:
    k = min(N_NEIGHBORS, len(reference))
    distances, _ = cKDTree(reference).query(points, k=k)
    return np.asarray(distances).reshape(len(points), k).mean(axis=1)

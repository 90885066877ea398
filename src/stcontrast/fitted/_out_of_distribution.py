"""Whether a spot looks like those that a model has learnt from."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from numpy.typing import NDArray

    from stcontrast._data.folds import Folds

__all__ = ["Familiarity"]

N_COMPONENTS: Final = 16
N_NEIGHBORS: Final = 10
QUANTILE: Final = 0.99


@dataclass(frozen=True, slots=True)
class Familiarity:
    """Mean distance to the nearest training spots, against what held-out training spots have.

    Attributes
    ----------
    center, scale, rotation
        From features to the training's principal components.
    reference
        Training spots in that projection.
    radius
        Distance up to which a spot counts as familiar.
    """

    center: NDArray[np.float32]
    scale: NDArray[np.float32]
    rotation: NDArray[np.float32]
    reference: NDArray[np.float32]
    radius: NDArray[np.float32]

    @classmethod
    def fit(
        cls, features: NDArray[np.float32], folds: Folds, *, in_fold: Sequence[NDArray[np.float32] | None] = ()
    ) -> Self:
        """Learn from training spots.

        Parameters
        ----------
        features
            Features of the training spots (n_spots, n_features).
        folds
            Inner folds: the distance of held-out spots from the rest sets the radius.
        in_fold
            Features of the same spots in every fold (n_spots, n_features), where an encoder was trained for each. Their
            distances are measured in a projection of their own: the final encoder has seen every spot, to which it
            brings the others nearer than it would a new one.
        """
        held_out = [
            cls._project(seen[fold.train]).distance(seen[fold.held_out])
            for fold, seen in zip(folds.folds, in_fold, strict=False)
            if seen is not None
        ]
        fitted = cls._project(features)
        if not held_out:
            reference = fitted.reference
            held_out = [_distance(reference[fold.held_out], reference[fold.train]) for fold in folds.folds]
        return replace(fitted, radius=np.asarray(np.float32(np.quantile(np.concatenate(held_out), QUANTILE))))

    @classmethod
    def _project(cls, features: NDArray[np.float32]) -> Self:
        center, scale = features.mean(axis=0), features.std(axis=0)
        scale = np.where(scale < 1e-6 * np.maximum(np.abs(center), 1e-6), 1.0, scale).astype(np.float32)
        scaled = (features - center) / scale
        pca = PCA(min(N_COMPONENTS, *features.shape), random_state=0).fit(scaled)
        rotation = pca.components_.T.astype(np.float32)
        reference = (scaled @ rotation).astype(np.float32)
        return cls(center, scale, rotation, reference, np.asarray(np.float32(np.inf)))

    def distance(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean distance of spots (n_spots, n_features) to the nearest training spots."""
        scaled = (features - self.center) / self.scale
        return _distance((scaled @ self.rotation).astype(np.float32), self.reference)

    def includes(self, features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether spots (n_spots, n_features) lie within the radius."""
        return self.distance(features) <= float(self.radius)

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """All of it, by name."""
        return {f"{prefix}_{item.name}": np.asarray(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], prefix: str) -> Self:
        """The reverse of :meth:`arrays`."""
        return cls(**{item.name: arrays[f"{prefix}_{item.name}"] for item in fields(cls)})


def _distance(points: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float64]:
    k = min(N_NEIGHBORS, len(reference))
    distances, _ = cKDTree(reference).query(points, k=k)
    return np.asarray(distances).reshape(len(points), k).mean(axis=1)

"""How far to trust a prediction: intervals and scores from out-of-fold predictions, and which spots are in distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from scipy.spatial import cKDTree

from stcontrast._data import column_parts
from stcontrast._slides import rows_by_slide
from stcontrast._state import Learns
from stcontrast.metrics import gene_correlation, mean_slide_correlation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from numpy.typing import NDArray

    from stcontrast._data import Fold, Prediction, Spots
    from stcontrast._state import State

__all__ = ["LEVEL", "Calibration", "InDistribution", "conformal_half_width", "error_factors"]

LEVEL: Final = 0.9
N_COMPONENTS: Final = 16
N_NEIGHBORS: Final = 10
QUANTILE: Final = 0.99
GENES_AT_ONCE: Final = 64
# training spots that a new one is compared with: more would make the cost quadratic
MAX_REFERENCE: Final = 5000
# training spots that the projection is learnt from
MAX_PROJECTED: Final = 20_000
SPOTS_AT_ONCE: Final = 2048
N_FACTORS: Final = 16
# columns beyond the factors, and passes over the errors, that make the factors exact to some digits
N_MORE: Final = 8
N_PASSES: Final = 4
VALUES_AT_ONCE: Final = 2**22
NO_ERRORS: Final = np.zeros((0, 0), dtype=np.float32)


class Calibration(Learns):
    """What out-of-fold predictions say of a model.

    Attributes
    ----------
    half_width
        Half the width of every gene's interval (n_genes,).
    held_out_r
        Correlation of every gene on held-out groups, mean over slides (n_genes,).
    spot_errors, slide_errors
        How the errors of genes go together (n_genes, n_factors + 1), of spots and of the means of slides; see
        :func:`~stcontrast.fitted._calibration.error_factors`. Without rows where nothing is known; of slides also where parts
        of one slide were held out.
    design
        What the method saw of the training spots.
    appearance
        Their image features before they were standardised within the slide: an image of another kind (inverted,
        fluorescence, another stain) may look like any other once it has been standardised.
    """

    learnt: ClassVar[tuple[str, ...]] = (
        "half_width", "held_out_r", "spot_errors", "slide_errors", "design", "appearance",
    )  # fmt: skip

    def __init__(self) -> None:
        self.half_width = self.held_out_r = np.zeros(0, dtype=np.float32)
        self.spot_errors = self.slide_errors = NO_ERRORS
        self.design, self.appearance = InDistribution(), InDistribution()

    def restore(self, state: State) -> None:
        """Take a state; one that was saved before the errors were kept has none."""
        super().restore({"spot_errors": NO_ERRORS, "slide_errors": NO_ERRORS, **state})

    def fit(self, found: Prediction, spots: Spots, folds: Sequence[Fold]) -> dict[str, Any]:
        """Turn out-of-fold predictions of training spots into intervals and scores.

        Parameters
        ----------
        found
            Out-of-fold predictions of all training spots.
        spots
            The training spots.
        folds
            The folds that `found` comes from.

        Returns
        -------
        Scores for the model spec.
        """
        scores: dict[str, Any] = {"held_out_unit": folds[0].unit}
        rows = np.flatnonzero(np.isfinite(found.expression).all(axis=1) & spots.measured)
        if spots.n_genes:
            self.half_width = np.concatenate(
                [
                    conformal_half_width(np.maximum(found.expression[rows, part], 0.0) - spots.observed[rows, part])
                    for part in (
                        slice(start, start + GENES_AT_ONCE) for start in range(0, spots.n_genes, GENES_AT_ONCE)
                    )
                ]
            )
            slides = rows_by_slide(spots.slide, rows)
            correlations = [gene_correlation(found.expression[here], spots.observed[here]) for here in slides]
            per_slide = np.array(correlations).reshape(-1, spots.n_genes)
            scored = np.isfinite(per_slide)
            mean = np.where(scored, per_slide, 0.0).sum(axis=0) / np.maximum(scored.sum(axis=0), 1)
            self.held_out_r = mean.astype(np.float32)
            scores["held_out_r"] = mean_slide_correlation(found.expression, spots.observed, spots.slide)
            scores["n_held_out"] = self._keep_errors(found, spots, rows, unit=folds[0].unit)
        labelled = np.flatnonzero(np.isfinite(found.proba).all(axis=1) & (spots.label >= 0))
        if spots.n_classes and len(labelled):
            from sklearn.metrics import f1_score

            guess = found.proba[labelled].argmax(axis=1)
            scores["held_out_macro_f1"] = float(f1_score(spots.label[labelled], guess, average="macro"))
        # where an encoder was fine-tuned without a fold's held-out rows, the fold has features of its own
        own = folds[0].spots.design is not spots.design
        self.design.fit(spots.design, folds, in_fold=[fold.spots.design for fold in folds] if own else None)
        self.appearance.fit(spots.features, folds, in_fold=[fold.spots.features for fold in folds] if own else None)
        return scores

    def _keep_errors(self, found: Prediction, spots: Spots, rows: NDArray[np.intp], *, unit: str) -> int:
        """How the errors of genes go together; returns how many groups were held out whose slides tell of new ones."""
        if not np.isfinite(self.half_width).all():
            return 0

        def errors(part: NDArray[np.intp]) -> NDArray[np.float32]:
            return np.maximum(found.expression[part], 0.0) - spots.observed[part]

        self.spot_errors = error_factors(errors, rows, spots.n_genes)
        if unit == "block":
            return 0
        means = np.stack([errors(here).mean(axis=0) for here in rows_by_slide(spots.slide, rows)])
        self.slide_errors = error_factors(means.__getitem__, np.arange(len(means)), spots.n_genes)
        return len(np.unique((spots.donor if unit == "donor" else spots.slide)[rows]))

    def in_distribution(self, spots: Spots) -> NDArray[np.bool_]:
        """Whether spots, by their design and their plain image features, look like those of the training slides."""
        return self.design.includes(spots.design) & self.appearance.includes(spots.features)


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
        self.reference = _thinned(self.reference)
        return self

    def _project(self, features: NDArray[np.float32]) -> Self:
        from sklearn.decomposition import PCA

        self.center, scale = np.empty((2, features.shape[1]), dtype=np.float32)
        for part in column_parts(*features.shape):
            self.center[part], scale[part] = features[:, part].mean(axis=0), features[:, part].std(axis=0)
        flat = scale < 1e-6 * np.maximum(np.abs(self.center), 1e-6)
        self.scale = np.where(flat, 1.0, scale).astype(np.float32)
        scaled = _thinned(features, MAX_PROJECTED) - self.center
        scaled /= self.scale
        pca = PCA(min(N_COMPONENTS, *scaled.shape), copy=False, random_state=0).fit(scaled)
        self.rotation = pca.components_.T.astype(np.float32)
        self.reference = self._rotated(features)
        return self

    def _rotated(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        rotated = np.empty((len(features), len(self.rotation.T)), dtype=np.float32)
        for start in range(0, len(features), SPOTS_AT_ONCE):
            part = slice(start, start + SPOTS_AT_ONCE)
            rotated[part] = ((features[part] - self.center) / self.scale) @ self.rotation
        return rotated

    def distance(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean distance of spots (n_spots, n_features) to the nearest training spots."""
        return _distance(self._rotated(features), self.reference)

    def includes(self, features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether spots (n_spots, n_features) lie within the radius."""
        return self.distance(features) <= self.radius


def _thinned(points: NDArray[np.float32], most: int = MAX_REFERENCE) -> NDArray[np.float32]:
    """So many of the points at most, evenly spaced."""
    if len(points) <= most:
        return points
    return points[np.linspace(0, len(points) - 1, most).astype(np.intp)]


def _distance(points: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float64]:
    reference = _thinned(reference)
    k = min(N_NEIGHBORS, len(reference))
    distances, _ = cKDTree(reference).query(points, k=k)
    return np.asarray(distances).reshape(len(points), k).mean(axis=1)


def error_factors(
    errors: Callable[[NDArray[np.intp]], NDArray[np.float32]], rows: NDArray[np.intp], n_genes: int
) -> NDArray[np.float32]:
    r"""Second moments of errors as factors and a rest.

    With :math:`F` all columns but the last and :math:`d` the last one, the second moments (about 0, as a bias is an error
    too) are about :math:`F F^T + \operatorname{diag}(d^2)`. Those of single genes are exact. The factors are the
    principal axes of the errors, each gene divided by the root of its mean squared error.

    Parameters
    ----------
    errors
        Gives the errors (n, n_genes) of n rows.
    rows
        Rows to look at.
    n_genes
        Number of genes.

    Returns
    -------
    Factors and rest (n_genes, n_factors + 1); nothing (0, 0) where there are no rows.
    """
    if not len(rows) or not n_genes:
        return NO_ERRORS
    parts = np.array_split(rows, -(-len(rows) * n_genes // VALUES_AT_ONCE))
    square = sum((errors(part).astype(np.float64) ** 2).sum(axis=0) for part in parts) / len(rows)
    scale = np.sqrt(np.where(square > 0, square, 1.0)).astype(np.float32)
    n_factors = min(N_FACTORS, n_genes, len(rows))
    start = np.random.default_rng(0).normal(size=(n_genes, min(n_factors + N_MORE, n_genes)))
    basis: NDArray[Any] = start.astype(np.float32)
    for _ in range(N_PASSES):
        basis = np.linalg.qr(basis)[0]
        scaled = (errors(part) / scale for part in parts)
        basis = np.asarray(sum(block.T @ (block @ basis) for block in scaled)) / np.float32(len(rows))
    basis = np.linalg.qr(basis)[0]
    seen = (errors(part) / scale @ basis for part in parts)
    moments = sum(block.astype(np.float64).T @ block for block in seen) / len(rows)
    variance, axes = np.linalg.eigh(moments)
    factors = scale[:, None] * (basis @ axes[:, -n_factors:]) * np.sqrt(np.maximum(variance[-n_factors:], 0.0))
    rest = np.sqrt(np.maximum(square - (factors**2).sum(axis=1), 0.0))
    return np.column_stack([factors[:, ::-1], rest]).astype(np.float32)

"""One fit of a cross-validation: a method learns without a fold, and predicts it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from stcontrast._keys import GENE_EMBEDDING, IMAGE_EMBEDDING
from stcontrast._settings import settings
from stcontrast._training import one_thread
from stcontrast.fitted._fit import fit_model, spots_of_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from stcontrast._data.spots import Spots
    from stcontrast.fitted._fit import FitSpec
    from stcontrast.tl._tune import TunedFeatures

__all__ = ["Fitted", "Job", "Material", "fit_and_predict"]


@dataclass(frozen=True, slots=True)
class Material:
    """What all fits of a cross-validation work on.

    Attributes
    ----------
    inputs
        All spots.
    features, record
        Their image features (n_spots, n_features), and what made those.
    color, color_record
        The same of colour statistics; `None` where no method looks at them.
    """

    inputs: Spots
    features: NDArray[np.float32]
    record: Mapping[str, Any]
    color: NDArray[np.float32] | None = None
    color_record: Mapping[str, Any] | None = None

    def features_of(self, job: Job) -> tuple[NDArray[np.float32], Mapping[str, Any]]:
        """What the method of a fit looks at, and what made it."""
        if job.tuned is not None:
            return job.tuned.features, job.tuned.record
        if job.uses_color and self.color is not None and self.color_record is not None:
            return self.color, self.color_record
        return self.features, self.record


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One fit.

    Attributes
    ----------
    name, method
        Row of the comparison, and the method in it.
    fit_spec
        How to fit.
    uses_color
        Whether it looks at colour statistics.
    train_rows, test_rows
        Spots to learn from and spots to predict.
    donors
        Donors that are held out.
    tuned
        Features by an encoder that was fine-tuned without them; `None` where all fits look at the same features.
    """

    name: str
    method: str
    fit_spec: FitSpec
    uses_color: bool
    train_rows: NDArray[np.intp]
    test_rows: NDArray[np.intp]
    donors: list[str]
    tuned: TunedFeatures | None = None


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit leaves behind.

    Attributes
    ----------
    genes, classes
        What it modelled, in the order of the predictions.
    expression, proba
        Predictions of the held-out spots (n_test, n_genes) and (n_test, n_classes), or `None`.
    half_width
        Half the width of every gene's interval (n_genes,), or `None`.
    image, gene
        Embeddings of the held-out spots (n_test, k) in a space that both share, or `None`.
    """

    genes: list[str]
    classes: list[str]
    expression: NDArray[np.float32] | None
    proba: NDArray[np.float32] | None
    half_width: NDArray[np.float32] | None = None
    image: NDArray[np.float32] | None = None
    gene: NDArray[np.float32] | None = None


def fit_and_predict(job: Job, material: Material) -> Fitted:
    """Fit on the training spots of a job and predict its test spots, on one thread."""
    inputs, rows = material.inputs, job.test_rows
    features, record = material.features_of(job)
    # the last bits depend on the number of threads, and must not depend on the number of processes
    with settings.override(progress=False), threadpool_limits(1), one_thread():
        spots = replace(inputs, features=features)
        model = fit_model(
            spots, job.train_rows, method=job.method, fit_spec=job.fit_spec, features_spec=record,
            of_fold=() if job.tuned is None else job.tuned.of_fold,
        )  # fmt: skip
        prediction = model.predict(
            features[rows], slide=inputs.slide[rows], xy=inputs.xy[rows], depth=inputs.depth[rows]
        )
        embedded = {}
        if model.has_expression and inputs.measured[rows].any():
            embedded = model.method.embed(spots_of_model(spots, rows, model.spec))
    image, gene = embedded.get(IMAGE_EMBEDDING), embedded.get(GENE_EMBEDDING)
    if image is None or gene is None:
        image = gene = None
    half_width = model.calibration.half_width if model.has_expression else None
    expression = prediction.expression if model.has_expression else None
    proba = prediction.proba if model.classes else None
    return Fitted(model.genes, model.classes, expression, proba, half_width, image, gene)

"""What the published methods that regress expression on the image share: options, fitting, subtypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stcontrast._arguments import check_fields
from stcontrast.methods._linear import LinearClassifier
from stcontrast.methods.published._trained import TrainedMethod, check_choices
from stcontrast.nn import ExpressionLoss  # noqa: TC001 (read at run time, to check options)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data import Spots

__all__ = ["RegressionMethod", "RegressionOptions"]


@dataclass(frozen=True, kw_only=True)
class RegressionOptions:
    """Options that every regressing method has; a method sets its own defaults and adds its own.

    Parameters
    ----------
    n_hidden
        Width of the network.
    dropout
        Dropout in it.
    expression_loss
        ``"squared"`` error, or ``"rank"``: how well the differences between spots of a slide are predicted.
    learning_rate, weight_decay, batch_size, max_epochs
        Of the training.
    max_steps
        Steps of the training, instead of `max_epochs` passes through the spots.
    """

    n_hidden: int = 256
    dropout: float = 0.3
    expression_loss: ExpressionLoss = "squared"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    batch_size: int = 128
    max_epochs: int = 50
    max_steps: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        check_fields(self)


class RegressionMethod(TrainedMethod):
    """A network that predicts expression from the image, and logistic regression of subtypes on the image features.

    Expression is centred within its slide before it is learnt; the mean over slides is added back to the prediction. A
    subclass sets `name` and `options_type`, and builds its network in :meth:`build`.

    Parameters
    ----------
    seed
        Seed of all of it.
    **options
        Fields of `options_type`.
    """

    options_type: ClassVar[type[RegressionOptions]] = RegressionOptions
    regresses: ClassVar[bool] = True
    network: ClassVar[str] = "regression network"
    learnt: ClassVar[tuple[str, ...]] = ("arrays", "classifier")

    def __init__(self, *, seed: int = 0, **options: Any) -> None:
        super().__init__(seed=seed, **options)
        self.classifier = LinearClassifier()

    def fit_parts(self, spots: Spots) -> None:
        """Train the network on spots with counts, and fit the classifier on those with labels."""
        self.scale_to(spots)
        self.classifier = LinearClassifier()
        if spots.has_counts:
            measured = spots.take(np.flatnonzero(spots.measured))
            self.arrays["mean"], of_spot = measured.slide_means()
            self.train(self._table(measured, target=measured.target - of_spot))
        if spots.has_labels:
            self.classifier.fit(spots.design, spots, weights=spots.column_weights)

    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        return self.regress(spots)

    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        return self.classifier.predict_proba(spots.design)

"""The network baseline: image features to expression and subtype, without a gene side and without contrast."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from stcontrast.methods._base import Method
from stcontrast.methods._network import Network, stop_on_folds

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from stcontrast._data.folds import Fold
    from stcontrast._data.spots import Prediction, Spots

__all__ = ["Mlp"]


class Mlp(Method):
    """Image tower, decoder and subtype head of :class:`~stcontrast.models.ContrastiveModel`, without a gene tower.

    A contrast is of use where a method with it is better than this one. Inner folds choose when to stop.

    Parameters
    ----------
    n_hidden
        Width.
    max_epochs
        Length of the training.
    seed
        Seed of weights and batches.
    """

    name: ClassVar[str] = "mlp"
    spotwise: ClassVar[bool] = True
    reference: ClassVar[str] = "Multi-layer perceptron on the image features"
    learnt: ClassVar[tuple[str, ...]] = ("stop_epoch", "network")

    def __init__(self, *, n_hidden: int = 128, max_epochs: int = 60, seed: int = 0) -> None:
        super().__init__(seed=seed)
        if n_hidden < 1 or max_epochs < 1:
            msg = "`n_hidden` and `max_epochs` must be at least 1."
            raise ValueError(msg)
        self.n_hidden = n_hidden
        self.max_epochs = max_epochs
        self.stop_epoch: int | None = None
        self.network = Network(n_embedding=n_hidden, max_epochs=max_epochs, seed=seed)

    def fit(self, spots: Spots, folds: Sequence[Fold]) -> Prediction:
        """Choose the length of the training on inner folds, then fit on all spots."""
        found, self.stop_epoch = stop_on_folds(spots, folds, self._fit_one)
        self.fit_parts(spots)
        return found

    def _fit_one(self, spots: Spots, held_out: NDArray[np.intp]) -> tuple[list[Network], list[int]]:
        network = self.network.fresh()
        return [network], [network.fit(spots, held_out=held_out)]

    def fit_parts(self, spots: Spots) -> None:
        """Train on all spots."""
        self.network.fit(spots, stop_epoch=self.stop_epoch)

    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        return self.network.expression(spots)

    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        return self.network.proba(spots)

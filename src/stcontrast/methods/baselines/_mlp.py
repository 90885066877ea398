"""The baseline that is a network and nothing else: no gene side, no contrast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stcontrast._data.spots import Held
from stcontrast._progress import progress
from stcontrast._settings import settings
from stcontrast.methods._base import Method
from stcontrast.methods._network import Network

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stcontrast._data.folds import Folds
    from stcontrast._data.spots import TrainingData, View

__all__ = ["Mlp"]


class Mlp(Method):
    """Image tower, decoder and subtype head of :class:`~stcontrast.models.ContrastiveModel`, without a gene tower.

    What a method with a contrast has to beat for the contrast to have done anything. Inner folds say when to stop.

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

    def __init__(self, *, n_hidden: int = 128, max_epochs: int = 60, seed: int = 0) -> None:
        super().__init__(seed=seed)
        if n_hidden < 1 or max_epochs < 1:
            msg = "`n_hidden` and `max_epochs` must be at least 1."
            raise ValueError(msg)
        self.n_hidden = n_hidden
        self.max_epochs = max_epochs
        self.stop_epoch: int | None = None
        self.network = Network(n_embedding=n_hidden, max_epochs=max_epochs, seed=seed)

    @property
    def hyper(self) -> dict[str, Any]:
        """Arguments that make the same method again."""
        return {"n_hidden": self.n_hidden, "max_epochs": self.max_epochs, "seed": self.seed}

    def fit(self, data: TrainingData, folds: Folds) -> Held:
        """Choose the length of the training on inner folds, then fit on all spots."""
        held = Held.empty(data)
        epochs = []
        for fold in progress(folds.folds, description=f"held-out {folds.unit}s", unit="fit"):
            part = Network(**self.network.hyper)
            rows = np.union1d(fold.train, fold.held_out)
            with settings.override(progress=False):
                both = data.training(fold, with_held_out=True)
                epochs.append(part.fit(both, held_out=np.searchsorted(rows, fold.held_out)))
            view = data.held_out(fold)
            if data.measured[fold.train].any():
                held.expression[fold.held_out] = part.expression(view)
            if (data.label[fold.train] >= 0).any():
                held.proba[fold.held_out] = part.proba(view)
        self.stop_epoch = int(np.median(epochs))
        self.fit_parts(data)
        return held

    def fit_parts(self, data: TrainingData) -> None:
        """Train on all spots."""
        self.network.fit(data, stop_epoch=self.stop_epoch)

    def predict_expression(self, view: View) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        return self.network.expression(view)

    def predict_proba(self, view: View) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        return self.network.proba(view)

    def save_parts(self, folder: Path) -> None:
        """Write the network."""
        self.network.save(folder)

    def load_parts(self, folder: Path) -> None:
        """Read the network."""
        self.network.load(folder)

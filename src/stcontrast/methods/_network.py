"""A contrastive model together with the scales of what goes in and comes out."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from stcontrast._data.spots import Prediction
from stcontrast._progress import progress
from stcontrast._settings import settings
from stcontrast.methods._linear import standardizer
from stcontrast.methods._state import Learns, State, fitted, module_state, restore_module

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from numpy.typing import NDArray

    from stcontrast._data.folds import Fold
    from stcontrast._data.spots import Spots
    from stcontrast._models.contrastive import ContrastiveModel

__all__ = ["Network", "average_expression", "average_proba", "stop_on_folds"]


class Network(Learns):
    """:class:`~stcontrast.models.ContrastiveModel` on a method's training spots.

    Expression is centred within its slide and scaled by gene; image and gene inputs are standardised. All scales are
    those of the spots trained on.

    Parameters
    ----------
    **spec
        Parameters of the model, without the sizes, which the spots give.
    """

    def __init__(self, **spec: Any) -> None:
        self.spec = spec
        self.model: ContrastiveModel | None = None
        self.scales: dict[str, NDArray[np.float32]] = {}

    def fresh(self) -> Self:
        """The same network, not fitted."""
        return type(self)(**self.spec)

    def fit(
        self,
        spots: Spots,
        *,
        gene: NDArray[np.float32] | None = None,
        held_out: NDArray[np.intp] | None = None,
        stop_epoch: int | None = None,
    ) -> int:
        """Train; returns the epoch that the weights are of.

        Parameters
        ----------
        spots
            Training spots.
        gene
            Input of the gene tower (n_spots, k), any number in spots without counts; no gene tower by default.
        held_out
            Rows that nothing is fitted on; the network stops by its loss on them.
        stop_epoch
            Epoch to stop after, where nothing is held out.
        """
        from stcontrast._models.contrastive import ContrastiveModel

        stops = np.zeros(len(spots), dtype=bool)
        if held_out is not None:
            stops[held_out] = True
        train = spots.take(np.flatnonzero(~stops))
        center, scale = standardizer(train.design)
        self.scales = {"center": center, "scale": scale}
        measured, target = spots.measured, None
        if train.has_counts:
            mean, _ = train.slide_means()
            _, of_spot = spots.slide_means()
            centered = np.where(measured[:, None], spots.target - of_spot, 0.0).astype(np.float32)
            # by what was measured: a denoised gene that hardly varies is not blown up to count like the others
            deviation = (train.observed - train.slide_means(train.observed)[1])[train.measured].std(axis=0)
            self.scales |= {"mean": mean, "deviation": deviation + np.float32(1e-6)}
            target = centered / self.scales["deviation"]
        else:
            measured, gene = np.zeros_like(measured), None
        if gene is not None:
            known = gene[~stops & measured]
            gene = (gene - known.mean(axis=0)) / (known.std(axis=0) + np.float32(1e-6))
        self.model = ContrastiveModel(
            n_image=spots.design.shape[1],
            n_gene=0 if gene is None else gene.shape[1],
            n_targets=0 if target is None else target.shape[1],
            n_classes=spots.n_classes if train.has_labels else 0,
            **self.spec,
        )
        self.model.train(
            self._scaled(spots),
            gene=gene,
            target=target,
            label=spots.label,
            measured=measured,
            group=stops,
            held_out=[True] if stops.any() else [],
            stop_epoch=None if stops.any() else stop_epoch,
        )
        return self.model.n_epochs

    def expression(self, spots: Spots) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes)."""
        deviation = fitted(self.scales.get("deviation"), needs="counts")
        return self._model().predict_expression(self._scaled(spots)) * deviation + self.scales["mean"]

    def proba(self, spots: Spots) -> NDArray[np.float32]:
        """Class probabilities (n_spots, n_classes)."""
        return self._model().predict_proba(self._scaled(spots))

    def embed_image(self, spots: Spots) -> NDArray[np.float32]:
        """Joint embedding of the image side (n_spots, n_embedding), unit length."""
        return self._model().embed_image(self._scaled(spots))

    def state(self) -> State:
        """Configuration, weights and scales."""
        model = self._model()
        return {
            "scales": self.scales, "config": asdict(model.config), "n_epochs": model.n_epochs,
            "weights": module_state(model.module),
        }  # fmt: skip

    def restore(self, state: State) -> None:
        """Take what :meth:`state` gave."""
        from stcontrast._models.contrastive import ContrastiveModel

        self.scales = state["scales"]
        self.model = ContrastiveModel(**state["config"])
        self.model.n_epochs = state["n_epochs"]
        restore_module(self.model.module, state["weights"])

    def _model(self) -> ContrastiveModel:
        if self.model is None:
            msg = "The method has not been fitted."
            raise RuntimeError(msg)
        return self.model

    def _scaled(self, spots: Spots) -> NDArray[np.float32]:
        return (spots.design - self.scales["center"]) / self.scales["scale"]


def average_expression(networks: Sequence[Network], spots: Spots) -> NDArray[np.float32]:
    """Mean expression of several networks (n_spots, n_genes)."""
    return np.mean([network.expression(spots) for network in networks], axis=0, dtype=np.float32)


def average_proba(networks: Sequence[Network], spots: Spots) -> NDArray[np.float32]:
    """Mean class probabilities of several networks (n_spots, n_classes)."""
    return np.mean([network.proba(spots) for network in networks], axis=0, dtype=np.float32)


def stop_on_folds(
    spots: Spots,
    folds: Sequence[Fold],
    fit: Callable[[Spots, NDArray[np.intp]], tuple[Sequence[Network], Sequence[int]]],
) -> tuple[Prediction, int]:
    """Predict every spot by networks that were trained without its group, and say when to stop.

    Parameters
    ----------
    spots
        All training spots.
    folds
        Inner folds.
    fit
        Trains on spots, of which some rows are held out to stop by: networks, and the epochs of their weights.

    Returns
    -------
    Out-of-fold predictions, and the median epoch.
    """
    found = Prediction.empty(len(spots), n_genes=spots.n_genes, n_classes=spots.n_classes)
    epochs: list[int] = []
    for fold in progress(folds, description=f"held-out {folds[0].unit}s", unit="fit"):
        with settings.override(progress=False):
            networks, stopped = fit(*fold.together())
        epochs += stopped
        unseen = fold.unseen()
        if fold.has_counts:
            found.expression[fold.held_out] = average_expression(networks, unseen)
        if fold.has_labels:
            found.proba[fold.held_out] = average_proba(networks, unseen)
    return found, int(np.median(epochs))

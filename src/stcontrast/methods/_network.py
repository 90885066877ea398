"""A contrastive model together with the scales of what goes in and comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stcontrast.methods._arrays import load_arrays, save_arrays

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stcontrast._data.spots import TrainingData, View
    from stcontrast._models.contrastive import ContrastiveModel

__all__ = ["Network", "standardiser"]


def standardiser(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation of every column; a constant column is left at its scale."""
    deviation = values.std(axis=0)
    return values.mean(axis=0), np.where(deviation < 1e-6, 1.0, deviation).astype(np.float32)


class Network:
    """:class:`~stcontrast.models.ContrastiveModel` on a method's training data.

    Expression is centred within its slide and scaled by gene; image and gene inputs are standardised. All scales are
    those of the spots trained on.

    Parameters
    ----------
    **hyper
        Parameters of the model, save the sizes, which the data give.
    """

    def __init__(self, **hyper: Any) -> None:
        self.hyper = hyper
        self.model: ContrastiveModel | None = None
        self.scales: dict[str, NDArray[np.float32]] = {}

    def fit(
        self,
        data: TrainingData,
        *,
        gene: NDArray[np.float32] | None = None,
        held_out: NDArray[np.intp] | None = None,
        stop_epoch: int | None = None,
    ) -> int:
        """Train; returns the epoch that the weights are of.

        Parameters
        ----------
        data
            Training spots.
        gene
            Input of the gene tower (n_spots, k), any number in spots without counts; no gene tower by default.
        held_out
            Rows that nothing is fitted on; the network stops by its loss on them.
        stop_epoch
            Epoch to stop after, where nothing is held out.
        """
        from stcontrast._models.contrastive import ContrastiveModel

        held = np.zeros(len(data.design), dtype=bool)
        if held_out is not None:
            held[held_out] = True
        train = data.take(np.flatnonzero(~held))
        center, scale = standardiser(train.design)
        self.scales = {"center": center, "scale": scale}
        measured, target = data.measured, None
        if train.measured.any():
            mean, _ = train.slide_means()
            _, of_spot = data.slide_means()
            centered = np.where(measured[:, None], data.target - of_spot, 0.0).astype(np.float32)
            # by what was measured: a denoised gene that hardly varies is not blown up to count like the others
            spread = (train.observed - replace(train, target=train.observed).slide_means()[1])[train.measured]
            self.scales |= {"mean": mean, "deviation": spread.std(axis=0) + np.float32(1e-6)}
            target = centered / self.scales["deviation"]
        else:
            measured, gene = np.zeros_like(measured), None
        if gene is not None:
            known = gene[~held & measured]
            self.scales |= {"gene_mean": known.mean(axis=0), "gene_deviation": known.std(axis=0) + np.float32(1e-6)}
            gene = self._scaled_gene(gene)
        self.model = ContrastiveModel(
            n_image=data.design.shape[1],
            n_gene=0 if gene is None else gene.shape[1],
            n_targets=0 if target is None else target.shape[1],
            n_classes=data.n_classes if train.has_labels else 0,
            **self.hyper,
        )
        self.model.train(
            self._scaled(data),
            gene=gene,
            target=target,
            label=data.label,
            measured=measured,
            group=held,
            held_out=[True] if held.any() else [],
            stop_epoch=None if held.any() else stop_epoch,
        )
        return self.model.n_epochs

    def expression(self, view: View) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes)."""
        return self.fitted().predict_expression(self._scaled(view)) * self.scales["deviation"] + self.scales["mean"]

    def proba(self, view: View) -> NDArray[np.float32]:
        """Class probabilities (n_spots, n_classes)."""
        return self.fitted().predict_proba(self._scaled(view))

    def embed_image(self, view: View) -> NDArray[np.float32]:
        """Joint embedding of the image side (n_spots, n_embedding), unit length."""
        return self.fitted().embed_image(self._scaled(view))

    def fitted(self) -> ContrastiveModel:
        """The model."""
        if self.model is None:
            msg = "The method has not been fitted."
            raise RuntimeError(msg)
        return self.model

    def save(self, folder: Path) -> None:
        """Write model and scales."""
        save_arrays(folder / "scales.npz", self.scales)
        self.fitted().save(folder / "network")

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        from stcontrast._models.contrastive import ContrastiveModel

        self.scales = load_arrays(folder / "scales.npz")
        self.model = ContrastiveModel.load(folder / "network")

    def _scaled(self, view: View) -> NDArray[np.float32]:
        return (view.design - self.scales["center"]) / self.scales["scale"]

    def _scaled_gene(self, gene: NDArray[np.float32]) -> NDArray[np.float32]:
        return (gene - self.scales["gene_mean"]) / self.scales["gene_deviation"]

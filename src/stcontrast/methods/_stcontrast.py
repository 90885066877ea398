"""Our own method: a batch-free gene latent, contrast with the image, regression; weighed against ridge on inner donors."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np

from stcontrast._keys import GENE_EMBEDDING, IMAGE_EMBEDDING, VAE_LATENT
from stcontrast._progress import progress
from stcontrast._settings import settings
from stcontrast.methods._data import Held
from stcontrast.methods._gene_latent import GeneLatent
from stcontrast.methods._method import Method
from stcontrast.methods._network import Network
from stcontrast.methods._ridge import Ridge
from stcontrast.metrics import mean_slide_correlation

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stcontrast.methods._data import TrainingData, View
    from stcontrast.methods._folds import Folds

__all__ = ["Stcontrast"]

logger = logging.getLogger(__name__)

SHARES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
CHOSEN: Final = ("share", "class_share", "stop_epoch")


class Stcontrast(Method):
    """The default method.

    1. Counts → :class:`~stcontrast.models.BatchAgnosticVAE` → a latent without donor or batch.
    2. Image features and that latent → :class:`~stcontrast.models.ContrastiveModel`: contrast, expression
       (standardised, centred within the slide) and subtype learnt together. Inner folds say when to stop.
    3. Ridge and logistic regression on the same features. The prediction is the share of the network and the rest of
       the regression that predicted held-out groups best, for expression (correlation) and for subtypes (log loss)
       each; where the network does not help, its share is 0 and the model *is* the regression.

    Parameters
    ----------
    n_latent
        Dimensions of the gene latent.
    vae_epochs
        Length of the VAE's training; by default its own rule, fewer for more spots.
    loss
        Contrastive loss: ``"info_nce"`` or ``"similarity_target"``.
    contrastive_weight
        Its weight beside the squared error of standardised expression.
    temperature
        Its temperature.
    max_epochs
        Length of the network's training.
    seed
        Seed of all of it.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """

    name: ClassVar[str] = "stcontrast"
    reference: ClassVar[str] = "stcontrast; after TPIRBAE (Nishimura et al. 2025) and BLEEP (Xie et al. 2023)"

    def __init__(
        self,
        *,
        n_latent: int = 16,
        vae_epochs: int | None = None,
        loss: Literal["info_nce", "similarity_target"] = "info_nce",
        contrastive_weight: float = 0.1,
        temperature: float = 0.1,
        max_epochs: int = 60,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if loss not in ("info_nce", "similarity_target"):
            msg = f"Unknown loss {loss!r}. Valid options are 'info_nce' and 'similarity_target'."
            raise ValueError(msg)
        if n_latent < 1 or max_epochs < 1 or (vae_epochs is not None and vae_epochs < 1):
            msg = "`n_latent`, `max_epochs` and `vae_epochs` must be at least 1."
            raise ValueError(msg)
        if temperature <= 0 or contrastive_weight < 0:
            msg = "`temperature` must be positive, and `contrastive_weight` not negative."
            raise ValueError(msg)
        self.n_latent = n_latent
        self.vae_epochs = vae_epochs
        self.loss = loss
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature
        self.max_epochs = max_epochs
        self.share = 1.0
        self.class_share = 1.0
        self.stop_epoch: int | None = None
        self.ridge = Ridge(seed=seed)
        self.latent = GeneLatent(n_latent=n_latent, max_epochs=vae_epochs, seed=seed)
        self.network = Network(
            loss=loss,
            contrastive_weight=contrastive_weight,
            temperature=temperature,
            max_epochs=max_epochs,
            seed=seed,
        )

    @property
    def hyper(self) -> dict[str, Any]:
        """Arguments that make the same method again."""
        names = ("n_latent", "vae_epochs", "loss", "contrastive_weight", "temperature", "max_epochs", "seed")
        return {name: getattr(self, name) for name in names}

    def fit(self, data: TrainingData, folds: Folds) -> Held:
        """Choose the length of the training and the share of the network on inner folds, then fit on all spots."""
        ridge = self.ridge.fit(data, folds)
        network = Held.empty(data)
        epochs = []
        bar = progress(folds.folds, description=f"held-out {folds.unit}s", unit="fit")
        for fold in bar:
            part = type(self)(**self.hyper)
            rows = np.union1d(fold.train, fold.held_out)
            with settings.override(progress=False):
                held_out = np.searchsorted(rows, fold.held_out)
                epochs.append(part.fit_network(data.training(fold, with_held_out=True), held_out=held_out))
            view = data.view(fold.held_out)
            if data.measured[fold.train].any():
                network.expression[fold.held_out] = part.network_expression(view)
            if (data.label[fold.train] >= 0).any():
                network.proba[fold.held_out] = part.network_proba(view)
        self.stop_epoch = int(np.median(epochs))
        held = ridge
        best = -np.inf
        for share in SHARES if data.measured.any() else ():
            expression = _mixed(share, network.expression, ridge.expression)
            score = mean_slide_correlation(expression, data.observed, data.slide)
            if score > best:
                best, self.share, chosen = score, share, expression
        if data.measured.any():
            held = replace(held, expression=chosen)
        labelled = np.flatnonzero(np.isfinite(network.proba).all(axis=1) & (data.label >= 0))
        if len(labelled):
            losses = [_log_loss(_mixed(share, network.proba, ridge.proba), data.label, labelled) for share in SHARES]
            self.class_share = SHARES[int(np.argmin(losses))]
            held = replace(held, proba=_mixed(self.class_share, network.proba, ridge.proba))
        logger.info(
            "Network's share of expression %.2f, of subtypes %.2f; trained for %d epochs.",
            self.share, self.class_share, self.stop_epoch,
        )  # fmt: skip
        self.fit_network(data)
        return held

    def fit_parts(self, data: TrainingData) -> None:
        """Fit VAE, network and ridge on these spots."""
        self.ridge.fit_parts(data)
        self.fit_network(data)

    def fit_network(self, data: TrainingData, *, held_out: NDArray[np.intp] | None = None) -> int:
        """Fit VAE and network; returns the epoch that the network's weights are of.

        Parameters
        ----------
        data
            Training spots.
        held_out
            Rows that nothing is fitted on; the network stops by its loss on them.
        """
        rows = np.arange(len(data.design))
        train = data.take(rows if held_out is None else np.setdiff1d(rows, held_out))
        gene = None
        if train.measured.any():
            self.latent.fit(train)
            gene = np.zeros((len(rows), self.n_latent), dtype=np.float32)
            gene[data.measured] = self.latent.encode(data.counts[data.measured])
        return self.network.fit(data, gene=gene, held_out=held_out, stop_epoch=self.stop_epoch)

    def network_expression(self, view: View) -> NDArray[np.float32]:
        """The network's expression alone (n_spots, n_genes)."""
        return self.network.expression(view)

    def network_proba(self, view: View) -> NDArray[np.float32]:
        """The network's class probabilities alone (n_spots, n_classes)."""
        return self.network.proba(view)

    def predict_expression(self, view: View) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        network = self.network_expression(view) if self.share > 0 else None
        ridge = self.ridge.predict_expression(view) if self.share < 1 else None
        return _mixed(self.share, network, ridge)

    def predict_proba(self, view: View) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        network = self.network_proba(view) if self.class_share > 0 else None
        regression = self.ridge.predict_proba(view) if self.class_share < 1 else None
        return _mixed(self.class_share, network, regression)

    def embed(self, data: TrainingData) -> dict[str, NDArray[np.float32]]:
        """Gene latent and joint embeddings of the training spots, by slot."""
        found = {IMAGE_EMBEDDING: self.network.embed_image(data)}
        if self.latent.vae is None:
            return found
        latent = self.latent.encode(data.counts[data.measured])
        genes = self.network.embed_genes(latent)
        return found | {VAE_LATENT: data.spread(latent), GENE_EMBEDDING: data.spread(genes)}

    def save_parts(self, folder: Path) -> None:
        """Write VAE, network, ridge and scales."""
        (folder / "stcontrast.json").write_text(json.dumps({name: getattr(self, name) for name in CHOSEN}))
        self.network.save(folder)
        self.ridge.save_parts(folder)
        self.latent.save(folder)

    def load_parts(self, folder: Path) -> None:
        """Read VAE, network, ridge and scales."""
        chosen = json.loads((folder / "stcontrast.json").read_text())
        self.share, self.class_share, self.stop_epoch = (chosen[name] for name in CHOSEN)
        self.network.load(folder)
        self.ridge.load_parts(folder)
        self.latent.load(folder)


def _mixed(
    share: float, network: NDArray[np.float32] | None, regression: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Share of the network and the rest of the regression; what has no share may be absent."""
    mixed = np.zeros((), dtype=np.float32)
    for weight, part in ((share, network), (1 - share, regression)):
        if weight > 0 and part is not None:
            mixed = mixed + np.float32(weight) * part
    return mixed


def _log_loss(proba: NDArray[np.float32], label: NDArray[np.int64], rows: NDArray[np.intp]) -> float:
    return float(-np.log(np.maximum(proba[rows, label[rows]], 1e-6)).mean())

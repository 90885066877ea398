"""Our own method: a batch-free gene latent, contrast with the image, regression; weighed against ridge on inner donors."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
from sklearn.metrics import f1_score

from stcontrast._data.spots import Held
from stcontrast._keys import GENE_EMBEDDING, IMAGE_EMBEDDING, VAE_LATENT
from stcontrast._progress import progress
from stcontrast._settings import settings
from stcontrast.methods._arrays import load_arrays, save_arrays
from stcontrast.methods._base import Method
from stcontrast.methods._gene_latent import GeneLatent
from stcontrast.methods._network import Network
from stcontrast.methods._self_training import self_training_helps
from stcontrast.methods.baselines._kernel import Kernel
from stcontrast.methods.baselines._knn import Knn
from stcontrast.methods.baselines._ridge import Ridge
from stcontrast.methods.stcontrast._alignment import Alignment
from stcontrast.methods.stcontrast._stacking import mixed, shrinkage, stack_expression, stack_proba
from stcontrast.metrics import mean_slide_correlation

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stcontrast._data.folds import Folds
    from stcontrast._data.spots import TrainingData, View

__all__ = ["Stcontrast"]

logger = logging.getLogger(__name__)

MEMBERS: Final = ("network", "linear", "kernel", "knn", "ridge")
CHOSEN: Final = ("weights", "class_weights", "stop_epoch", "self_training")


class Stcontrast(Method):
    """The default method.

    1. Counts → :class:`~stcontrast.models.BatchAgnosticVAE` → a latent without donor or batch.
    2. Image features → :class:`~stcontrast.models.ContrastiveModel`: expression (standardised, centred within the
       slide) and subtype learnt together. Inner folds say when to stop. The latent and the image embedding that this
       gives are then aligned by contrast.
    3. Linear regression (discriminant analysis for subtypes), kernel regression and nearest neighbours on the same
       features, all of them, like the network, on expression whose counting noise was taken out: its first principal
       components. The plain ridge baseline (logistic regression for subtypes) is there too. The prediction is the
       weighted mean of the five that fits held-out groups best, for expression (least squares) and for subtypes
       (likelihood) each. Where the mean does not predict them better than ridge alone, the model *is* ridge.
    4. Where many spots have no subtype, all but the plain baseline learn from labels that a classifier gives them
       (self-training), if that makes the labels of held-out groups more likely.
    5. Every gene is drawn towards its mean by what held-out groups say of its predictability.

    Parameters
    ----------
    n_latent
        Dimensions of the gene latent.
    vae_epochs
        Length of the VAE's training; by default its own rule, fewer for more spots.
    loss
        Contrastive loss: ``"info_nce"`` or ``"similarity_target"``.
    contrastive_weight
        How much a contrast with the gene latent shapes the image embedding, beside the squared error of standardised
        expression. With 0 (default) it does not: the latent is aligned afterwards with the embedding that predicts
        expression and subtype best.
    temperature
        Its temperature.
    max_epochs
        Length of a network's training.
    n_networks
        Networks, which differ in their random numbers and are averaged.
    n_components
        Principal components of expression that are learnt; 0 learns expression as it was measured.
    seed
        Seed of all of it.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """

    name: ClassVar[str] = "stcontrast"
    spotwise: ClassVar[bool] = True
    reference: ClassVar[str] = "stcontrast; after TPIRBAE (Nishimura et al. 2025) and BLEEP (Xie et al. 2023)"

    def __init__(  # noqa: PLR0913
        self,
        *,
        n_latent: int = 16,
        vae_epochs: int | None = None,
        loss: Literal["info_nce", "similarity_target"] = "info_nce",
        contrastive_weight: float = 0.0,
        temperature: float = 0.1,
        max_epochs: int = 60,
        n_networks: int = 3,
        n_components: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if loss not in ("info_nce", "similarity_target"):
            msg = f"Unknown loss {loss!r}. Valid options are 'info_nce' and 'similarity_target'."
            raise ValueError(msg)
        if min(n_latent, max_epochs, n_networks, 1 if vae_epochs is None else vae_epochs) < 1:
            msg = "`n_latent`, `max_epochs`, `vae_epochs` and `n_networks` must be at least 1."
            raise ValueError(msg)
        if temperature <= 0 or min(contrastive_weight, n_components) < 0:
            msg = "`temperature` must be positive, and `contrastive_weight` and `n_components` not negative."
            raise ValueError(msg)
        self.n_latent = n_latent
        self.vae_epochs = vae_epochs
        self.loss = loss
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature
        self.max_epochs = max_epochs
        self.n_networks = n_networks
        self.n_components = n_components
        self.weights = dict.fromkeys(MEMBERS, 1 / len(MEMBERS))
        self.class_weights = dict(self.weights)
        self.stop_epoch: int | None = None
        self.self_training = False
        self.shrinkage: dict[str, NDArray[np.float32]] = {}
        self.members: dict[str, Method] = {
            "linear": Ridge(classifier="discriminant", seed=seed),
            "kernel": Kernel(seed=seed),
            "knn": Knn(seed=seed),
            "ridge": Ridge(seed=seed),
        }
        self.alignment = Alignment(loss=loss, temperature=temperature, seed=seed)
        self.latent = GeneLatent(n_latent=n_latent, max_epochs=vae_epochs, seed=seed)
        self.networks = [
            Network(
                loss=loss,
                contrastive_weight=contrastive_weight,
                temperature=temperature,
                max_epochs=max_epochs,
                seed=(seed + i) % 2**32,
            )
            for i in range(n_networks)
        ]

    @property
    def hyper(self) -> dict[str, Any]:
        """Arguments that make the same method again."""
        return {name: getattr(self, name) for name in (*self.option_names(), "seed")}

    def fit(self, data: TrainingData, folds: Folds) -> Held:
        """Choose the length of the training and the weights of the members on inner folds, then fit on all spots."""
        learnt = replace(data, n_components=self.n_components)
        self.self_training = self_training_helps(data, folds.folds)
        learnt = replace(learnt, self_training=self.self_training)
        held = {"network": Held.empty(data)}
        for name, member in self.members.items():
            held[name] = member.fit(data if name == "ridge" else learnt, folds)
        epochs = []
        bar = progress(folds.folds, description=f"held-out {folds.unit}s", unit="fit")
        for fold in bar:
            part = type(self)(**self.hyper)
            rows = np.union1d(fold.train, fold.held_out)
            with settings.override(progress=False):
                held_out = np.searchsorted(rows, fold.held_out)
                epochs += part.fit_networks(learnt.training(fold, with_held_out=True), held_out=held_out)
            view = data.held_out(fold)
            if data.measured[fold.train].any():
                held["network"].expression[fold.held_out] = part.network_expression(view)
            if (data.label[fold.train] >= 0).any():
                held["network"].proba[fold.held_out] = part.network_proba(view)
        self.stop_epoch = int(np.median(epochs))
        chosen = self._weigh(held, data)
        logger.info(
            "Weights of expression %s, of subtypes %s; trained for %d epochs.",
            _brief(self.weights), _brief(self.class_weights), self.stop_epoch,
        )  # fmt: skip
        self.fit_networks(learnt.prepared())
        return chosen

    def _weigh(self, held: dict[str, Held], data: TrainingData) -> Held:
        """Weigh the members by their held-out predictions; returns those of the weighted mean."""
        chosen = Held(held["ridge"].expression, held["ridge"].proba)
        self.shrinkage = {}
        if data.measured.any():
            expression = {name: held[name].expression for name in MEMBERS}
            found = stack_expression(list(expression.values()), data.observed, data.slide)
            self.weights = dict(zip(MEMBERS, found.tolist(), strict=True))
            stacked = mixed(self.weights, expression)
            scores = [mean_slide_correlation(part, data.observed, data.slide) for part in (stacked, chosen.expression)]
            if scores[0] > scores[1]:
                self.shrinkage = {
                    "center": data.slide_means()[0],
                    "slope": shrinkage(stacked, data.observed, data.slide),
                }
                chosen.expression = self._shrunk(stacked)
            else:
                self.weights = {name: float(name == "ridge") for name in MEMBERS}
        if data.has_labels:
            proba = {name: held[name].proba for name in MEMBERS}
            found = stack_proba(list(proba.values()), data.label)
            self.class_weights = dict(zip(MEMBERS, found.tolist(), strict=True))
            stacked = mixed(self.class_weights, proba)
            if _macro_f1(stacked, data.label) < _macro_f1(chosen.proba, data.label):
                self.class_weights = {name: float(name == "ridge") for name in MEMBERS}
            else:
                chosen.proba = stacked
        return chosen

    def _shrunk(self, expression: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.shrinkage:
            return expression
        center, slope = self.shrinkage["center"], self.shrinkage["slope"]
        return center + slope * (expression - center)

    def fit_parts(self, data: TrainingData) -> None:
        """Fit all members on these spots."""
        learnt = replace(data, n_components=self.n_components, self_training=self.self_training).prepared()
        for name, member in self.members.items():
            member.fit_parts(data if name == "ridge" else learnt)
        self.fit_networks(learnt)

    def fit_networks(self, data: TrainingData, *, held_out: NDArray[np.intp] | None = None) -> list[int]:
        """Fit VAE and networks; returns the epochs that the networks' weights are of.

        Parameters
        ----------
        data
            Training spots.
        held_out
            Rows that nothing is fitted on; the networks stop by their loss on them.
        """
        rows = np.arange(len(data.design))
        train = data.take(rows if held_out is None else np.setdiff1d(rows, held_out))
        gene = None
        shaping = self.contrastive_weight > 0
        # a latent that does not shape the image side is not needed to tell how well that predicts
        if train.measured.any() and (shaping or held_out is None):
            self.latent.fit(train)
            gene = np.zeros((len(rows), self.n_latent), dtype=np.float32)
            gene[data.measured] = self.latent.encode(data.counts[data.measured])
        seen = gene if shaping else None
        epochs = [
            network.fit(data, gene=seen, held_out=held_out, stop_epoch=self.stop_epoch) for network in self.networks
        ]
        if gene is not None and held_out is None:
            paired = np.flatnonzero(data.measured)
            image = self.networks[0].embed_image(data)[paired]
            self.alignment.fit(image, gene[paired], data.slide[paired], data.xy[paired])
        return epochs

    def network_expression(self, view: View) -> NDArray[np.float32]:
        """The networks' expression alone (n_spots, n_genes)."""
        return np.mean([network.expression(view) for network in self.networks], axis=0, dtype=np.float32)

    def network_proba(self, view: View) -> NDArray[np.float32]:
        """The networks' class probabilities alone (n_spots, n_classes)."""
        return np.mean([network.proba(view) for network in self.networks], axis=0, dtype=np.float32)

    def predict_expression(self, view: View) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        of_member = {name: member.predict_expression for name, member in self.members.items()}
        of_member["network"] = self.network_expression
        parts = {name: of_member[name](view) for name in MEMBERS if self.weights[name] > 0}
        return self._shrunk(mixed(self.weights, parts))

    def predict_proba(self, view: View) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        of_member = {name: member.predict_proba for name, member in self.members.items()}
        of_member["network"] = self.network_proba
        weights = self.class_weights
        return mixed(weights, {name: of_member[name](view) for name in MEMBERS if weights[name] > 0})

    def embed(self, data: TrainingData) -> dict[str, NDArray[np.float32]]:
        """Gene latent and joint embeddings of the training spots, by slot; without counts the first network's."""
        image = self.networks[0].embed_image(data)
        if self.latent.vae is None:
            return {IMAGE_EMBEDDING: image}
        latent = self.latent.encode(data.counts[data.measured])
        return {
            IMAGE_EMBEDDING: self.alignment.embed_image(image),
            VAE_LATENT: data.spread(latent),
            GENE_EMBEDDING: data.spread(self.alignment.embed_genes(latent)),
        }

    def save_parts(self, folder: Path) -> None:
        """Write all members and their weights."""
        (folder / "stcontrast.json").write_text(json.dumps({name: getattr(self, name) for name in CHOSEN}))
        for i, network in enumerate(self.networks):
            (folder / f"network{i}").mkdir()
            network.save(folder / f"network{i}")
        for name, member in self.members.items():
            (folder / name).mkdir()
            member.save_parts(folder / name)
        save_arrays(folder / "shrinkage.npz", self.shrinkage)
        self.alignment.save(folder)
        self.latent.save(folder)

    def load_parts(self, folder: Path) -> None:
        """Read all members and their weights."""
        for name, value in json.loads((folder / "stcontrast.json").read_text()).items():
            setattr(self, name, value)
        for i, network in enumerate(self.networks):
            network.load(folder / f"network{i}")
        for name, member in self.members.items():
            member.load_parts(folder / name)
        self.shrinkage = load_arrays(folder / "shrinkage.npz")
        self.alignment.load(folder)
        self.latent.load(folder)


def _macro_f1(proba: NDArray[np.float32], label: NDArray[np.int64]) -> float:
    rows = np.flatnonzero(np.isfinite(proba).all(axis=1) & (label >= 0))
    # labels of a single group: none was held out and predicted
    if len(rows) == 0:
        return 0.0
    return float(f1_score(label[rows], proba[rows].argmax(axis=1), average="macro", zero_division=0.0))


def _brief(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())

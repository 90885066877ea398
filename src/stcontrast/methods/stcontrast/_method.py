"""The default method: a batch-agnostic gene latent, contrast with the image, regression; weighed on inner donors."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np
from sklearn.metrics import f1_score

from stcontrast._data.spots import Prediction
from stcontrast._keys import GENE_EMBEDDING, IMAGE_EMBEDDING, VAE_LATENT
from stcontrast.methods._base import Method
from stcontrast.methods._gene_latent import GeneLatent
from stcontrast.methods._network import Network, average_expression, average_proba, stop_on_folds
from stcontrast.methods._targets import denoised, self_training_helps, with_pseudo_labels
from stcontrast.methods.baselines._kernel import Kernel
from stcontrast.methods.baselines._knn import Knn
from stcontrast.methods.baselines._ridge import Ridge
from stcontrast.methods.stcontrast._alignment import Alignment
from stcontrast.methods.stcontrast._stacking import calibration_slope, mixed, stack_expression, stack_proba
from stcontrast.metrics import mean_slide_correlation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from stcontrast._data.folds import Fold
    from stcontrast._data.spots import Spots

__all__ = ["Stcontrast"]

logger = logging.getLogger(__name__)

MEMBERS: Final = ("network", "linear", "kernel", "knn", "ridge")


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
    5. The prediction of every gene is scaled by its calibration slope on held-out groups.

    Parameters
    ----------
    n_latent
        Dimensions of the gene latent.
    vae_epochs
        Length of the VAE's training; by default its own rule, fewer for more spots.
    loss
        Contrastive loss: ``"info_nce"`` or ``"similarity_target"``.
    contrastive_weight
        How much a contrast with the gene latent shapes the image embedding, relative to the squared error of standardised
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
    learnt: ClassVar[tuple[str, ...]] = (
        "weights", "class_weights", "stop_epoch", "self_training", "slope", "members", "networks", "alignment", "latent",
    )  # fmt: skip

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
        self.slope: dict[str, NDArray[np.float32]] = {}
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

    def fit(self, spots: Spots, folds: Sequence[Fold]) -> Prediction:
        """Choose the length of the training and the weights of the members on inner folds, then fit on all spots."""
        self.self_training = self_training_helps(spots, folds)
        learnt = self._learnt(spots)
        learnt_folds = [fold.with_targets(self._learnt) for fold in folds]
        found = {
            name: member.fit(spots, folds) if name == "ridge" else member.fit(learnt, learnt_folds)
            for name, member in self.members.items()
        }
        found["network"], self.stop_epoch = stop_on_folds(learnt, learnt_folds, self._fit_in_fold)
        chosen = self._weigh(found, spots)
        logger.info(
            "Weights of expression %s, of subtypes %s; trained for %d epochs.",
            _brief(self.weights), _brief(self.class_weights), self.stop_epoch,
        )  # fmt: skip
        self.fit_networks(learnt)
        return chosen

    def _learnt(self, spots: Spots) -> Spots:
        """What all members but the plain baseline learn from."""
        learnt = denoised(spots, self.n_components)
        return with_pseudo_labels(learnt) if self.self_training else learnt

    def _fit_in_fold(self, spots: Spots, held_out: NDArray[np.intp]) -> tuple[list[Network], list[int]]:
        part = type(self)(**self.spec)
        epochs = part.fit_networks(spots, held_out=held_out)
        return part.networks, epochs

    def _weigh(self, found: Mapping[str, Prediction], spots: Spots) -> Prediction:
        """Weigh the members by their out-of-fold predictions; returns those of the weighted mean."""
        chosen = Prediction.empty(len(spots), n_genes=spots.n_genes, n_classes=spots.n_classes)
        chosen.expression, chosen.proba = found["ridge"].expression, found["ridge"].proba
        only_ridge = {name: float(name == "ridge") for name in MEMBERS}
        self.slope = {}
        if spots.has_counts:
            expression = {name: found[name].expression for name in MEMBERS}
            weights = stack_expression(list(expression.values()), spots.observed, spots.slide)
            self.weights = dict(zip(MEMBERS, weights.tolist(), strict=True))
            stacked = mixed(self.weights, expression)
            scores = [
                mean_slide_correlation(part, spots.observed, spots.slide) for part in (stacked, chosen.expression)
            ]
            if scores[0] > scores[1]:
                slope = calibration_slope(stacked, spots.observed, spots.slide)
                self.slope = {"center": spots.slide_means()[0], "slope": slope}
                chosen.expression = self._sloped(stacked)
            else:
                self.weights = only_ridge
        if spots.has_labels:
            proba = {name: found[name].proba for name in MEMBERS}
            weights = stack_proba(list(proba.values()), spots.label)
            self.class_weights = dict(zip(MEMBERS, weights.tolist(), strict=True))
            stacked = mixed(self.class_weights, proba)
            if _macro_f1(stacked, spots.label) < _macro_f1(chosen.proba, spots.label):
                self.class_weights = only_ridge
            else:
                chosen.proba = stacked
        return chosen

    def _sloped(self, expression: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expression drawn towards the mean of every gene by its calibration slope."""
        if not self.slope:
            return expression
        return self.slope["center"] + self.slope["slope"] * (expression - self.slope["center"])

    def fit_parts(self, spots: Spots) -> None:
        """Fit all members on these spots."""
        learnt = self._learnt(spots)
        for name, member in self.members.items():
            member.fit_parts(spots if name == "ridge" else learnt)
        self.fit_networks(learnt)

    def fit_networks(self, spots: Spots, *, held_out: NDArray[np.intp] | None = None) -> list[int]:
        """Fit VAE and networks; returns the epochs that the networks' weights are of.

        Parameters
        ----------
        spots
            Training spots.
        held_out
            Rows that nothing is fitted on; the networks stop by their loss on them.
        """
        stop_rows = np.zeros(0, dtype=np.intp) if held_out is None else held_out
        train_rows = np.setdiff1d(np.arange(len(spots)), stop_rows)
        train = spots.take(train_rows)
        gene = None
        shaping = self.contrastive_weight > 0
        # a latent that does not shape the image side is not needed to tell how well that predicts
        if train.has_counts and (shaping or held_out is None):
            self.latent.fit(train)
            gene = np.zeros((len(spots), self.n_latent), dtype=np.float32)
            # a spot is encoded against its slide: where blocks of one are held out, not against those
            for rows in (train_rows, stop_rows):
                here = spots.take(rows)
                if here.has_counts:
                    gene[rows[here.measured]] = self.latent.encode(here)
        seen = gene if shaping else None
        epochs = [
            network.fit(spots, gene=seen, held_out=held_out, stop_epoch=self.stop_epoch) for network in self.networks
        ]
        if gene is not None and held_out is None:
            paired = np.flatnonzero(spots.measured)
            image = self.networks[0].embed_image(spots)[paired]
            self.alignment.fit(image, gene[paired], spots.slide[paired], spots.xy[paired])
        return epochs

    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        parts = {
            name: average_expression(self.networks, spots)
            if name == "network"
            else self.members[name].predict_expression(spots)
            for name, weight in self.weights.items()
            if weight > 0
        }
        return self._sloped(mixed(self.weights, parts))

    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        parts = {
            name: average_proba(self.networks, spots) if name == "network" else self.members[name].predict_proba(spots)
            for name, weight in self.class_weights.items()
            if weight > 0
        }
        return mixed(self.class_weights, parts)

    def embed(self, spots: Spots) -> dict[str, NDArray[np.float32]]:
        """Gene latent and joint embeddings of the training spots, by slot; without counts the first network's."""
        image = self.networks[0].embed_image(spots)
        if self.latent.vae is None:
            return {IMAGE_EMBEDDING: image}
        latent = self.latent.encode(spots)
        return {
            IMAGE_EMBEDDING: self.alignment.embed_image(image),
            VAE_LATENT: spots.spread(latent),
            GENE_EMBEDDING: spots.spread(self.alignment.embed_genes(latent)),
        }


def _macro_f1(proba: NDArray[np.float32], label: NDArray[np.int64]) -> float:
    rows = np.flatnonzero(np.isfinite(proba).all(axis=1) & (label >= 0))
    # labels of a single group: none was held out and predicted
    if len(rows) == 0:
        return 0.0
    return float(f1_score(label[rows], proba[rows].argmax(axis=1), average="macro", zero_division=0.0))


def _brief(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())

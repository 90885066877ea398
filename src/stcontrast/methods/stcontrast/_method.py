"""The default method: image and genes tied by a contrast in a gene space, expression and subtypes predicted from it."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
from scipy.linalg import orthogonal_procrustes

from stcontrast._arguments import checked, one_of, whole
from stcontrast._data import Prediction, inner_folds
from stcontrast._files import content_hash
from stcontrast._genespace import VaeSpace
from stcontrast._keys import GENE_EMBEDDING, IMAGE_EMBEDDING, VAE_LATENT
from stcontrast._progress import stage
from stcontrast._state import module_state
from stcontrast.methods._base import Method
from stcontrast.methods._over_folds import over_folds
from stcontrast.methods.stcontrast._image_to_gene import MEMBERS, ImageToGene
from stcontrast.methods.stcontrast._stacking import CalibrationSlope, StackedWeights, mixed
from stcontrast.methods.stcontrast._subtypes import Subtypes, choose_on_folds
from stcontrast.nn import LOSSES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from stcontrast._data import Fold, Spots
    from stcontrast._models.batch_vae import BatchAgnosticVAE
    from stcontrast.methods._retrieval import Neighbors
    from stcontrast.nn import Loss

__all__ = ["Stcontrast"]

logger = logging.getLogger(__name__)

# the linear member loses least on a donor unlike those trained on
PRIOR: Final = {name: 0.3 if name == "linear" else 0.7 / 3 for name in MEMBERS}
N_COORDINATES: Final = {"axes": 8, "vae": 16}


class Stcontrast(Method):
    """The default method.

    1. Counts → gene space: a few coordinates of a spot's expression, comparable between donors, with a way back to
       genes. Principal axes of expression within slides to which donors contribute alike, or the latent of a
       :class:`~stcontrast.models.BatchAgnosticVAE`. Every slide with counts takes part, with an image or without.
    2. Contrast: :class:`~stcontrast.models.ContrastiveModel` ties image features and gene coordinates in a joint
       embedding, spots that express alike being partners.
    3. Expression: four members predict the coordinates (ridge regression, the model's read-out, retrieval in the joint
       embedding, retrieval by features). Their weighted mean is decoded to genes. With three or more donors the weights
       rest on held-out donors, with fewer they are fixed. Every gene is then scaled by its calibration slope.
    4. Subtypes: discriminant analysis and a kernel classifier see the image features and the joint embedding, so that
       slides with counts and no labels help. Where a tenth of the spots or more have no label, they learn
       from labels that they gave themselves (self-training), unless that makes the labels of held-out groups less likely.

    Parameters
    ----------
    gene_space
        ``"axes"`` (principal axes); ``"vae"``, trained on the training spots; or a trained
        :class:`~stcontrast.models.BatchAgnosticVAE`, or its folder, which is used as it is. Its genes are then modelled.
    n_coordinates
        Dimensions of the gene space; by default 8 axes, 16 of the VAE, or those of the given model.
    vae_epochs
        Length of the VAE's training; by default its own rule, fewer for more spots.
    loss
        Contrastive loss: ``"soft_target"``, ``"info_nce"``, ``"similarity_target"`` or ``"sigmoid"``.
    contrastive_weight
        Weight of the contrast, relative to the squared error of the coordinates; 0 trains without a contrast.
    temperature
        Its temperature.
    max_epochs
        Length of the contrastive model's training; by default its own rule, fewer for more spots. 0 leaves it untrained.
    penalty
        Penalty of the ridge regression.
    seed
        Seed of all of it.

    Raises
    ------
    TypeError
        If `gene_space` is something else.
    ValueError
        If a parameter is out of its range, or the given model has not been trained.
    """

    name: ClassVar[str] = "stcontrast"
    held: ClassVar[tuple[float, float]] = (8.0, 7.3)
    spotwise: ClassVar[bool] = True
    learns_from_gene_side: ClassVar[bool] = True
    reference: ClassVar[str] = "stcontrast; after TPIRBAE (Nishimura et al. 2025) and BLEEP (Xie et al. 2023)"
    learnt: ClassVar[tuple[str, ...]] = ("weights", "weights_rest_on", "slope", "parts", "subtypes", "class_unit")

    # without any epoch the towers stay as they were drawn: to measure what training adds
    @checked(loss=one_of(*LOSSES), max_epochs=whole(0))
    def __init__(  # noqa: PLR0913
        self,
        *,
        gene_space: Literal["axes", "vae"] | BatchAgnosticVAE | str | os.PathLike[str] = "axes",
        n_coordinates: int | None = None,
        vae_epochs: int | None = None,
        loss: Loss = "soft_target",
        contrastive_weight: float = 1.0,
        temperature: float = 0.1,
        max_epochs: int | None = None,
        penalty: float = 1e4,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.given = None if gene_space in ("axes", "vae") else _given_vae(gene_space)
        if self.given is not None and n_coordinates not in (None, self.given.module.n_latent):
            msg = f"`n_coordinates` is {n_coordinates}, but the given model has {self.given.module.n_latent}: leave it out."
            raise ValueError(msg)
        self.gene_space = "axes" if gene_space == "axes" else "vae"
        self.n_coordinates = n_coordinates
        if self.given is not None:
            self.n_coordinates = int(self.given.module.n_latent)
            self.genes = list(self.given.genes)
            weights = module_state(self.given.module)
            self.brought = content_hash([self.genes, list(weights), *weights.values()])
            self.batches_seen = list(self.given.batches)
        self.vae_epochs = vae_epochs
        self.loss = loss
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature
        self.max_epochs = max_epochs
        self.penalty = penalty
        self.weights = dict(PRIOR)
        self.weights_rest_on = "fixed"
        self.class_unit = ""
        self.slope = np.ones(0, dtype=np.float32)
        self.parts = ImageToGene(**self._part_options())
        self.subtypes = Subtypes(seed=seed)

    @property
    def latent(self) -> VaeSpace | None:
        """The VAE of the gene space, where that is one."""
        return self.parts.space if isinstance(self.parts.space, VaeSpace) else None

    def summary(self) -> dict[str, Any]:
        """What the model's spec says of the fit."""
        said: dict[str, Any] = {
            "weights": {name: round(weight, 4) for name, weight in self.weights.items()},
            "weights_rest_on": self.weights_rest_on,
        }
        if self.batches_seen:
            said |= {"gene_space_trained_on": list(self.batches_seen), "gene_space_sha256": self.brought}
        if self.class_unit:
            said |= {"class_unit": self.class_unit, "self_training": self.subtypes.self_training}
        return said

    def losses(self) -> dict[str, pd.DataFrame]:
        """Losses of the VAE, where the gene space is one that it trained, and of the contrastive model."""
        found = {} if self.latent is None or self.given is not None else self.latent.losses()
        history = None if self.parts.model is None else self.parts.model.history
        return found if history is None else {**found, "contrastive network": history}

    def fit(self, spots: Spots, folds: Sequence[Fold]) -> Prediction:
        """Weigh, scale and choose on inner folds; then fit on all spots."""
        found = Prediction.empty(len(spots), n_genes=spots.n_genes, n_classes=spots.n_classes)
        self.parts, embedding = ImageToGene(**self._part_options()), None
        if seen := self.seen_among(spots):
            logger.warning(
                "The given gene space was trained on %s: weights, calibration and intervals rest on held-out spots whose "
                "counts it has seen, and may look better than they are on a new donor.", ", ".join(seen[:5]),
            )  # fmt: skip
        if spots.has_counts:
            embedding = self._fit_expression(spots, folds, found)
        if spots.has_labels:
            by_label = _folds_of_labels(spots, folds)
            with stage("subtypes"):
                found.proba, self.subtypes.weights, self.subtypes.self_training = choose_on_folds(
                    spots, embedding, by_label, seed=self.seed
                )
                self.class_unit = by_label[0].unit if by_label else "nothing: too few labels to hold any out"
                self.subtypes.fit(spots, embedding)
        return found

    def _fit_expression(self, spots: Spots, folds: Sequence[Fold], found: Prediction) -> NDArray[np.float32]:
        """Fit all parts; returns the joint embedding of all spots, out-of-fold where their counts were learnt from."""
        # a single spot has none to be compared with
        folds = [fold for fold in folds if fold.spots.measured[fold.train].sum() > 1]
        unit = folds[0].unit if folds else "nothing"
        n_donors = len(np.unique(spots.donor[spots.measured])) if unit == "donor" else 1
        stacked, slopes = StackedWeights(PRIOR), CalibrationSlope()
        fits = over_folds(partial(_fit_fold, self._part_options()), folds)
        for fold, (part, predicted) in zip(folds, fits, strict=True):
            # as measured: targets of the fold are completed in its training spots alone
            held_out = fold.spots.without_design().take(fold.held_out)
            stacked.add(
                {name: values[held_out.measured] for name, values in predicted.items()},
                part.space.encode(held_out), held_out.slide[held_out.measured],
            )  # fmt: skip
        for i, (fold, (part, predicted)) in enumerate(zip(folds, fits, strict=True)):
            weights = stacked.found(n_donors=n_donors, without=i)
            expression = part.decode(mixed(weights, predicted))
            found.expression[fold.held_out] = expression
            here = np.flatnonzero(spots.measured[fold.held_out])
            rows = fold.held_out[here]
            slopes.add(expression[here], spots.observed[rows], spots.slide[rows])
        for i, (fold, (part, _)) in enumerate(zip(folds, fits, strict=True)):
            found.expression[fold.held_out] = _sloped(
                found.expression[fold.held_out], part.level, slopes.found(without=i)
            )
        self.weights = stacked.found(n_donors=n_donors)
        held_out_donors = f"out-of-fold predictions of {n_donors} donors, drawn towards fixed weights"
        self.weights_rest_on = "fixed weights: fewer than three donors" if n_donors < 3 else held_out_donors
        self.slope = slopes.found() if folds else np.ones(spots.n_genes, dtype=np.float32)
        self.parts.fit(spots)
        logger.info("Weights %s (%s).", {k: round(v, 2) for k, v in self.weights.items()}, self.weights_rest_on)
        embedding = self.parts.embed_image(spots)
        final = embedding.copy()
        for fold, (part, _) in zip(folds, fits, strict=True):
            # every training has axes of its own: turn them onto those of the last one
            of_part = part.embed_image(fold.spots)
            rotation, _ = orthogonal_procrustes(of_part[fold.train], final[fold.train])
            embedding[fold.held_out] = of_part[fold.held_out] @ rotation
        return embedding

    def fit_parts(self, spots: Spots) -> None:
        """Fit on these spots, with the weights and choices that are there."""
        self.parts, embedding = ImageToGene(**self._part_options()), None
        self.slope = np.ones(spots.n_genes, dtype=np.float32)
        if spots.has_counts:
            self.parts.fit(spots)
            embedding = self.parts.embed_image(spots)
        if spots.has_labels:
            self.subtypes.fit(spots, embedding)

    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        expression = self.parts.decode(mixed(self.weights, self.parts.predict(spots)))
        return _sloped(expression, self.parts.level, self.slope)

    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        return self.subtypes.predict(spots, None if self.parts.model is None else self.parts.embed_image(spots))

    def neighbors(self, spots: Spots) -> Neighbors:
        """Training spots, rows among those with counts, that are nearest in the joint embedding."""
        return self.parts.neighbors(spots)

    def embed(self, spots: Spots) -> dict[str, NDArray[np.float32]]:
        """Joint embedding of the image side, and where there are counts of the gene side and the VAE's latent."""
        if self.parts.model is None:
            return {}
        found = {IMAGE_EMBEDDING: self.parts.embed_image(spots)}
        if spots.has_counts:
            found[GENE_EMBEDDING] = spots.spread(self.parts.embed_genes(spots))
            if self.latent is not None:
                found[VAE_LATENT] = spots.spread(self.latent.encode(spots))
        return found

    def search(
        self, image: NDArray[np.float32], *, k: int, by: Literal["image", "gene"]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Training spots, rows among those with counts, whose image or gene embedding is nearest; and the cosines."""
        return self.parts.search(image, k=k, by=by)

    def _part_options(self) -> dict[str, Any]:
        return {
            "gene_space": self.given or self.gene_space,
            "n_coordinates": self.n_coordinates or N_COORDINATES[self.gene_space],
            "vae_epochs": self.vae_epochs, "penalty": self.penalty, "seed": self.seed, "loss": self.loss,
            "contrastive_weight": self.contrastive_weight, "temperature": self.temperature,
            "max_epochs": self.max_epochs,
        }  # fmt: skip


def _given_vae(gene_space: BatchAgnosticVAE | str | os.PathLike[str]) -> BatchAgnosticVAE:
    """A trained model, as it is or from its folder."""
    from stcontrast._models.batch_vae import BatchAgnosticVAE

    if isinstance(gene_space, str | os.PathLike):
        if not Path(gene_space, "model.pt").is_file():
            msg = (
                "`gene_space` must be one of 'axes', 'vae', a trained BatchAgnosticVAE or the folder of one, found "
                f"{os.fspath(gene_space)!r}."
            )
            raise ValueError(msg)
        gene_space = BatchAgnosticVAE.load(gene_space)
    if not isinstance(gene_space, BatchAgnosticVAE):
        msg = (
            "`gene_space` must be one of 'axes', 'vae', a trained BatchAgnosticVAE or the folder of one, found "
            f"{type(gene_space).__name__}."
        )
        raise TypeError(msg)
    if not gene_space.is_trained:
        msg = 'The BatchAgnosticVAE given as `gene_space` has not been trained: call its `train()`, or use "vae".'
        raise ValueError(msg)
    if gene_space.module.dispersion == "gene-label":
        msg = 'The BatchAgnosticVAE given as `gene_space` has a dispersion for every label: set it up with "gene".'
        raise ValueError(msg)
    return gene_space


def _fit_fold(options: Mapping[str, Any], fold: Fold) -> tuple[ImageToGene, dict[str, NDArray[np.float32]]]:
    """All parts, fitted on a fold's training spots, and what they predict of its held-out spots."""
    part = ImageToGene(**options)
    # the spots of a fold are copies
    part.fit(fold.training, overwrite_design=True)
    return part, part.predict(fold.unseen())


def _folds_of_labels(spots: Spots, folds: Sequence[Fold]) -> Sequence[Fold]:
    """Inner folds over annotated spots; none where labels are too few to hold any out."""
    if any(fold.spots.design is not spots.design for fold in folds):
        # an encoder that learnt from all labels: features that did not are those of the folds that are there
        return [fold for fold in folds if fold.has_labels]
    try:
        return inner_folds(spots, of="labels")
    except ValueError:
        return []


def _sloped(
    expression: NDArray[np.float32], level: NDArray[np.float32], slope: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Expression drawn towards the level of every gene by its calibration slope, in place."""
    expression -= level
    expression *= slope
    expression += level
    return expression

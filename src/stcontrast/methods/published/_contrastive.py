"""What the published contrastive methods share: options, training, decoding, subtypes, saving."""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from stcontrast._arguments import check_fields, whole
from stcontrast._keys import GENE_EMBEDDING, IMAGE_EMBEDDING
from stcontrast._state import fitted
from stcontrast.methods._linear import LinearClassifier
from stcontrast.methods._retrieval import Distance, Neighbors, Weighting, combine, retrieve
from stcontrast.methods.published._decoders import Decoder, RegressionDecoder, RetrievalDecoder
from stcontrast.methods.published._trained import TrainedMethod, check_choices
from stcontrast.nn import Loss, Negatives, Targets  # noqa: TC001 (read at run time, to check options)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data import Spots
    from stcontrast.nn import Contrast, PairModule

__all__ = ["ContrastiveMethod", "ContrastiveOptions"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ContrastiveOptions:
    """Options that every contrastive method has; a method sets its own defaults and adds its own.

    Parameters
    ----------
    n_embedding
        Dimensions of the joint embedding.
    dropout
        Dropout in the towers.
    loss
        ``"info_nce"`` or ``"similarity_target"`` (BLEEP's).
    targets, target_temperature
        For the latter: similarities of the ``"embedding"``, as published, with the temperature of the loss; or of the
        ``"input"``, centred and detached, with a temperature of their own.
    normalize
        Bring embeddings to unit length in the loss.
    temperature, learn_temperature
        Temperature of the loss, and whether it is learnt from there.
    negatives
        ``"all"``, ``"within-slide"`` or ``"exclude-neighbours"``: what a spot is told apart from.
    decoder
        ``"retrieval"``: mean of the training spots nearest in the joint space; ``"regression"``: from the image
        embedding.
    k, metric, weights, weight_metric
        Of the retrieval: how many, nearest by ``"cosine"``, ``"l2"`` or ``"l1"``, weighted ``"uniform"``,
        ``"inverse_square"``, ``"exponential"`` or by ``"similarity"``, with the distance of the weights.
    penalty
        Ridge penalty of a regression on the embedding.
    probe, probe_k
        Subtypes by a ``"linear"`` probe on the image embedding, or by the votes of the `probe_k` nearest annotated
        spots (``"knn"``).
    learning_rate, weight_decay, batch_size, max_epochs
        Of the training.
    max_steps
        Steps of the training, instead of `max_epochs` passes through the spots.
    """

    n_embedding: int = 256
    dropout: float = 0.1
    loss: Loss = "info_nce"
    targets: Targets = "embedding"
    target_temperature: float = 0.1
    normalize: bool = True
    temperature: float = 0.1
    learn_temperature: bool = False
    negatives: Negatives = "all"
    decoder: Literal["retrieval", "regression", "vae"] = "retrieval"
    k: int = 50
    metric: Distance = "cosine"
    weights: Weighting = "uniform"
    weight_metric: Distance = "l2"
    penalty: float = 300.0
    probe: Literal["linear", "knn"] = "linear"
    probe_k: int = 20
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    batch_size: int = 128
    max_epochs: int = 50
    max_steps: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        # a batch of one has nothing to be told apart from
        check_fields(self, batch_size=whole(2))


class ContrastiveMethod(TrainedMethod):
    """Two towers trained by a contrast, a decoder, a probe.

    A subclass sets `name` and `options_type`, and builds its towers in :meth:`build`; what else is its own (the gene
    tower's input, the optimiser, a further decoder) it overrides. Without any counts there is nothing to align: the
    probe then looks at the image features themselves.

    Parameters
    ----------
    seed
        Seed of all of it.
    **options
        Fields of `options_type`.
    """

    options_type: ClassVar[type[ContrastiveOptions]] = ContrastiveOptions
    decoders: ClassVar[tuple[str, ...]] = ("retrieval", "regression")
    learnt: ClassVar[tuple[str, ...]] = ("arrays", "decoder", "probe")

    def __init__(self, *, seed: int = 0, **options: Any) -> None:
        super().__init__(seed=seed, **options)
        if self.options.decoder not in self.decoders:
            msg = (
                f"The method {self.name!r} has no decoder {self.options.decoder!r}. "
                f"Valid options are {', '.join(map(repr, self.decoders))}."
            )
            raise ValueError(msg)
        self.decoder = self.make_decoder()
        self.probe = LinearClassifier()

    @abstractmethod
    def build(self, *, n_image: int, n_gene: int, n_targets: int) -> PairModule:
        """Fresh towers, for so many image features, inputs of the gene tower and genes."""

    def contrast(self) -> Contrast:
        """The contrastive loss that the options ask for."""
        from stcontrast.nn import Contrast

        options = self.options
        return Contrast(
            loss=options.loss,
            normalize=options.normalize,
            temperature=options.temperature,
            learn_temperature=options.learn_temperature,
            negatives=options.negatives,
            targets=options.targets,
            target_temperature=options.target_temperature,
        )

    def make_decoder(self) -> Decoder:
        """The decoder that the options ask for, not fitted."""
        options = self.options
        if options.decoder == "retrieval":
            return RetrievalDecoder(
                k=options.k, metric=options.metric, weights=options.weights, weight_metric=options.weight_metric
            )
        return RegressionDecoder(penalty=options.penalty)

    def fit_genes(self, spots: Spots) -> None:
        """Fit what makes the gene tower's input, on measured spots; nothing by default."""

    def gene_input(self, spots: Spots) -> NDArray[np.float32]:
        """Input of the gene tower (n_spots, k) of measured spots; expression by default."""
        return spots.target

    def fit_parts(self, spots: Spots) -> None:
        """Train the towers, then decoder and probe on their embeddings."""
        self.scale_to(spots)
        self.probe = LinearClassifier()
        if spots.has_counts:
            measured = spots.take(np.flatnonzero(spots.measured))
            mean, of_spot = measured.slide_means()
            self.arrays["mean"] = mean
            self.fit_genes(measured)
            table = self._table(measured, gene=self.gene_input(measured), target=measured.target - of_spot)
            self.train(table)
            if not self._own_regression:
                self.decoder.fit(self._image(measured), self._apply(table, "embed_genes"), measured)
        elif spots.has_labels:
            logger.warning(
                "No counts: there is nothing to align, and subtypes are predicted from the image features alone."
            )
        if spots.has_labels:
            known = np.flatnonzero(spots.label >= 0)
            embedding = self._image(spots)
            if self.options.probe == "linear":
                self.probe.fit(embedding, spots)
            else:
                votes = np.eye(spots.n_classes, dtype=np.float32)[spots.label[known]]
                self.arrays |= {"labelled": embedding[known], "votes": votes}

    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        fitted(self.module, needs="counts")
        if self._own_regression:
            return self.regress(spots)
        return self.decoder.predict(self._image(spots))

    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """Probability of every class, or share of the votes for it (n_spots, n_classes)."""
        if self.options.probe == "linear":
            return self.probe.predict_proba(self._image(spots))
        labelled = fitted(self.arrays.get("labelled"), needs="labels")
        return combine(retrieve(self._image(spots), labelled, k=self.options.probe_k), self.arrays["votes"])

    def neighbors(self, spots: Spots) -> Neighbors:
        """Training spots, rows among those with counts, that a prediction of expression is made of."""
        if self.module is None or not isinstance(self.decoder, RetrievalDecoder):
            return super().neighbors(spots)
        return self.decoder.neighbors(self._image(spots))

    def embed(self, spots: Spots) -> dict[str, NDArray[np.float32]]:
        """Joint embeddings, unit length, by slot: of the image side, and where there are counts of the gene side."""
        if self.module is None:
            return {}
        found = {IMAGE_EMBEDDING: _unit(self._image(spots))}
        if spots.has_counts:
            measured = spots.take(np.flatnonzero(spots.measured))
            genes = self._apply(self._table(measured, gene=self.gene_input(measured)), "embed_genes")
            found[GENE_EMBEDDING] = spots.spread(_unit(genes))
        return found

    @property
    def _own_regression(self) -> bool:
        return self.regresses and self.options.decoder == "regression"

    def _image(self, spots: Spots) -> NDArray[np.float32]:
        """Image embedding as the tower gives it; the scaled features where there is no tower."""
        table = self._table(spots)
        return table.image.numpy() if self.module is None else self._apply(table, "embed_image")


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.maximum(length, 1e-12)).astype(np.float32)

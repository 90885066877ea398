"""What the published contrastive methods share: options, training, decoding, subtypes, saving."""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAliasType, get_args, get_type_hints

import numpy as np

from stcontrast._arguments import check_fields, whole
from stcontrast._keys import GENE_EMBEDDING, IMAGE_EMBEDDING
from stcontrast._state import State, fitted, module_state, restore_module
from stcontrast._training import seeded
from stcontrast.methods._base import Method
from stcontrast.methods._linear import LinearClassifier, standardizer
from stcontrast.methods._retrieval import Distance, Neighbors, Weighting, combine, retrieve
from stcontrast.methods.published._decoders import Decoder, RegressionDecoder, RetrievalDecoder
from stcontrast.nn import Loss, Negatives, Targets  # noqa: TC001 (read at run time, to check options)

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from stcontrast._data.spots import Spots
    from stcontrast.methods.published._schedule import Schedule
    from stcontrast.nn import Contrast, PairModule, SpotTable

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
        hints = get_type_hints(type(self))
        for item in fields(self):
            kind = hints[item.name]
            valid = get_args(kind.__value__ if isinstance(kind, TypeAliasType) else kind)
            value = getattr(self, item.name)
            if valid and value not in valid and type(None) not in valid:
                msg = f"Unknown {item.name} {value!r}. Valid options are {', '.join(map(repr, valid))}."
                raise ValueError(msg)
        # a batch of one has nothing to be told apart from
        check_fields(self, batch_size=whole(2))


class ContrastiveMethod(Method):
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
    n_neighbors: ClassVar[int] = 0
    n_nearest: ClassVar[int] = 1
    """Nearest spots, the spot included, that its towers look at."""
    regresses: ClassVar[bool] = False
    """Whether the towers have a regression of their own, which ``decoder="regression"`` then is."""
    decoders: ClassVar[tuple[str, ...]] = ("retrieval", "regression")
    published: ClassVar[Schedule | None] = None
    """How it is trained where it was published, if that is known."""
    learnt: ClassVar[tuple[str, ...]] = ("arrays", "decoder", "probe")

    def __init__(self, *, seed: int = 0, **options: Any) -> None:
        super().__init__(seed=seed)
        self.options = self.options_type(**options)
        if self.options.decoder not in self.decoders:
            msg = (
                f"The method {self.name!r} has no decoder {self.options.decoder!r}. "
                f"Valid options are {', '.join(map(repr, self.decoders))}."
            )
            raise ValueError(msg)
        self.module: PairModule | None = None
        self.decoder = self.make_decoder()
        self.probe = LinearClassifier()
        self.arrays: dict[str, NDArray[Any]] = {}
        self.history: pd.DataFrame | None = None

    @classmethod
    def option_names(cls) -> set[str]:
        """Its options, without the seed."""
        return {item.name for item in fields(cls.options_type)}

    @property
    def spec(self) -> dict[str, Any]:
        """Arguments that make the same method again."""
        return {**asdict(self.options), "seed": self.seed}

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

    def optimizer(self, module: PairModule) -> tuple[Optimizer, LRScheduler | None]:
        """Optimiser and schedule (steps are epochs) of the towers; AdamW by default."""
        import torch

        options = self.options
        # a temperature that is learnt is no weight: nothing draws it to 1
        of_contrast = list(module.contrast.parameters())
        weights = [weight for name, weight in module.named_parameters() if not name.startswith("contrast.")]
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": of_contrast, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay), None

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
        from stcontrast._models.contrastive import train_pairs

        center, scale = standardizer(spots.design)
        self.arrays = {"center": center, "scale": scale}
        self.module, self.probe = None, LinearClassifier()
        if spots.has_counts:
            measured = spots.take(np.flatnonzero(spots.measured))
            mean, of_spot = measured.slide_means()
            self.arrays["mean"] = mean
            self.fit_genes(measured)
            table = self._table(measured, gene=self.gene_input(measured), target=measured.target - of_spot)
            sizes = {"n_image": table.image.shape[1], "n_gene": table.gene.shape[1], "n_targets": measured.n_genes}
            with seeded(self.seed):
                module = self.build(**sizes)
                self.history = train_pairs(
                    module, table, batch_size=self.options.batch_size, max_epochs=self.options.max_epochs,
                    max_steps=self.options.max_steps, optimizer=self.optimizer,
                )  # fmt: skip
            self.module = module
            self.arrays["sizes"] = np.array(list(sizes.values()))
            if not self._own_regression:
                self.decoder.fit(self._image(measured), self._apply(table, "embed_genes"), measured)
        elif spots.has_labels:
            logger.warning("No counts: there is nothing to align, and subtypes are told by the image features alone.")
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
            regressed = self._apply(self._table(spots), "regress")
            return (regressed + self.arrays["mean"]).astype(np.float32)
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

    def state(self) -> State:
        """Towers, decoder, probe and arrays."""
        return super().state() | ({} if self.module is None else {"towers": module_state(self.module)})

    def restore(self, state: State) -> None:
        """Take what :meth:`state` gave."""
        super().restore(state)
        if "towers" in state:
            n_image, n_gene, n_targets = (int(size) for size in self.arrays["sizes"])
            with seeded(self.seed):
                self.module = self.build(n_image=n_image, n_gene=n_gene, n_targets=n_targets)
            restore_module(self.module, state["towers"])

    @property
    def _own_regression(self) -> bool:
        return self.regresses and self.options.decoder == "regression"

    def _table(
        self, spots: Spots, *, gene: NDArray[np.float32] | None = None, target: NDArray[np.float32] | None = None
    ) -> SpotTable:
        from stcontrast.nn import SpotTable

        scaled = (spots.design - self.arrays["center"]) / self.arrays["scale"]
        return SpotTable.of(scaled, spots.slide, spots.xy, n_nearest=self.n_nearest, gene=gene, target=target)

    def _image(self, spots: Spots) -> NDArray[np.float32]:
        """Image embedding as the tower gives it; the scaled features where there is no tower."""
        table = self._table(spots)
        return table.image.numpy() if self.module is None else self._apply(table, "embed_image")

    def _apply(self, table: SpotTable, what: Literal["embed_image", "embed_genes", "regress"]) -> NDArray[np.float32]:
        from stcontrast._models.contrastive import embed_pairs

        if self.module is None:
            msg = "The method has not been fitted with counts."
            raise RuntimeError(msg)
        out: NDArray[np.float32] = embed_pairs(self.module, table, getattr(self.module, what)).numpy()
        return out


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.maximum(length, 1e-12)).astype(np.float32)

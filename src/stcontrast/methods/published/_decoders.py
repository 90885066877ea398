"""From the image embedding to expression: by retrieval, by regression, or through the VAE."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stcontrast._state import Learns
from stcontrast.methods._linear import RidgePath
from stcontrast.methods._retrieval import Neighbors, combine, retrieve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data import Spots
    from stcontrast._genespace import VaeSpace
    from stcontrast.methods._retrieval import Distance, Weighting

__all__ = ["Decoder", "LatentDecoder", "RegressionDecoder", "RetrievalDecoder"]


class Decoder(Learns, ABC):
    """Fitted on the embeddings of the training spots, once the towers are trained."""

    @abstractmethod
    def fit(self, image: NDArray[np.float32], gene: NDArray[np.float32], spots: Spots) -> None:
        """Learn from image and gene embeddings (n_spots, d) of measured spots."""

    @abstractmethod
    def predict(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expression (n_queries, n_genes) of image embeddings (n_queries, d)."""


class RetrievalDecoder(Decoder):
    """The weighted mean of the training spots whose gene embedding is nearest.

    Expression is centred within its slide before it is averaged, and the mean over slides added back: which slide a
    neighbour comes from says nothing of where on the new slide a gene is high.

    Parameters
    ----------
    k, metric, weights, weight_metric
        As in :func:`~stcontrast.methods._retrieval.retrieve`.
    """

    learnt: ClassVar[tuple[str, ...]] = ("bank", "values")

    def __init__(self, *, k: int, metric: Distance, weights: Weighting, weight_metric: Distance) -> None:
        self.k = k
        self.metric: Distance = metric
        self.weights: Weighting = weights
        self.weight_metric: Distance = weight_metric
        self.bank = np.zeros((0, 0), dtype=np.float32)
        self.values = np.zeros((0, 0), dtype=np.float32)

    def fit(self, image: NDArray[np.float32], gene: NDArray[np.float32], spots: Spots) -> None:
        """Keep gene embeddings and expression."""
        del image
        self.bank, self.values = gene, spots.level_target()

    def neighbors(self, image: NDArray[np.float32]) -> Neighbors:
        """Rows of the bank and their weights, for image embeddings (n_queries, d)."""
        return retrieve(
            image, self.bank, k=self.k, metric=self.metric, weights=self.weights, weight_metric=self.weight_metric
        )

    def predict(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expression (n_queries, n_genes) of image embeddings (n_queries, d)."""
        return combine(self.neighbors(image), self.values)


class RegressionDecoder(Decoder):
    """Ridge regression of expression on the image embedding.

    Parameters
    ----------
    penalty
        Its penalty, on standardised embeddings.
    """

    learnt: ClassVar[tuple[str, ...]] = ("path",)

    def __init__(self, *, penalty: float) -> None:
        self.penalty = penalty
        self.path = RidgePath()

    def fit(self, image: NDArray[np.float32], gene: NDArray[np.float32], spots: Spots) -> None:
        """Regress on the image embeddings."""
        del gene
        self.path = RidgePath().fit(image, spots)

    def predict(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expression (n_queries, n_genes) of image embeddings (n_queries, d)."""
        return self.path.predict(image, self.penalty)


class LatentDecoder(RegressionDecoder):
    """Ridge regression of the gene latent on the image embedding, and on through the VAE's decoder.

    Parameters
    ----------
    penalty
        Penalty of the regression.
    latent
        The VAE.
    """

    def __init__(self, *, penalty: float, latent: VaeSpace) -> None:
        super().__init__(penalty=penalty)
        self.latent = latent

    def fit(self, image: NDArray[np.float32], gene: NDArray[np.float32], spots: Spots) -> None:
        """Regress the latent of the training spots on the image embeddings."""
        super().fit(image, gene, replace(spots, target=self.latent.encode(spots)))

    def predict(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expression (n_queries, n_genes) of image embeddings (n_queries, d), averaged over batches."""
        return self.latent.decode(super().predict(image))

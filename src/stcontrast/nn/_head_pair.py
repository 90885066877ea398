"""The plainest pair of towers: a projection head on either side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stcontrast.nn._pairs import Contrast, PairModule, SpotTable
from stcontrast.nn._towers import ProjectionHead

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HeadPair"]


class HeadPair(PairModule):
    """A projection head for each modality and nothing else.

    Parameters
    ----------
    contrast
        The loss.
    n_image, n_gene
        Numbers of inputs.
    n_embedding, dropout
        Of both heads.
    """

    def __init__(self, contrast: Contrast, *, n_image: int, n_gene: int, n_embedding: int, dropout: float) -> None:
        super().__init__(contrast)
        self.image_head = ProjectionHead(n_image, n_embedding, dropout=dropout)
        self.gene_head = ProjectionHead(n_gene, n_embedding, dropout=dropout)

    def embed_image(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Image embedding (n, d)."""
        embedding: Tensor = self.image_head(table.image[rows])
        return embedding

    def embed_genes(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Gene embedding (n, d)."""
        embedding: Tensor = self.gene_head(table.gene[rows])
        return embedding

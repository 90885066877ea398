"""The two towers of the contrastive model, and what they are trained for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from stcontrast.nn import PairModule

if TYPE_CHECKING:
    from stcontrast.nn import Contrast, SpotTable

__all__ = ["TowerPair"]


class TowerPair(PairModule):
    """An image tower of one hidden layer, a linear gene tower, and a linear read-out of the gene coordinates.

    Parameters
    ----------
    contrast
        The contrastive loss.
    contrastive_weight
        Its weight; that of the squared error of the read-out is 1.
    n_image, n_gene, n_hidden, n_embedding
        Image features, gene coordinates, and the widths of the hidden layer and of the embedding.
    input_dropout, dropout
        Dropout on the image features and on the hidden layer.
    """

    def __init__(
        self,
        contrast: Contrast,
        *,
        contrastive_weight: float,
        n_image: int,
        n_gene: int,
        n_hidden: int,
        n_embedding: int,
        input_dropout: float,
        dropout: float,
    ) -> None:
        super().__init__(contrast)
        self.weights = {"contrastive": contrastive_weight, "squared_error": 1.0}
        self.image_tower = nn.Sequential(
            nn.Dropout(input_dropout), nn.Linear(n_image, n_hidden), nn.GELU(),
            nn.Dropout(dropout), nn.Linear(n_hidden, n_embedding),
        )  # fmt: skip
        self.gene_tower = nn.Linear(n_gene, n_embedding)
        self.read_out = nn.Linear(n_embedding, n_gene)

    def embed_image(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Image embedding (n, d), not of unit length: the read-out sees how sure the tower is."""
        embedding: Tensor = self.image_tower(table.image[rows])
        return embedding

    def embed_genes(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Gene embedding (n, d)."""
        embedding: Tensor = self.gene_tower(table.gene[rows])
        return embedding

    def losses(self, table: SpotTable, rows: Tensor) -> dict[str, Tensor]:
        """The contrast, if it has a weight, and the squared error of the coordinates."""
        image = self.embed_image(table, rows)
        parts = {"squared_error": functional.mse_loss(self.read_out(image), table.gene[rows])}
        if self.weights["contrastive"]:
            parts["contrastive"] = self.contrast(self.embed_genes(table, rows), image, table, rows)
        return parts

    def regress(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Gene coordinates read out of the image embedding (n, n_gene)."""
        read: Tensor = self.read_out(self.embed_image(table, rows))
        return read

    def batches(self, table: SpotTable, batch_size: int) -> list[Tensor]:
        """Spots of one slide a batch, in random order: what tells slides apart is of no use then."""
        slides = [torch.where(table.slide == code)[0] for code in table.slide.unique()]  # type: ignore[no-untyped-call]
        parts = [
            part
            for rows in slides
            for part in rows[torch.randperm(len(rows))].tensor_split(-(-len(rows) // batch_size))
        ]
        return [parts[i] for i in torch.randperm(len(parts))]

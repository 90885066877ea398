"""The towers of MViTGene: a head for every field of the image, a second image branch, and a regression of expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from stcontrast.nn._losses import gaussian_target_loss, one_way_nce
from stcontrast.nn._pairs import Contrast, PairModule, SpotTable
from stcontrast.nn._towers import ProjectionHead, field_widths

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FieldPair", "mean_correlation"]


def mean_correlation(predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean over genes of Pearson's correlation over spots (n, n_genes); 0 for a gene that is constant."""
    predicted, truth = (part - part.mean(dim=0) for part in (predicted, truth))
    return functional.cosine_similarity(predicted, truth, dim=0).mean()


class FieldPair(PairModule):
    """A projection head for each field of the image, whose mean is the embedding; one for the genes; a second branch.

    Parameters
    ----------
    contrast
        Temperature and negatives of all contrasts.
    n_image, n_gene, n_targets
        Numbers of inputs, and of genes to predict.
    n_fields
        Parts of equal width that the image features are cut into: the fields of the crops. At most as many as features.
    n_embedding, dropout
        Dimension of the embedding and dropout of the heads.
    bandwidth
        Of the Gaussian soft targets.
    weights
        Of the parts of the loss: ``"contrastive"``, ``"soft"``, ``"second"`` and ``"expression"``.

    References
    ----------
    MViTGene (2026, Journal of Biomedical Informatics 105003).
    """

    def __init__(  # noqa: PLR0913
        self,
        contrast: Contrast,
        *,
        n_image: int,
        n_gene: int,
        n_targets: int,
        n_fields: int,
        n_embedding: int,
        dropout: float,
        bandwidth: float,
        weights: dict[str, float],
    ) -> None:
        super().__init__(contrast)
        self.weights = weights
        self.bandwidth = bandwidth
        widths = field_widths(n_image, n_fields)
        self.image_heads = nn.ModuleList(ProjectionHead(width, n_embedding, dropout=dropout) for width in widths)
        self.gene_head = ProjectionHead(n_gene, n_embedding, dropout=dropout)
        self.second = nn.Sequential(nn.LayerNorm(n_image), nn.Linear(n_image, n_embedding))
        self.decoder = nn.Sequential(
            nn.Linear(n_embedding, n_embedding), nn.GELU(), nn.Linear(n_embedding, n_embedding // 2), nn.GELU(),
            nn.Linear(n_embedding // 2, n_targets),
        )  # fmt: skip

    def embed_image(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Mean of the heads of all fields, of unit length (n, d)."""
        fields = table.image[rows].tensor_split(len(self.image_heads), dim=1)
        heads = [head(field) for head, field in zip(self.image_heads, fields, strict=True)]
        return functional.normalize(torch.stack(heads).mean(dim=0), dim=1)

    def embed_genes(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Gene embedding of unit length (n, d)."""
        return functional.normalize(self.gene_head(table.gene[rows]), dim=1)

    def regress(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Expression from the image embedding (n, n_targets)."""
        expression: Tensor = self.decoder(self.embed_image(table, rows))
        return expression

    def losses(self, table: SpotTable, rows: Tensor) -> dict[str, Tensor]:
        """Contrast from genes to image, its soft form, the same to the second branch, and error of the expression."""
        gene, image = self.embed_genes(table, rows), self.embed_image(table, rows)
        how: dict[str, Any] = {"temperature": self.contrast.temperature, "allowed": self.contrast.allowed(table, rows)}
        predicted, truth = self.decoder(image), table.target[rows]
        error = self.expression_error(predicted, truth, table.slide[rows])
        return {
            "contrastive": one_way_nce(gene, image, **how),
            "soft": gaussian_target_loss(gene, image, bandwidth=self.bandwidth, **how),
            "second": one_way_nce(gene, self.second(table.image[rows]), **how),
            "expression": error + 1 - mean_correlation(predicted, truth),
        }

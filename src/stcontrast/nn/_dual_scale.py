"""The towers of NH²ST: a query branch and a neighbour branch of image and genes, joined by hypergraphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from stcontrast.nn._losses import fused_nce
from stcontrast.nn._pairs import Contrast, PairModule, SpotTable
from stcontrast.nn._towers import CrossEncoder, HypergraphEncoder, hyperedges

if TYPE_CHECKING:
    from torch import Tensor

    from stcontrast.nn._choices import Variant

__all__ = ["DualScalePair"]

type Around = tuple[Tensor, Tensor, Tensor]


class DualScalePair(PairModule):
    """Query and neighbour branch of image and genes.

    Parameters
    ----------
    contrast
        The loss of the ``"paper"`` variant; its temperature is that of both.
    variant
        ``"code"``: the prediction looks at the query's image alone, and the contrast compares views that
        cross-attention has fused. ``"paper"``: the prediction's token has attended to the neighbourhood's image
        nodes, and the contrast compares what has not been fused.
    n_image, n_gene, n_targets
        Numbers of inputs, and of genes to predict.
    n_embedding
        Dimensions of every token.
    n_layers, n_heads, dropout
        Of the cross-attention; its feed-forward has the width of the tokens.
    query_weight, neighbor_weight
        Weights of the contrast of the two scales.
    """

    def __init__(  # noqa: PLR0913
        self,
        contrast: Contrast,
        *,
        variant: Variant,
        n_image: int,
        n_gene: int,
        n_targets: int,
        n_embedding: int,
        n_layers: int,
        n_heads: int,
        dropout: float,
        query_weight: float,
        neighbor_weight: float,
    ) -> None:
        super().__init__(contrast)
        self.variant = variant
        self.weights = {"contrastive": query_weight, "query": query_weight, "neighbourhood": neighbor_weight}
        self.image_query = nn.Linear(n_image, n_embedding)
        self.gene_token = nn.Sequential(nn.Linear(n_gene, n_embedding), nn.Linear(n_embedding, n_embedding))
        self.image_graph = HypergraphEncoder(n_image, 2 * n_embedding, n_embedding)
        self.gene_graph = HypergraphEncoder(n_embedding, 2 * n_embedding, n_embedding)
        self.cross = CrossEncoder(n_embedding, n_layers=n_layers, n_heads=n_heads, dropout=dropout)
        self.decoder = nn.Sequential(nn.Linear(n_embedding, n_embedding // 2), nn.Linear(n_embedding // 2, n_targets))

    def embed_image(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Both scales of the image, each of unit length (n, 2 d)."""
        query, nodes = self._image(table, rows, _around(table, rows))
        return torch.cat([functional.normalize(part, dim=1) for part in (query, nodes.mean(dim=1))], dim=1)

    def embed_genes(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Both scales of the genes, each of unit length (n, 2 d)."""
        scales = self._genes(table, rows, _around(table, rows))
        return torch.cat([functional.normalize(part, dim=1) for part in scales], dim=1)

    def regress(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Expression from the image (n, n_targets)."""
        return self._decoded(*self._image(table, rows, _around(table, rows)))

    def losses(self, table: SpotTable, rows: Tensor) -> dict[str, Tensor]:
        """Contrast of both scales, and error of the regression."""
        around = _around(table, rows)
        image, nodes = self._image(table, rows, around)
        gene, near_gene = self._genes(table, rows, around)
        near_image = nodes.mean(dim=1)
        expression = self.expression_error(self._decoded(image, nodes), table.target[rows], table.slide[rows])
        if self.variant == "paper":
            return {
                "contrastive": self.contrast(gene, image, table, rows),
                "neighbourhood": self.contrast(near_gene, near_image, table, rows),
                "expression": expression,
            }
        temperature = self.contrast.temperature
        fused = self._fused(image, gene)
        near_fused = self._fused(near_image, near_gene)
        return {
            "query": fused_nce(*fused, temperature=temperature),
            "neighbourhood": fused_nce(*near_fused, temperature=temperature),
            "expression": expression,
        }

    def _image(self, table: SpotTable, rows: Tensor, around: Around) -> tuple[Tensor, Tensor]:
        """Token of the spot (n, d), and nodes of its neighbourhood (n, n_nearest, d)."""
        different, place, edges = around
        nodes = self.image_graph(table.image[different], edges, place)
        return self.image_query(table.image[rows]), nodes

    def _genes(self, table: SpotTable, rows: Tensor, around: Around) -> tuple[Tensor, Tensor]:
        """Tokens of the spot and of its neighbourhood (n, d); the hyperedges are those of the image."""
        different, place, edges = around
        nodes = self.gene_graph(self.gene_token(table.gene[different]), edges, place)
        return self.gene_token(table.gene[rows]), nodes.mean(dim=1)

    def _decoded(self, image: Tensor, nodes: Tensor) -> Tensor:
        if self.variant == "paper":
            image = self.cross(image[:, None], nodes)[:, 0]
        decoded: Tensor = self.decoder(image)
        return decoded

    def _fused(self, image: Tensor, gene: Tensor) -> tuple[Tensor, Tensor]:
        """Either view after it has looked at the other, image first, as in the code."""
        image, gene = image[:, None], gene[:, None]
        fused_image = self.cross(image, gene)
        fused_gene = self.cross(gene, fused_image)
        return fused_image[:, 0], fused_gene[:, 0]


def _around(table: SpotTable, rows: Tensor) -> Around:
    """The neighbourhood of spots: its different spots, where each of them is (n, n_nearest), and the hyperedges."""
    near = table.near[rows]
    different, place = torch.unique(near, return_inverse=True)
    return different, place, hyperedges(table.image[near])

"""NH²ST: a query branch and a neighbour branch, hypergraphs, cross-attention, two contrastive scales, regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from stcontrast.methods.published._contrastive import ContrastiveMethod, ContrastiveOptions
from stcontrast.nn import Contrast, CrossEncoder, HypergraphEncoder, PairModule, SpotTable, fused_nce, hyperedges

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

__all__ = ["DualScalePair", "Nh2st", "Nh2stOptions"]

type Variant = Literal["paper", "code"]


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
        query, nodes = self._image(table, rows)
        return torch.cat([functional.normalize(part, dim=1) for part in (query, nodes.mean(dim=1))], dim=1)

    def embed_genes(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Both scales of the genes, each of unit length (n, 2 d)."""
        return torch.cat([functional.normalize(part, dim=1) for part in self._genes(table, rows)], dim=1)

    def regress(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Expression from the image (n, n_targets)."""
        return self._decoded(*self._image(table, rows))

    def losses(self, table: SpotTable, rows: Tensor) -> dict[str, Tensor]:
        """Contrast of both scales, and squared error of the regression."""
        image, nodes = self._image(table, rows)
        gene, near_gene = self._genes(table, rows)
        near_image = nodes.mean(dim=1)
        expression = functional.mse_loss(self._decoded(image, nodes), table.target[rows])
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

    def _image(self, table: SpotTable, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Token of the spot (n, d), and nodes of its neighbourhood (n, n_nearest, d)."""
        around = table.image[table.near[rows]]
        return self.image_query(table.image[rows]), self.image_graph(around, hyperedges(around))

    def _genes(self, table: SpotTable, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the spot and of its neighbourhood (n, d); the hyperedges are those of the image."""
        near = table.near[rows]
        nodes = self.gene_graph(self.gene_token(table.gene[near]), hyperedges(table.image[near]))
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


@dataclass(frozen=True, kw_only=True)
class Nh2stOptions(ContrastiveOptions):
    """Options of :class:`Nh2st`; see :class:`ContrastiveOptions`.

    Parameters
    ----------
    variant
        ``"paper"`` or ``"code"``.
    n_layers, n_heads
        Of the cross-attention.
    query_weight, neighbor_weight
        Weights of the two contrasts, relative to the squared error.
    """

    variant: Variant = "paper"
    n_embedding: int = 512
    dropout: float = 0.5
    temperature: float = 0.05
    decoder: Literal["retrieval", "regression", "vae"] = "regression"
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    batch_size: int = 64
    max_epochs: int = 50
    n_layers: int = 1
    n_heads: int = 8
    query_weight: float = 1.0
    neighbor_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embedding % (2 * self.n_heads):
            msg = f"`n_embedding` must be a multiple of twice `n_heads`, found {self.n_embedding} and {self.n_heads}."
            raise ValueError(msg)


class Nh2st(ContrastiveMethod):
    """Neighbourhood-aware, hypergraph-based contrast with direct regression.

    A query branch (the spot) and a neighbour branch (the nine nearest spots, itself among them, joined by a
    hypergraph of image similarity), for image and genes; contrast on both scales; expression by regression from the
    image. ``variant="paper"`` does what the paper describes, ``variant="code"`` what its code does.
    """

    name: ClassVar[str] = "nh2st"
    reference: ClassVar[str] = "Qu et al. 2025 (NH²ST, arXiv 2506.23827)"
    options_type: ClassVar[type[ContrastiveOptions]] = Nh2stOptions
    n_nearest: ClassVar[int] = 9
    regresses: ClassVar[bool] = True
    options: Nh2stOptions

    def build(self, *, n_image: int, n_gene: int, n_targets: int) -> PairModule:
        """Both branches of both modalities."""
        options = self.options
        return DualScalePair(
            self.contrast(),
            variant=options.variant,
            n_image=n_image,
            n_gene=n_gene,
            n_targets=n_targets,
            n_embedding=options.n_embedding,
            n_layers=options.n_layers,
            n_heads=options.n_heads,
            dropout=options.dropout,
            query_weight=options.query_weight,
            neighbor_weight=options.neighbor_weight,
        )

    def optimizer(self, module: PairModule) -> tuple[Optimizer, LRScheduler | None]:
        """Adam, the learning rate times 0.9 every 50 epochs."""
        options = self.options
        adam = torch.optim.Adam(module.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
        return adam, torch.optim.lr_scheduler.StepLR(adam, step_size=50, gamma=0.9)

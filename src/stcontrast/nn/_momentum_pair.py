"""The towers of Magic: momentum copies of both heads, queues of their embeddings, and a decoder of expression."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn import functional

from stcontrast.nn._losses import distilled_nce
from stcontrast.nn._pairs import Contrast, PairModule, SpotTable
from stcontrast.nn._towers import CrossEncoder, ProjectionHead, field_widths

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MomentumPair"]

# tokens that the decoder asks the image with
N_QUERIES: Final = 8


class MomentumPair(PairModule):
    """Two heads, their momentum copies with queues of embeddings, and a Transformer decoder of expression on the image.

    The copies follow the heads by a moving average and have no gradient. Every step compares its spots with the copies'
    embeddings of the batch and of the spots before it. The decoder's tokens attend to one token for each field.

    Parameters
    ----------
    contrast
        Temperature of the contrast, over all spots.
    n_image, n_gene, n_targets
        Numbers of inputs, and of genes to predict.
    n_fields
        Parts of equal width that the image features are cut into. At most as many as features.
    n_embedding, dropout
        Dimension of embeddings and tokens, dropout of heads and decoder.
    n_layers, n_heads
        Of the decoder.
    momentum
        Share of the old weights in a step of the copies.
    queue_size
        Most embeddings of earlier spots that are kept.
    distillation
        Share of the copies' similarities in the targets, reached after a first pass through the spots.
    weights
        Of the parts of the loss: ``"contrastive"`` and ``"expression"``.

    References
    ----------
    Magic (Briefings in Bioinformatics 2025, bbaf317); Li et al. 2021 (ALBEF, arXiv 2107.07651).
    """

    queue: Tensor
    queued: Tensor

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
        n_layers: int,
        n_heads: int,
        momentum: float,
        queue_size: int,
        distillation: float,
        weights: dict[str, float],
    ) -> None:
        super().__init__(contrast)
        self.weights = weights
        self.momentum, self.queue_size, self.distillation = momentum, queue_size, distillation
        self.heads = nn.ModuleDict(
            {
                "gene": ProjectionHead(n_gene, n_embedding, dropout=dropout),
                "image": ProjectionHead(n_image, n_embedding, dropout=dropout),
            }
        )
        self.teachers = deepcopy(self.heads).requires_grad_(requires_grad=False)
        # both sides of earlier spots and their rows, newest first; no part of what is saved
        self.register_buffer("queue", torch.zeros(2, 0, n_embedding), persistent=False)
        self.register_buffer("queued", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.n_seen, self.n_compared = 0, 1.0
        widths = field_widths(n_image, n_fields)
        self.tokens = nn.ModuleList(nn.Linear(width, n_embedding) for width in widths)
        self.asked = nn.Parameter(torch.randn(N_QUERIES, n_embedding) / math.sqrt(n_embedding))
        self.decoder = CrossEncoder(n_embedding, n_layers=n_layers, n_heads=n_heads, dropout=dropout)
        self.expression = nn.Linear(N_QUERIES * n_embedding, n_targets)

    def train(self, mode: bool = True) -> MomentumPair:  # noqa: FBT001, FBT002
        """Set the mode of all but the copies, which have no dropout."""
        super().train(mode)
        self.teachers.eval()
        return self

    def embed_image(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Image embedding of unit length (n, d)."""
        return functional.normalize(self.heads["image"](table.image[rows]), dim=1)

    def embed_genes(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Gene embedding of unit length (n, d)."""
        return functional.normalize(self.heads["gene"](table.gene[rows]), dim=1)

    def regress(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Expression from the image (n, n_targets)."""
        fields = table.image[rows].tensor_split(len(self.tokens), dim=1)
        tokens = torch.stack([token(field) for token, field in zip(self.tokens, fields, strict=True)], dim=1)
        decoded = self.decoder(self.asked.expand(len(rows), -1, -1), tokens)
        expression: Tensor = self.expression(decoded.flatten(1))
        return expression

    def losses(self, table: SpotTable, rows: Tensor) -> dict[str, Tensor]:
        """Distilled contrast in both directions, and error of the decoded expression."""
        gene, image = self.embed_genes(table, rows), self.embed_image(table, rows)
        if self.training:
            self.follow()
        with torch.no_grad():
            inputs = {"gene": table.gene[rows], "image": table.image[rows]}
            of_gene, of_image = (
                functional.normalize(self.teachers[side](part), dim=1) for side, part in inputs.items()
            )
            genes, images = torch.cat([torch.stack([of_gene, of_image]), self.queue.to(of_gene.dtype)], dim=1)
        # a spot's own earlier embedding is no other spot
        of_keys = torch.cat([rows, self.queued])
        allowed = of_keys != rows[:, None]
        allowed[:, : len(rows)] = True
        self.n_compared = float(allowed.sum(dim=1).double().mean())
        share = self.distillation * min(self.n_seen / len(table), 1.0)
        how: dict[str, Any] = {"temperature": self.contrast.temperature, "share": share, "allowed": allowed}
        both = distilled_nce(image, genes, of_image, **how) + distilled_nce(gene, images, of_gene, **how)
        if self.training:
            self.queue = torch.stack([genes, images])[:, : self.queue_size]
            self.queued = of_keys[: self.queue_size]
            self.n_seen += len(rows)
        error = self.expression_error(self.regress(table, rows), table.target[rows], table.slide[rows])
        return {"contrastive": both / 2, "expression": error}

    def chance(self, table: SpotTable, rows: Tensor) -> float:
        """Loss of towers that tell nothing apart: ln of the spots that a spot was compared with in the last step."""
        del table, rows
        return math.log(self.n_compared)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the copies towards the heads."""
        for old, new in zip(self.teachers.parameters(), self.heads.parameters(), strict=True):
            old.lerp_(new, 1 - self.momentum)

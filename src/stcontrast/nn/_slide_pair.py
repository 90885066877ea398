"""The towers of mclSTExp: a Transformer over the spots of a slide for the genes, a head for the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from stcontrast._data import sequences
from stcontrast.nn._pairs import Contrast, PairModule, SpotTable, slide_batches
from stcontrast.nn._towers import ProjectionHead, SpotTransformer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SlidePair"]


class SlidePair(PairModule):
    """A Transformer over the spots of one slide for the genes, a projection head for the image.

    A step of the training takes a random part of the spots of one slide, which attend to one another: a sample of what
    a spot attends to afterwards, all the spots of its slide. A slide longer than `max_sequence` is halved until its
    parts are not.

    Parameters
    ----------
    contrast
        The loss.
    n_image, n_gene
        Numbers of inputs.
    n_embedding, dropout
        Of both heads.
    n_layers, n_heads, n_per_head
        Of the Transformer.
    max_sequence
        Most spots that attend to one another.
    n_model
        Width of the Transformer: a linear layer brings the expression to it. As published it is `n_gene`, without one.
    """

    def __init__(  # noqa: PLR0913
        self,
        contrast: Contrast,
        *,
        n_image: int,
        n_gene: int,
        n_embedding: int,
        dropout: float,
        n_layers: int = 2,
        n_heads: int = 8,
        n_per_head: int = 64,
        max_sequence: int = 4096,
        n_model: int | None = None,
    ) -> None:
        super().__init__(contrast)
        self.max_sequence = max_sequence
        width = n_gene if n_model is None else n_model
        self.narrow = nn.Identity() if n_model is None else nn.Linear(n_gene, n_model)
        self.transformer = SpotTransformer(width, n_layers=n_layers, n_heads=n_heads, n_per_head=n_per_head)
        self.gene_head = ProjectionHead(width, n_embedding, dropout=dropout)
        self.image_head = ProjectionHead(n_image, n_embedding, dropout=dropout)

    def embed_image(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Image embedding (n, d)."""
        embedding: Tensor = self.image_head(table.image[rows])
        return embedding

    def embed_genes(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Gene embedding (n, d): every spot has attended to the whole of its sequence, and to that alone."""
        asked = torch.zeros(len(table), dtype=torch.bool, device=rows.device)
        asked[rows] = True
        parts = [part for part in self._sequences(table) if bool(asked[part].any())]
        informed = torch.cat([self._informed(table, part) for part in parts])
        place = torch.empty(len(table), dtype=torch.int64, device=rows.device)
        place[torch.cat(parts)] = torch.arange(len(informed), device=rows.device)
        embedding: Tensor = self.gene_head(informed[place[rows]])
        return embedding

    def losses(self, table: SpotTable, rows: Tensor) -> dict[str, Tensor]:
        """The contrast, the spots of the batch that lie on one slide attending to one another alone."""
        together = [rows[table.slide[rows] == code] for code in torch.unique(table.slide[rows])]
        informed = torch.cat([self._informed(table, part) for part in together])
        order = torch.cat(together)
        return {"contrastive": self.contrast(self.gene_head(informed), self.embed_image(table, order), table, order)}

    def batches(self, table: SpotTable, batch_size: int) -> list[Tensor]:
        """Random parts of every slide, in random order: as many as batches of `batch_size` make, at least one a slide."""
        return slide_batches(table, min(batch_size, self.max_sequence))

    def evaluation_batches(self, table: SpotTable, batch_size: int) -> list[Tensor]:
        """Whole sequences, in order."""
        return _joined(self._sequences(table), batch_size)

    def _informed(self, table: SpotTable, part: Tensor) -> Tensor:
        informed: Tensor = self.transformer(self.narrow(table.gene[part]), table.lattice[part])
        return informed

    def _sequences(self, table: SpotTable) -> list[Tensor]:
        parts = sequences(table.lattice.cpu().numpy(), table.slide.cpu().numpy(), max_length=self.max_sequence)
        return [torch.as_tensor(part, device=table.slide.device) for part in parts]


def _joined(parts: list[Tensor], batch_size: int) -> list[Tensor]:
    batches: list[list[Tensor]] = [[]]
    for part in parts:
        if sum(map(len, batches[-1])) >= batch_size:
            batches.append([])
        batches[-1].append(part)
    return [torch.cat(batch) for batch in batches]

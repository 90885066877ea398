"""Two towers and their contrast: spots as tensors, pairs that are compared, the interface of a pair of towers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from stcontrast._data import lattice_coordinates, nearest_spots
from stcontrast.nn._losses import contrastive_loss, rank_loss, soft_targets
from stcontrast.nn._towers import ProjectionHead

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from stcontrast.nn._choices import ExpressionLoss, Loss, Negatives, Targets

__all__ = ["Contrast", "HeadPair", "PairModule", "SpotModule", "SpotTable", "slide_batches", "steps_of_epoch"]

# between the neighbours on a square (√2) or hexagonal lattice (1), and the next ring (√3)
NEIGHBOUR_PITCHES: Final = 1.6
MAX_INVERSE_TEMPERATURE: Final = 100.0


# as published, an incomplete batch is left out of an epoch, but not if that is more than a tenth of the spots
MOST_LEFT_OUT: Final = 0.1


def steps_of_epoch(n_spots: int, batch_size: int) -> int:
    """Steps of a pass through some spots: full batches, where few spots are left over; otherwise equal parts of all.

    Parameters
    ----------
    n_spots
        Spots to train on.
    batch_size
        Spots in a full batch.
    """
    full, left = divmod(n_spots, batch_size)
    return full if full and left <= MOST_LEFT_OUT * n_spots else full + 1


def slide_batches(table: SpotTable, batch_size: int) -> list[Tensor]:
    """Random parts of every slide, in random order: as many as batches of `batch_size` make, at least one a slide."""
    slides = [torch.where(table.slide == code)[0] for code in torch.unique(table.slide)]
    sizes = [len(rows) for rows in slides]
    shares = _shares(sizes, max(len(sizes), steps_of_epoch(len(table), batch_size)))
    parts = [
        part
        for rows, n_parts in zip(slides, shares, strict=True)
        for part in rows[torch.randperm(len(rows), device=rows.device)].tensor_split(n_parts)
    ]
    return [parts[i] for i in torch.randperm(len(parts)).tolist()]


def _shares(sizes: list[int], n_parts: int) -> list[int]:
    """Parts of every slide, together `n_parts`: the next goes to the slide whose parts are largest."""
    shares = [1] * len(sizes)
    for _ in range(n_parts - len(sizes)):
        shares[max(range(len(sizes)), key=lambda i: sizes[i] / shares[i])] += 1
    return shares


@dataclass(frozen=True, slots=True)
class SpotTable:
    """Spots of some slides as tensors.

    Attributes
    ----------
    image
        Image features (n_spots, n_image).
    gene
        Input of the gene tower (n_spots, n_gene); n_gene is 0 if only images are used.
    target
        Expression to predict (n_spots, n_targets); n_targets is 0 likewise.
    slide
        Code of the slide (n_spots,).
    lattice
        Position on the slide (n_spots, 2), in pitches.
    near
        Rows of the spot itself and of the nearest other spots of its slide (n_spots, n_nearest).
    """

    image: Tensor
    gene: Tensor
    target: Tensor
    slide: Tensor
    lattice: Tensor
    near: Tensor

    @classmethod
    def of(
        cls,
        image: NDArray[np.float32],
        slide: NDArray[np.int64],
        xy: NDArray[np.float64],
        *,
        n_nearest: int = 1,
        gene: NDArray[np.float32] | None = None,
        target: NDArray[np.float32] | None = None,
    ) -> Self:
        """Make a table from arrays."""
        lattice = lattice_coordinates(xy, slide)
        empty = torch.zeros(len(image), 0)
        return cls(
            torch.as_tensor(image, dtype=torch.float32),
            empty if gene is None else torch.as_tensor(gene, dtype=torch.float32),
            empty if target is None else torch.as_tensor(target, dtype=torch.float32),
            torch.as_tensor(slide, dtype=torch.int64),
            torch.as_tensor(lattice),
            torch.as_tensor(nearest_spots(lattice, slide, n_nearest=n_nearest)),
        )

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device) -> Self:
        """The same table on a device."""
        names = ("image", "gene", "target", "slide", "lattice", "near")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class Contrast(nn.Module):
    """A contrastive loss with its temperature and choice of negatives.

    Parameters
    ----------
    loss
        ``"info_nce"``, ``"similarity_target"``, ``"soft_target"`` or ``"sigmoid"``; see :func:`contrastive_loss`.
    normalize
        Scale the embeddings to unit length.
    temperature
        Divides the logits.
    learn_temperature
        Learn the temperature, from `temperature` on and with a minimum of 0.01 (as in CLIP).
    negatives
        Spots that a spot is compared with: ``"all"`` other spots of the batch; those ``"within-slide"``, so that
        telling slides apart does not lower the loss; or all except the adjacent spots of the slide
        (``"exclude-neighbours"``), whose crops overlap and whose expression is nearly the same.
    targets
        Source of the similarity targets: the ``"embedding"`` (as published) or the ``"input"`` of the towers, detached
        and centred over the batch (the cosines of expression are all alike without centring). Soft targets always come
        from the input of the gene tower.
    target_temperature
        Temperature of the targets from the input.
    """

    def __init__(
        self,
        *,
        loss: Loss = "info_nce",
        normalize: bool = True,
        temperature: float = 0.1,
        learn_temperature: bool = False,
        negatives: Negatives = "all",
        targets: Targets = "embedding",
        target_temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.normalize = normalize
        self.negatives = negatives
        self.targets = targets
        self.target_temperature = target_temperature
        start = -torch.log(torch.tensor(float(temperature)))
        self.log_inverse_temperature = nn.Parameter(start, requires_grad=learn_temperature)

    @property
    def temperature(self) -> Tensor:
        """The current temperature."""
        if self.log_inverse_temperature.requires_grad:
            with torch.no_grad():
                # limits the parameter itself, as in CLIP: outside a bound on its value there is no gradient to return
                self.log_inverse_temperature.clamp_(max=math.log(MAX_INVERSE_TEMPERATURE))
        return torch.exp(-self.log_inverse_temperature)

    def allowed(self, table: SpotTable, rows: Tensor) -> Tensor | None:
        """Pairs of the batch that are compared (n, n); `None` for all."""
        if self.negatives == "all":
            return None
        slide = table.slide[rows]
        together = slide[:, None] == slide[None, :]
        if self.negatives == "within-slide":
            return together
        # the quicker computation of distances is inexact for large coordinates
        lattice = table.lattice[rows]
        adjacent = torch.cdist(lattice, lattice, compute_mode="donot_use_mm_for_euclid_dist") < NEIGHBOUR_PITCHES
        return ~(together & adjacent) | torch.eye(len(rows), dtype=torch.bool, device=rows.device)

    def chance(self, table: SpotTable, rows: Tensor) -> float:
        """Loss of towers that tell nothing apart: ln n of the n spots that a spot is compared with.

        For the sigmoid loss, n ln n - (n - 1) ln(n - 1).
        """
        allowed = self.allowed(table, rows)
        n = torch.full((len(rows),), len(rows)) if allowed is None else allowed.sum(dim=1)
        n = n.double()
        each = torch.xlogy(n, n) - torch.xlogy(n - 1, n - 1) if self.loss == "sigmoid" else n.log()
        return float(each.mean())

    def least(self, table: SpotTable, rows: Tensor) -> float:
        """Least loss there could be: the entropy of soft targets; 0 for the other losses."""
        if self.loss != "soft_target":
            return 0.0
        gene, allowed = table.gene[rows], self.allowed(table, rows)
        targets = soft_targets(gene - gene.mean(dim=0), temperature=self.target_temperature, allowed=allowed)
        return float(-torch.xlogy(targets, targets).sum(dim=1).mean())

    def forward(self, gene: Tensor, image: Tensor, table: SpotTable, rows: Tensor) -> Tensor:
        """Loss of a batch: embeddings (n, d) of the spots `rows` (n,) of a table."""
        allowed, temperature = self.allowed(table, rows), self.temperature
        inputs = None
        if self.targets == "input" or self.loss == "soft_target":
            of_gene, of_image = (part[rows] for part in (table.gene, table.image))
            inputs = (of_gene - of_gene.mean(dim=0), of_image - of_image.mean(dim=0))
        return contrastive_loss(
            gene, image, loss=self.loss, temperature=temperature, normalize=self.normalize, targets_from=inputs,
            target_temperature=self.target_temperature, allowed=allowed,
        )  # fmt: skip


class SpotModule(nn.Module, ABC):
    """A network over the spots of a table, and a loss: what a method trains step by step.

    A subclass gives the parts of its loss. It may add a regression of its own, and its own batches.
    """

    weights: Mapping[str, float] = MappingProxyType({})
    """Weights of the parts of the loss, by name; 1 by default."""
    expression_loss: ExpressionLoss = "squared"
    """What a regression of expression minimises: the ``"squared"`` error, or the ``"rank"`` loss."""

    def expression_error(self, predicted: Tensor, truth: Tensor, slide: Tensor) -> Tensor:
        """Error of predicted expression (n, n_targets) by `expression_loss`, for spots of these slides (n,)."""
        if self.expression_loss == "rank":
            return rank_loss(predicted, truth, slide)
        return functional.mse_loss(predicted, truth)

    @abstractmethod
    def losses(self, table: SpotTable, rows: Tensor) -> dict[str, Tensor]:
        """Parts of the loss on a batch, by name; training minimises their weighted sum."""

    def regress(self, table: SpotTable, rows: Tensor) -> Tensor | None:
        """Expression predicted from the image (n, n_targets), for a method with its own regression."""
        del table, rows
        return None

    def batches(self, table: SpotTable, batch_size: int) -> list[Tensor]:
        """Rows of the batches of an epoch, in random order; see ``steps_of_epoch``."""
        order = torch.randperm(len(table))
        n_steps = steps_of_epoch(len(table), batch_size)
        if n_steps * batch_size <= len(table):
            return list(order[: n_steps * batch_size].split(batch_size))  # type: ignore[no-untyped-call]
        return list(order.tensor_split(n_steps))

    def evaluation_batches(self, table: SpotTable, batch_size: int) -> list[Tensor]:
        """Rows of all spots, in order, in batches of at most `batch_size`."""
        return list(torch.arange(len(table)).split(batch_size))  # type: ignore[no-untyped-call]


class PairModule(SpotModule):
    """Two towers and a contrast: what a contrastive method trains.

    A subclass embeds the images and genes of the spots `rows` of a table of tensors. It may add losses, a regression
    of its own, and its own batches.

    Parameters
    ----------
    contrast
        The contrastive loss.
    """

    def __init__(self, contrast: Contrast) -> None:
        super().__init__()
        self.contrast = contrast

    @abstractmethod
    def embed_image(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Image embedding (n, d)."""

    @abstractmethod
    def embed_genes(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Gene embedding (n, d)."""

    def chance(self, table: SpotTable, rows: Tensor) -> float:
        """Contrastive loss of a batch for towers that tell nothing apart."""
        return self.contrast.chance(table, rows)

    def losses(self, table: SpotTable, rows: Tensor) -> dict[str, Tensor]:
        """Parts of the loss on a batch, by name; training minimises their weighted sum."""
        gene, image = self.embed_genes(table, rows), self.embed_image(table, rows)
        return {"contrastive": self.contrast(gene, image, table, rows)}


class HeadPair(PairModule):
    """The simplest pair of towers: one projection head for each modality.

    Parameters
    ----------
    contrast
        The loss.
    n_image, n_gene
        Numbers of inputs.
    n_embedding, dropout
        Dimension of the embedding and dropout of both heads.
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

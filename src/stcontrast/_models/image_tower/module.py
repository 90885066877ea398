"""Backbone and heads of an image tower, and its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from stcontrast._models.image_tower.augment import augment
from stcontrast.nn import ProjectionHead, SpotTable, info_nce

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stcontrast._models.image_tower.options import TowerOptions
    from stcontrast.nn import PairModule

__all__ = ["ImageTower", "PairHeads", "TowerBatch", "TowerHeads", "adapt_batch_norm"]


class TowerBatch(NamedTuple):
    """Spots of a step.

    Attributes
    ----------
    crops
        (n, n_fields, size, size, 3), uint8.
    gene
        Components of expression, or what the gene tower of a method takes (n, k).
    measured
        Whether a spot has counts (n,).
    label
        Class (n,), -1 for none.
    slide
        Code of the slide (n,).
    lattice
        Position on the slide (n, 2), in pitches.
    """

    crops: Tensor
    gene: Tensor
    measured: Tensor
    label: Tensor
    slide: Tensor
    lattice: Tensor


class ImageTower(nn.Module):
    """A backbone on crops of one or several fields, with shared weights; the features of the fields are concatenated.

    Its batch normalisation is never in training mode: the statistics would depend on the rest of the micro-batch.

    Parameters
    ----------
    backbone
        Maps crops (n, 3, size, size) to features (n, n_features).
    mean, std
        Normalisation of RGB in [0, 1].
    options
        Options of the augmentation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, *, mean: Iterable[float], std: Iterable[float], options: TowerOptions
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.options = options
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(
                name, torch.tensor(list(values), dtype=torch.float32).reshape(3, 1, 1), persistent=False
            )

    def train(self, mode: bool = True) -> ImageTower:  # noqa: FBT001, FBT002 (torch's signature)
        """Set the training mode; batch normalisation stays in evaluation mode."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, crops: Tensor) -> Tensor:
        """Features (n, n_fields × n_features) of crops (n, n_fields, size, size, 3), uint8; augmented in training."""
        pictures = crops.permute(0, 1, 4, 2, 3).to(self.mean.dtype) / 255
        if self.training and self.options.augment:
            pictures = augment(pictures, stain=self.options.stain_jitter, color=self.options.color_jitter)
        normalised = ((pictures - self.mean) / self.std).flatten(0, 1)
        features: Tensor = self.backbone(normalised).flatten(1)
        return features.reshape(len(crops), -1)


class TowerHeads(nn.Module):
    """Losses of the tower: contrast with the genes, regression of expression, classes.

    The heads get the features of the whole batch at once, centred within the slide as for a method, and scaled to unit
    deviation over the batch.

    Parameters
    ----------
    n_features, n_components, n_classes
        Numbers of inputs and of targets; there is no head without a target.
    center
        Centre the features within the slide.
    options
        Weights of the losses, temperature, width of the embedding.
    """

    def __init__(
        self, *, n_features: int, n_components: int, n_classes: int, center: bool, options: TowerOptions
    ) -> None:
        super().__init__()
        self.center = center
        self.options = options
        self.norm = nn.BatchNorm1d(n_features, affine=False)
        self.expression = nn.Linear(n_features, n_components) if n_components else None
        self.classes = nn.Linear(n_features, n_classes) if n_classes else None
        contrasted = n_components > 0 and options.contrastive_weight > 0
        width = options.n_embedding
        # no dropout: the loss of a batch must not depend on the number of processes
        self.image = ProjectionHead(n_features, width, dropout=0.0) if contrasted else None
        self.gene = ProjectionHead(n_components, width, dropout=0.0) if contrasted else None
        if self.expression is not None:
            # an untrained tower predicts the mean
            nn.init.zeros_(self.expression.weight)
            nn.init.zeros_(self.expression.bias)

    def losses(self, features: Tensor, batch: TowerBatch) -> dict[str, Tensor]:
        """Parts of the loss on the features (n, n_features) of a whole batch, as far as it has the data for them."""
        if self.center:
            features = _centered(features, batch.slide)
        features = self.norm(features)
        parts: dict[str, Tensor] = {}
        seen = batch.measured
        if self.expression is not None and bool(seen.any()):
            error = self.expression(features[seen]) - batch.gene[seen]
            parts["expression"] = error.square().sum(dim=1).mean()
        # one pair has no negatives
        if self.image is not None and self.gene is not None and int(seen.sum()) > 1:
            gene = self.gene(batch.gene[seen] * batch.gene.shape[1] ** 0.5)
            image = self.image(features[seen])
            parts["contrastive"] = info_nce(gene, image, temperature=self.options.temperature)
        known = batch.label >= 0
        if self.classes is not None and bool(known.any()):
            parts["class"] = functional.cross_entropy(self.classes(features[known]), batch.label[known])
        return parts

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the parts."""
        weights = {name: getattr(self.options, f"{name}_weight") for name in parts}
        return torch.stack([weights[name] * part for name, part in parts.items()]).sum()


class PairHeads(nn.Module):
    """The loss of a contrastive method itself, its image side on the features of the batch.

    The features are centred and scaled as for :class:`TowerHeads`.

    Parameters
    ----------
    pair
        The towers of the method, and their loss.
    n_features
        Number of features.
    center
        Centre the features within the slide.
    """

    def __init__(self, pair: PairModule, *, n_features: int, center: bool) -> None:
        super().__init__()
        self.pair = pair
        self.center = center
        self.norm = nn.BatchNorm1d(n_features, affine=False)

    def losses(self, features: Tensor, batch: TowerBatch) -> dict[str, Tensor]:
        """Parts of the method's loss on the features (n, n_features) of a whole batch."""
        seen = batch.measured
        features, slide = features[seen], batch.slide[seen]
        if len(features) < 2:  # one pair has no negatives
            return {"contrastive": features.sum() * 0.0}
        if self.center:
            features = _centered(features, slide)
        rows = torch.arange(len(features), device=features.device)
        table = SpotTable(
            image=self.norm(features), gene=batch.gene[seen], target=features.new_zeros(len(features), 0), slide=slide,
            lattice=batch.lattice[seen], near=rows[:, None],
        )  # fmt: skip
        return self.pair.losses(table, rows)

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the parts."""
        return torch.stack([self.pair.weights.get(name, 1.0) * part for name, part in parts.items()]).sum()


def adapt_batch_norm(tower: ImageTower, crops: Iterable[Tensor]) -> None:
    """Set the statistics of batch normalisation to the mean over batches of crops (n, n_fields, size, size, 3)."""
    norms = [module for module in tower.backbone.modules() if isinstance(module, _BatchNorm)]
    momenta = [module.momentum for module in norms]
    tower.eval()
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the plain mean over batches
        module.train()
    with torch.no_grad():
        for part in crops:
            tower(part)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
        module.eval()


def _centered(features: Tensor, slide: Tensor) -> Tensor:
    codes, place, count = torch.unique(slide, return_inverse=True, return_counts=True)
    sums = features.new_zeros(len(codes), features.shape[1]).index_add(0, place, features)
    return features - (sums / count[:, None])[place]

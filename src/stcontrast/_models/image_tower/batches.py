"""Targets of an image tower, and batches of crops with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch.utils.data import DataLoader, Dataset, Sampler

from stcontrast._data import lattice_coordinates
from stcontrast._models.image_tower.module import PairHeads, TowerBatch, TowerHeads
from stcontrast._training import seeded
from stcontrast.nn import SpotTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from stcontrast._data import Spots
    from stcontrast._models.image_tower.crop_store import CropRows
    from stcontrast._models.image_tower.options import TowerOptions
    from stcontrast.nn import PairModule

__all__ = ["PairMethod", "SpotBatches", "TowerTargets", "crop_loader", "mixed_seed"]


class PairMethod(Protocol):
    """A contrastive method whose own loss can train a tower.

    Attributes
    ----------
    name, spec
        Its name and its options.
    """

    name: ClassVar[str]

    @property
    def spec(self) -> dict[str, Any]:
        """Arguments that make the same method again."""

    def build(self, *, n_image: int, n_gene: int, n_targets: int) -> PairModule:
        """Its towers, for so many image features and inputs of the gene tower."""

    def fit_genes(self, spots: Spots) -> None:
        """Fit what makes the gene tower's input, on measured spots."""

    def gene_input(self, spots: Spots) -> NDArray[np.float32]:
        """Input of the gene tower (n_spots, k) of measured spots."""


@dataclass(frozen=True, slots=True)
class TowerTargets:
    """Targets of all spots, in a space that is fitted on the training rows only.

    Attributes
    ----------
    gene
        What the image is to be aligned with (n_spots, k); 0 in spots without counts. Of the joint loss: principal
        components of standardised expression, scaled so that their variances on the training rows sum to 1; k is 0 if no
        training spot has counts. Of a method's own loss: the input of its gene tower.
    measured
        Whether a spot has counts (n_spots,).
    label
        Class codes (n_spots,), -1 for none.
    slide
        Code of the slide (n_spots,).
    lattice
        Position on the slide (n_spots, 2), in pitches.
    n_classes
        Number of classes; 0 if no training spot has a label.
    method
        The method whose own loss it is, its gene side fitted; `None` for the joint loss.
    """

    gene: NDArray[np.float32]
    measured: NDArray[np.bool_]
    label: NDArray[np.int64]
    slide: NDArray[np.int64]
    lattice: NDArray[np.float32]
    n_classes: int
    method: PairMethod | None = None

    @classmethod
    def of(cls, data: Spots, rows: NDArray[np.intp], *, n_components: int) -> TowerTargets:
        """Make targets from training data, fitted on some of its rows.

        Expression is centred within its slide, every gene is scaled to unit deviation, and the components are those
        of the training rows.

        Parameters
        ----------
        data
            Spots, including held-out ones.
        rows
            Training rows: whole slides, or blocks of a single slide.
        n_components
            Maximum number of components.
        """
        data = replace(data, target=data.observed)
        train = data.take(rows)
        lattice = lattice_coordinates(data.xy, data.slide)
        label = data.label if train.has_labels else np.full_like(data.label, -1)
        n_classes = data.n_classes if train.has_labels else 0
        if not train.measured.any():
            empty = np.zeros((len(data.slide), 0), dtype=np.float32)
            return cls(empty, np.zeros(len(data.slide), dtype=bool), label, data.slide, lattice, n_classes)
        centered = (data.observed - data.slide_means()[1]).astype(np.float64)
        # with blocks of one slide, held-out spots do not contribute to the mean
        centered[rows] = train.observed - train.slide_means()[1]
        seen = rows[train.measured]
        deviation = centered[seen].std(axis=0)
        scaled = centered / np.where(deviation > 1e-6, deviation, 1.0)
        _, _, right = randomized_svd(scaled[seen], min(n_components, *scaled[seen].shape), random_state=0)
        components = scaled @ right.T
        components /= max(np.sqrt(components[seen].var(axis=0).sum()), 1e-6)
        components[~data.measured] = 0.0
        return cls(components.astype(np.float32), data.measured, label, data.slide, lattice, n_classes)

    @classmethod
    def of_method(cls, data: Spots, rows: NDArray[np.intp], method: PairMethod) -> Self:
        """Make the targets of a method's own loss from training data, its gene side fitted on some of the rows.

        Parameters
        ----------
        data
            Spots, including held-out ones.
        rows
            Training rows.
        method
            The method, not fitted; its gene side is fitted here, where any of the rows has counts.
        """
        data = replace(data, target=data.observed)
        measured, unlabelled = data.measured, np.full_like(data.label, -1)
        lattice = lattice_coordinates(data.xy, data.slide)
        learnt = rows[measured[rows]]
        if len(learnt) == 0:
            empty = np.zeros((len(data), 0), dtype=np.float32)
            return cls(empty, np.zeros(len(data), dtype=bool), unlabelled, data.slide, lattice, 0, method)
        train = data.take(learnt)
        method.fit_genes(train)
        of_train = method.gene_input(train)
        gene = np.zeros((len(data), of_train.shape[1]), dtype=np.float32)
        gene[learnt] = of_train
        if len(others := np.setdiff1d(np.flatnonzero(measured), rows)):
            gene[others] = method.gene_input(data.take(others))
        return cls(gene, measured, unlabelled, data.slide, lattice, 0, method)

    def heads(self, *, n_features: int, center: bool, options: TowerOptions) -> TowerHeads | PairHeads:
        """Fresh heads with the loss, for so many features of the tower."""
        n_gene = self.gene.shape[1]
        if self.method is not None:
            pair = self.method.build(n_image=n_features, n_gene=n_gene, n_targets=0)
            return PairHeads(pair, n_features=n_features, center=center)
        return TowerHeads(
            n_features=n_features, n_components=n_gene, n_classes=self.n_classes, center=center, options=options
        )

    def table(self, rows: NDArray[np.intp]) -> SpotTable:
        """Where some spots lie, without what is known of them: what batches are drawn from."""
        nothing = torch.zeros(len(rows), 0)
        near = torch.arange(len(rows))[:, None]
        slide, lattice = torch.from_numpy(self.slide[rows]), torch.from_numpy(self.lattice[rows])
        return SpotTable(nothing, nothing, nothing, slide, lattice, near)


ENCODED_AT_ONCE = 64


def mixed_seed(*parts: int) -> int:
    """One seed from several numbers, such as a seed, a step and a process."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class SpotBatches(Sampler[Any]):
    """Rows of each batch, shuffled in every epoch; every process gets its share of the same batches.

    Parameters
    ----------
    rows
        Spots to draw from.
    batch_size
        Maximum number of spots in a batch, over all processes. The sizes of the batches of an epoch differ by one spot
        at most, so that no batch has too few spots to contrast.
    seed
        Seed of the order, together with the epoch.
    draw
        Draws the batches of an epoch, as places among `rows`, instead: as a method does.
    """

    def __init__(
        self, rows: NDArray[np.intp], batch_size: int, *, seed: int, draw: Callable[[], list[Tensor]] | None = None
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.draw = draw
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size) if self.draw is None else len(self._of_epoch())

    def _of_epoch(self) -> list[NDArray[np.intp]]:
        if self.draw is None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
            return np.array_split(order, len(self))
        with seeded(mixed_seed(self.seed, self.epoch)):
            return [self.rows[part.numpy()] for part in self.draw()]

    def __iter__(self) -> Iterator[NDArray[np.intp]]:
        rank, n_ranks = _rank()
        for batch in self._of_epoch():
            # every process gets the same number: the remainder is left out of this epoch
            share = len(batch) // n_ranks
            yield batch[rank * share : (rank + 1) * share]


class _Spots(Dataset[TowerBatch]):
    """A whole batch at once, by the rows of its spots."""

    def __init__(self, crops: CropRows, targets: TowerTargets) -> None:
        self.crops = crops
        self.targets = targets

    def __getitem__(self, rows: NDArray[np.intp]) -> TowerBatch:
        targets = self.targets
        parts = (targets.gene, targets.measured, targets.label, targets.slide, targets.lattice)
        return TowerBatch(torch.from_numpy(self.crops[rows]), *(torch.from_numpy(part[rows]) for part in parts))


def crop_loader(
    crops: CropRows, targets: TowerTargets, rows: NDArray[np.intp] | SpotBatches, *, num_workers: int = 0
) -> DataLoader[Any]:
    """Batches of crops and targets, by a sampler or of rows in their order."""
    order: Any = rows
    if not isinstance(rows, SpotBatches):
        order = [rows[start : start + ENCODED_AT_ONCE] for start in range(0, len(rows), ENCODED_AT_ONCE)]
    return DataLoader(_Spots(crops, targets), sampler=order, batch_size=None, num_workers=num_workers)


def _rank() -> tuple[int, int]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()

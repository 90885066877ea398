"""Targets of an image tower, and batches of crops with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch.utils.data import DataLoader, Dataset, Sampler

from stcontrast._models.image_tower.module import TowerBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from stcontrast._data.spots import Spots
    from stcontrast._models.image_tower.crop_store import CropRows

__all__ = ["SpotBatches", "TowerTargets", "crop_loader", "mixed_seed"]


@dataclass(frozen=True, slots=True)
class TowerTargets:
    """Targets of all spots, in a space that is fitted on the training rows only.

    Attributes
    ----------
    components
        Principal components of standardised expression (n_spots, k), scaled so that their variances on the training
        rows sum to 1; 0 in spots without counts. k is 0 if no training spot has counts.
    measured
        Whether a spot has counts (n_spots,).
    label
        Class codes (n_spots,), -1 for none.
    slide
        Code of the slide (n_spots,).
    n_classes
        Number of classes; 0 if no training spot has a label.
    """

    components: NDArray[np.float32]
    measured: NDArray[np.bool_]
    label: NDArray[np.int64]
    slide: NDArray[np.int64]
    n_classes: int

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
        label = data.label if train.has_labels else np.full_like(data.label, -1)
        n_classes = data.n_classes if train.has_labels else 0
        if not train.measured.any():
            empty = np.zeros((len(data.slide), 0), dtype=np.float32)
            return cls(empty, np.zeros(len(data.slide), dtype=bool), label, data.slide, n_classes)
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
        return cls(components.astype(np.float32), data.measured, label, data.slide, n_classes)


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
    """

    def __init__(self, rows: NDArray[np.intp], batch_size: int, *, seed: int) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[NDArray[np.intp]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        rank, n_ranks = _rank()
        for batch in np.array_split(order, len(self)):
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
        parts = (targets.components, targets.measured, targets.label, targets.slide)
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

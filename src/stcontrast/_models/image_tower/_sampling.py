"""Batches of training spots: the same whatever the number of processes, and wherever a training is taken up again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from stcontrast._models.image_tower._module import TowerBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from stcontrast._models.image_tower._crop_store import CropRows
    from stcontrast._models.image_tower._targets import TowerTargets

__all__ = ["SpotBatches", "crop_loader", "mixed_seed"]

ENCODED_AT_ONCE = 64


def mixed_seed(*parts: int) -> int:
    """One seed from several numbers, such as a seed, a step and a process."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class SpotBatches(Sampler[Any]):
    """Rows of each batch, shuffled anew every epoch; every process gets its share of the same batches.

    Parameters
    ----------
    rows
        Spots to draw from.
    batch_size
        Spots in a batch at most, over all processes. The batches of an epoch are of one size, give or take a spot, so
        that none is left with too few to contrast.
    seed
        Seed of the order, together with the epoch.
    """

    def __init__(self, rows: NDArray[np.intp], batch_size: int, *, seed: int) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[NDArray[np.intp]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        rank, n_ranks = _rank()
        for batch in np.array_split(order, len(self)):
            # every process has as many: what would be left over sits this epoch out
            share = len(batch) // n_ranks
            yield batch[rank * share : (rank + 1) * share]


class _Spots(Dataset[TowerBatch]):
    """A whole batch for the rows of one."""

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
    """Batches of crops and targets: those of a sampler, or of rows in order."""
    order: Any = rows
    if not isinstance(rows, SpotBatches):
        order = [rows[start : start + ENCODED_AT_ONCE] for start in range(0, len(rows), ENCODED_AT_ONCE)]
    return DataLoader(_Spots(crops, targets), sampler=order, batch_size=None, num_workers=num_workers)


def _rank() -> tuple[int, int]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()

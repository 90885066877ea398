"""Training of two towers on spots in memory."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pandas as pd
import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, IterableDataset

from stcontrast._training import check_loss, fit_quietly, one_thread
from stcontrast.nn import PairModule, warn_at_chance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from stcontrast.nn import SpotModule, SpotTable

__all__ = ["embed_pairs", "train_pairs"]

EMBEDDED_AT_ONCE = 4096


class _Epochs(IterableDataset[Any]):
    """Rows of the batches, drawn anew in every epoch."""

    def __init__(self, module: SpotModule, table: SpotTable, batch_size: int) -> None:
        self.module = module
        self.table = table
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.module.batches(self.table, self.batch_size))


class _Training(pl.LightningModule):
    """The training loop of a :class:`~stcontrast.nn.SpotModule`."""

    def __init__(
        self,
        module: SpotModule,
        table: SpotTable,
        optimizer: Callable[[Any], tuple[Optimizer, LRScheduler | None]],
        *,
        average_from: int | None,
        name: str,
    ) -> None:
        super().__init__()
        self.name = name
        self.average_from = average_from
        # not a submodule: it is no part of what is trained
        self.averaged: list[AveragedModel] = []
        self.module = module
        self.table = table
        self.optimizer_of = optimizer
        self.seen: defaultdict[str, list[float]] = defaultdict(list)
        self.rows: list[dict[str, float]] = []

    def on_fit_start(self) -> None:
        """Move the spots to the device once."""
        self.table = self.table.to(self.device)

    def training_step(self, rows: Tensor) -> Tensor:
        """Loss of a batch."""
        parts = self.module.losses(self.table, rows)
        for name, part in parts.items():
            self.seen[name].append(float(part.detach()))
        if isinstance(self.module, PairModule):
            self.seen["chance"].append(self.module.chance(self.table, rows))
        weights = self.module.weights
        total = torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()
        check_loss(float(total.detach()), of=self.name, at=f"epoch {self.current_epoch + 1}")
        return total

    def on_train_epoch_end(self) -> None:
        """Record the mean losses of the epoch."""
        means = {name: fmean(values) for name, values in self.seen.items()}
        self.rows.append({"epoch": self.current_epoch + 1, **means})
        self.seen.clear()
        if self.average_from is not None and self.current_epoch >= self.average_from:
            self.averaged = self.averaged or [AveragedModel(self.module)]
            self.averaged[0].update_parameters(self.module)

    def on_train_end(self) -> None:
        """Put the mean weights in place."""
        if self.averaged:
            self.module.load_state_dict(self.averaged[0].module.state_dict())

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule of the method; the schedule makes one step per epoch."""
        optimizer, schedule = self.optimizer_of(self.module)
        return optimizer if schedule is None else ([optimizer], [schedule])


def train_pairs(
    module: SpotModule,
    table: SpotTable,
    *,
    batch_size: int,
    max_epochs: int,
    optimizer: Callable[[Any], tuple[Optimizer, LRScheduler | None]],
    max_steps: int | None = None,
    average: bool = False,
    name: str = "contrastive network",
) -> pd.DataFrame:
    """Train two towers in place, without seeding.

    Parameters
    ----------
    module
        The towers and their loss.
    table
        Training spots.
    batch_size
        Spots in a batch.
    max_epochs
        Passes through the spots.
    max_steps
        Steps of the optimiser, instead of a number of passes.
    optimizer
        Makes the optimiser and the schedule (or `None`) of a module.
    average
        End with the mean of the weights after every epoch of the second half: less of a draw of random numbers
        (Izmailov et al. 2018).
    name
        Name of the network, for who waits for it.

    Returns
    -------
    Losses, one row per epoch. A warning says if the contrast stays at chance.
    """
    training = _Training(module, table, optimizer, average_from=max_epochs // 2 if average else None, name=name)
    epochs = _Epochs(module, table, batch_size)
    limits: dict[str, Any] = {"max_epochs": max_epochs}
    if max_steps is not None:
        limits = {"max_epochs": -(-max_steps // len(module.batches(table, batch_size))), "max_steps": max_steps}
    fit_quietly(training, DataLoader(epochs, batch_size=None), name=name, **limits)
    # Lightning's own objects refer to one another, and would keep the spots until they are collected
    del training.table, epochs.table
    history = pd.DataFrame(training.rows)
    if "contrastive" in history and isinstance(module, PairModule):
        least = [module.contrast.least(table, rows) for rows in module.batches(table, batch_size)]
        chance = float(history["chance"].iloc[-1])
        warn_at_chance(history["contrastive"].tolist(), chance, least=sum(least) / len(least))
    return history


def embed_pairs(module: SpotModule, table: SpotTable, embed: Callable[[SpotTable, Tensor], Tensor | None]) -> Tensor:
    """Apply a method of the module to all spots, in evaluation mode; rows in the order of the table."""
    module.eval()
    out: Tensor | None = None
    with torch.inference_mode(), one_thread():
        for rows in module.evaluation_batches(table, EMBEDDED_AT_ONCE):
            part = embed(table, rows)
            if part is None:
                msg = "The method has no regression of its own."
                raise RuntimeError(msg)
            out = part.new_empty((len(table), part.shape[1])) if out is None else out
            out[rows] = part
    if out is None:
        msg = "There are no spots."
        raise ValueError(msg)
    return out

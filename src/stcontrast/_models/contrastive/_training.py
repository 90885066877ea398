"""Lightning training of the contrastive module on features that fit in memory."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from stcontrast._models.batch_vae._session import quiet_training
from stcontrast._settings import settings
from stcontrast._training import one_thread, seeded

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from stcontrast._models.contrastive._module import Batch, ContrastiveModule

__all__ = ["LONG_ENOUGH", "quiet_trainer", "train_module", "warn_at_chance"]

logger = logging.getLogger(__name__)

PATIENCE = 20
# a contrast that stays this near ln(batch) has not told a single pair apart
CHANCE_MARGIN = 0.02
# epochs after which it should have
LONG_ENOUGH = 10

# What Lightning says of a loop that is meant to be as it is: no validation without held-out groups, loaders without
# workers, no log on disk; and torch of the way Lightning walks over a batch.
_NOT_FOR_USERS: tuple[tuple[str, type[Warning]], ...] = (
    (r"You defined a `validation_step` but have no `val_dataloader`", UserWarning),
    (r"The '\w+' does not have many workers which may be a bottleneck", UserWarning),
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),
)


class History(Callback):
    """Losses of every epoch, and the weights of the best one."""

    def __init__(self, *, keep_best: bool) -> None:
        self.keep_best = keep_best
        self.rows: list[dict[str, float]] = []
        self.best = (math.inf, 0)
        self.state: dict[str, torch.Tensor] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: ContrastiveModule) -> None:
        """Note the epoch (validation, if any, has run by now)."""
        metrics = pl_module.epoch_means()
        pl_module.recorded.clear()
        self.rows.append({"epoch": trainer.current_epoch + 1, **metrics})
        loss = metrics.get("validation_loss", math.nan)
        if self.keep_best and loss < self.best[0]:
            self.best = (loss, trainer.current_epoch + 1)
            self.state = copy.deepcopy(pl_module.state_dict())


class StopAfter(Callback):
    """Stop after an epoch without shortening the schedule of the learning rate."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop when the epoch is reached."""
        if trainer.current_epoch + 1 >= self.epoch:
            trainer.should_stop = True


def train_module(
    module: ContrastiveModule, batch: Batch, validation: NDArray[np.bool_], *, stop_epoch: int | None
) -> tuple[pd.DataFrame, int]:
    """Train a module; spots in `validation` are only looked at.

    Returns
    -------
    Losses, a row an epoch; and the epoch whose weights the module now has.
    """
    config = module.config
    rows = torch.as_tensor(validation)
    # a spot that can teach nothing would only dilute the batches
    teaches = (batch.measured & bool(config.n_targets or config.n_gene)) | ((batch.label >= 0) & bool(config.n_classes))
    _check_teaching(rows, teaches)
    watch = bool(rows.any())
    history = History(keep_best=watch)
    callbacks: list[Callback] = [history]
    if watch:
        callbacks.append(EarlyStopping("validation_loss", patience=PATIENCE))
    if stop_epoch is not None:
        callbacks.append(StopAfter(stop_epoch))
    with seeded(config.seed), quiet_training(), quiet_trainer(), one_thread():
        training = _loader([part[~rows & teaches] for part in batch], config.batch_size, shuffle=True)
        held_out = _loader([part[rows & teaches] for part in batch], 4096, shuffle=False) if watch else None
        trainer = pl.Trainer(
            max_epochs=config.max_epochs,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=settings.progress,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        module.train()
        trainer.fit(module, training, held_out)
    module.cpu().eval()
    epochs = len(history.rows)
    if history.state:
        module.load_state_dict(history.state)
        epochs = history.best[1]
    frame = pd.DataFrame(history.rows)
    n_pairs = min(config.batch_size, int((~rows & batch.measured).sum()))
    if "train_contrastive" in frame and n_pairs > 1 and len(frame) >= LONG_ENOUGH:
        warn_at_chance(float(frame["train_contrastive"].iloc[-1]), math.log(n_pairs))
    return frame, epochs


@contextmanager
def quiet_trainer() -> Iterator[None]:
    """Silence what Lightning says of a loop that is meant to be as it is."""
    with warnings.catch_warnings():
        for message, category in _NOT_FOR_USERS:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield


def _check_teaching(held_out: torch.Tensor, teaches: torch.Tensor) -> None:
    for kind, rows in (("to train on", ~held_out), ("held out", held_out)):
        if bool(rows.any()) and not bool((rows & teaches).any()):
            msg = f"None of the {int(rows.sum())} spots {kind} has what the model learns from: counts or a label."
            raise ValueError(msg)


def _loader(parts: list[torch.Tensor], batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
    dataset = TensorDataset(*parts)
    order = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    # the contrast wants full batches; a training smaller than one batch is one batch
    sampler = BatchSampler(order, batch_size, drop_last=shuffle and len(dataset) >= batch_size)
    return DataLoader(dataset, sampler=sampler, batch_size=None)


def warn_at_chance(loss: float, chance: float) -> None:
    """Warn where a contrastive loss is within 2 % of what towers score that tell no pair from another."""
    if loss > (1 - CHANCE_MARGIN) * chance:
        logger.warning(
            "The contrastive loss stays at %.2f, within 2 %% of ln(%.0f): image and genes are not being aligned.",
            loss, math.exp(chance),
        )  # fmt: skip

"""Training of one image tower."""

from __future__ import annotations

import logging
import math
import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from stcontrast._models.image_tower.batches import SpotBatches, crop_loader, mixed_seed
from stcontrast._models.image_tower.encoder import write_weights
from stcontrast._models.image_tower.module import PairHeads, TowerBatch, adapt_batch_norm
from stcontrast._training import check_loss, fit_quietly, quiet_training

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from stcontrast._models.image_tower.batches import TowerTargets
    from stcontrast._models.image_tower.crop_store import CropRows
    from stcontrast._models.image_tower.module import ImageTower, TowerHeads
    from stcontrast._models.image_tower.options import TowerOptions

__all__ = ["Task", "TowerTraining", "cached_backward", "epoch_file", "tower_groups", "train_tower", "warmup_cosine"]

logger = logging.getLogger(__name__)

# maximum number of crops to adapt batch normalisation to
ADAPTED_TO: Final = 2048


def tower_groups(backbone: nn.Module, options: TowerOptions) -> list[dict[str, Any]]:
    """Parameter groups of the backbone, with learning rates by depth; no weight decay of biases and norms."""
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(backbone, weight_decay=options.weight_decay, layer_decay=options.layer_decay)
    return [
        {
            "params": group["params"],
            "weight_decay": group["weight_decay"],
            "lr": options.learning_rate * group["lr_scale"],
        }
        for group in groups
    ]


def warmup_cosine(step: int, *, n_steps: int, n_warmup: int) -> float:
    """Factor of the learning rate at a step, counted from 0: it rises to 1, then falls to 0 as a cosine.

    Examples
    --------
    >>> [round(warmup_cosine(step, n_steps=6, n_warmup=2), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - n_warmup) / max(n_steps - n_warmup, 1))


def cached_backward(
    parts: Sequence[Callable[[], Tensor]],
    backward: Callable[[Tensor], Tensor],
) -> None:
    """Back-propagate a loss of the whole batch, with the graph of one micro-batch in memory at a time.

    First every micro-batch is embedded without a graph. The loss of all embeddings gives the gradient of each of them.
    Then every micro-batch is embedded again, with a graph, and its part of that gradient is back-propagated. The
    result is the gradient of one pass over the whole batch.

    Parameters
    ----------
    parts
        Functions that embed the micro-batches (n_i, d); with the same result in every call, also of random numbers.
    backward
        Takes the embeddings of all micro-batches (n, d), back-propagates the loss into its own parameters, and returns
        the gradient of the embeddings (n, d).

    References
    ----------
    Gao et al. 2021 (GradCache, arXiv 2101.06983).
    """
    # one part needs no second pass: its graph is the whole graph
    with nullcontext() if len(parts) == 1 else torch.no_grad():
        embedded = [part() for part in parts]
    gradient = backward(torch.cat([part.detach() for part in embedded]))
    if len(parts) == 1:
        torch.autograd.backward(embedded[0], gradient.to(embedded[0].dtype))
        return
    for part, own in zip(parts, torch.split(gradient, [len(part) for part in embedded]), strict=True):
        again = part()
        torch.autograd.backward(again, own.to(again.dtype))


class EpochWeights(Callback):
    """Write the weights of the backbone after every epoch.

    Parameters
    ----------
    folder
        Folder to write to; created if needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the weights of the epoch."""
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_weights(pl_module.tower.backbone, epoch_file(self.folder, trainer.current_epoch + 1))


def epoch_file(folder: Path, epoch: int) -> Path:
    """File of the weights after an epoch, counted from 1."""
    return folder / f"epoch{epoch:04d}.safetensors"


def checkpointing(folder: Path | None) -> tuple[list[Callback], Path | None]:
    """The callback that writes checkpoints, and the checkpoint to resume from, if any."""
    if folder is None:
        return [], None
    folder.mkdir(parents=True, exist_ok=True)
    # a checkpoint is deleted only after the next is written: a killed run may leave two
    found = {
        int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(r"epoch=(\d+)\.ckpt", path.name))
    }
    writer = ModelCheckpoint(folder, filename="{epoch}", save_top_k=1, every_n_epochs=1, save_on_train_epoch_end=True)
    return [writer], found[max(found)] if found else None


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Data to train one tower on.

    Attributes
    ----------
    crops, targets
        Crops and targets of all spots.
    train
        Rows to learn from.
    held_out
        Rows to validate on, if any.
    center
        Whether to centre the features within the slide before the heads.
    seed
        Seed of heads, batches, augmentation and dropout.
    """

    crops: CropRows
    targets: TowerTargets
    train: NDArray[np.intp]
    held_out: NDArray[np.intp] | None
    center: bool
    seed: int

    @property
    def teaching(self) -> NDArray[np.intp]:
        """Training rows with counts or a label."""
        targets = self.targets
        useful = targets.measured | (targets.label >= 0)
        return self.train[useful[self.train]]

    @property
    def is_empty(self) -> bool:
        """Whether there are too few spots to learn from."""
        return len(self.teaching) < 2


class TowerTraining(pl.LightningModule):
    """The training loop of a tower and its heads.

    The loss is that of the whole batch over all processes. Each process computes it on the features of all processes
    and back-propagates through its own crops; then the gradients of the tower are summed. Random numbers depend only on
    seed, step, process and micro-batch, so that the second pass repeats the first, and a resumed training continues as
    if it had not been interrupted.

    Parameters
    ----------
    tower, heads
        What is trained.
    options
        How it is trained.
    n_batches
        Batches in an epoch.
    seed
        Seed of augmentation and dropout.
    """

    def __init__(
        self, tower: ImageTower, heads: TowerHeads | PairHeads, *, options: TowerOptions, n_batches: int, seed: int
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tower = tower
        self.heads = heads
        self.options = options
        self.n_batches = n_batches
        self.seed = seed
        self.rows: list[dict[str, float]] = []
        self._seen: list[dict[str, float]] = []
        self._held_out: list[tuple[Tensor, TowerBatch]] = []

    def training_step(self, batch: TowerBatch) -> None:
        """One step on a batch."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()
        parts = [
            partial(self._embed, crops, mixed_seed(self.seed, self.global_step, self.global_rank, i))
            for i, crops in enumerate(torch.split(batch.crops, self.options.micro_batch))
        ]
        whole = TowerBatch(batch.crops, *(self._gathered(part) for part in batch[1:]))
        # gradients are summed over processes below, once
        with self.trainer.strategy.block_backward_sync() if self.trainer.world_size > 1 else nullcontext():
            cached_backward(parts, partial(self._backward, batch=whole))
        self._sum_over_processes()
        optimizer.step()
        schedule.step()

    def _embed(self, crops: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        features: Tensor = self.tower(crops)
        return features

    def _backward(self, features: Tensor, *, batch: TowerBatch) -> Tensor:
        """Back-propagate into the heads; gradient of the features of this process."""
        n, start = len(features), len(features) * self.global_rank
        whole = self._gathered(features.to(self.tower.mean.dtype)).detach().requires_grad_()
        # dropout in the heads must not differ between processes
        torch.manual_seed(mixed_seed(self.seed, self.global_step))
        with torch.autocast(self.device.type, enabled=False):
            parts = self.heads.losses(whole, batch)
            total = self.heads.total(parts)
        rate, precision = self.options.learning_rate, self.options.precision
        check_loss(
            float(total.detach()), of="image tower", at=f"epoch {self.current_epoch + 1}",
            advice=f"use a lower `learning_rate` than {rate:g}, or another `precision` than {precision!r}",
        )  # fmt: skip
        self.manual_backward(total)
        self._seen.append(
            {**{name: float(part.detach()) for name, part in parts.items()}, "loss": float(total.detach())}
        )
        gradient = torch.zeros_like(whole) if whole.grad is None else whole.grad
        return gradient[start : start + n]

    def _gathered(self, values: Tensor) -> Tensor:
        """Rows of all processes, in the order of the processes."""
        if self.trainer.world_size == 1:
            return values
        gathered = [torch.empty_like(values) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(gathered, values.contiguous())
        return torch.cat(gathered)

    def _sum_over_processes(self) -> None:
        # the gradients of the heads are already those of the whole batch in every process
        if self.trainer.world_size > 1:
            for weight in self.tower.parameters():
                if weight.grad is not None:
                    torch.distributed.all_reduce(weight.grad)

    def on_train_epoch_end(self) -> None:
        """Record the mean losses of the epoch; validation, if any, has run before."""
        names = sorted({name for seen in self._seen for name in seen})
        means = {name: float(np.mean([seen[name] for seen in self._seen if name in seen])) for name in names}
        held_out = self._held_out_loss()
        self.rows.append({"epoch": float(self.current_epoch + 1), **means, **held_out})
        self._seen.clear()
        logger.info("Epoch %d of %d: %s.", self.current_epoch + 1, self.options.epochs, _brief(self.rows[-1]))

    def validation_step(self, batch: TowerBatch) -> None:
        """Features of held-out spots."""
        self._held_out.append(
            (self.tower(batch.crops).to(self.tower.mean.dtype), batch._replace(crops=batch.crops[:, :0]))
        )

    def _held_out_loss(self) -> dict[str, float]:
        """Loss on all held-out spots, without the contrast, which depends on their number."""
        if not self._held_out:
            return {}
        features = torch.cat([features for features, _ in self._held_out])
        batch = TowerBatch(*(torch.cat(part) for part in zip(*(batch for _, batch in self._held_out), strict=True)))
        self._held_out.clear()
        self.heads.eval()
        with torch.no_grad():
            parts = self.heads.losses(features, batch)
        self.heads.train()
        judged = {name: part for name, part in parts.items() if name != "contrastive"} or parts
        return {"held_out_loss": float(self.heads.total(judged))}

    def configure_optimizers(self) -> Any:
        """AdamW with learning rates by depth, which rise, then fall as a cosine."""
        options = self.options
        groups = [*tower_groups(self.tower.backbone, options), {"params": list(self.heads.parameters())}]
        optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
        n_steps = options.epochs * self.n_batches
        factor = partial(warmup_cosine, n_steps=n_steps, n_warmup=round(options.warmup * n_steps))
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]

    def get_extra_state(self) -> list[dict[str, float]]:
        """Losses of the epochs, which belong to checkpoints and to what other processes return."""
        return self.rows

    def set_extra_state(self, state: list[dict[str, float]]) -> None:
        """Restore the losses of the epochs."""
        self.rows = list(state)


def train_tower(
    tower: ImageTower,
    task: Task,
    options: TowerOptions,
    *,
    folder: Path | None = None,
    weights_of_epochs: Path | None = None,
    last_epoch: int | None = None,
) -> list[dict[str, float]]:
    """Train a tower in place.

    Parameters
    ----------
    tower
        The tower, with its initial weights.
    task
        Data to train on.
    options
        How to train.
    folder
        Folder of checkpoints, from which training resumes; none by default.
    weights_of_epochs
        Folder for the weights of the backbone after every epoch; none by default.
    last_epoch
        Stop after this epoch of the whole schedule of the learning rate; by default after the last.

    Returns
    -------
    Losses, one row per epoch.
    """
    rows = task.teaching
    n_features = _n_features(tower, task.crops)
    # convolutions use all threads
    with quiet_training(task.seed, single_thread=False):
        heads = task.targets.heads(n_features=n_features, center=task.center, options=options)
        draw = None
        if isinstance(heads, PairHeads):
            draw = partial(heads.pair.batches, task.targets.table(rows), options.batch_size)
        batches = SpotBatches(rows, options.batch_size, seed=task.seed, draw=draw)
        callbacks, checkpoint = checkpointing(folder)
        if options.batch_norm == "adapted" and checkpoint is None:
            some = np.sort(np.random.default_rng(task.seed).permutation(rows)[:ADAPTED_TO])
            adapt_batch_norm(tower, (batch.crops for batch in crop_loader(task.crops, task.targets, some)))
        if weights_of_epochs is not None:
            callbacks.append(EpochWeights(weights_of_epochs))
        module = TowerTraining(tower, heads, options=options, n_batches=len(batches), seed=task.seed)
        watched = None
        if task.held_out is not None and options.stop == "held-out":
            watched = crop_loader(task.crops, task.targets, task.held_out)
        training = crop_loader(task.crops, task.targets, batches, num_workers=options.num_workers)
        fit_quietly(
            module, training, watched, name="fine-tuning", single_thread=False, resume_from=checkpoint,
            max_epochs=options.epochs if last_epoch is None else last_epoch, accelerator=options.accelerator,
            devices=options.devices, strategy=options.strategy, precision=options.precision, callbacks=callbacks,
            enable_checkpointing=folder is not None, use_distributed_sampler=False,
        )  # fmt: skip
    return module.rows


def _n_features(tower: ImageTower, crops: CropRows) -> int:
    tower.eval()
    with torch.inference_mode():
        return int(tower(torch.from_numpy(crops[np.zeros(1, dtype=np.intp)])).shape[1])


def _brief(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")

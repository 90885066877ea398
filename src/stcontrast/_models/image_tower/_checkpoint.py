"""Checkpoints of a tower's training: one an epoch, taken up again only for the same data and options."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback, ModelCheckpoint

if TYPE_CHECKING:
    from pathlib import Path

    import lightning.pytorch as pl

__all__ = ["EpochWeights", "checkpointing", "epoch_file"]


class EpochWeights(Callback):
    """Keep the backbone's weights after every epoch.

    Parameters
    ----------
    folder
        Where; made if absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write them."""
        from stcontrast._models.image_tower._encoder import write_weights

        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_weights(pl_module.tower.backbone, epoch_file(self.folder, trainer.current_epoch + 1))


def epoch_file(folder: Path, epoch: int) -> Path:
    """File of the weights after an epoch, counted from 1."""
    return folder / f"epoch{epoch:04d}.safetensors"


def checkpointing(folder: Path | None) -> tuple[list[Callback], Path | None]:
    """What writes checkpoints, and the one to go on from, if there is one."""
    if folder is None:
        return [], None
    folder.mkdir(parents=True, exist_ok=True)
    # the one before is deleted only once the next is there: a killed run may leave two
    found = {
        int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(r"epoch=(\d+)\.ckpt", path.name))
    }
    writer = ModelCheckpoint(folder, filename="{epoch}", save_top_k=1, every_n_epochs=1, save_on_train_epoch_end=True)
    return [writer], found[max(found)] if found else None

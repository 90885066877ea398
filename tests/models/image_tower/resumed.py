"""A training in a process of its own, to be killed in the middle and started again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

import stcontrast as stc
from stcontrast.models.image_tower import _training
from stcontrast.models.image_tower._encoder import write_weights
from stcontrast.models.image_tower._options import TowerOptions
from tests.models.image_tower.synthetic import QUICK, spots, store_of, task_of, tower


class Slow(_training.TowerTraining):
    """Takes its time over a step, so that it can be killed between two."""

    wait = 0.0

    def training_step(self, batch: Any) -> None:
        time.sleep(self.wait)
        super().training_step(batch)


def main(folder: str, done: str, *, wait: float) -> None:
    stc.settings.progress = False
    torch.set_num_threads(1)
    Slow.wait = wait
    _training.TowerTraining = Slow
    options = TowerOptions(**{**QUICK, "epochs": 5})
    data = spots()
    with store_of(data) as store:
        part = tower(options)
        _training.train_tower(part, task_of(data, store), options, folder=Path(folder))
    write_weights(part.backbone, Path(done))

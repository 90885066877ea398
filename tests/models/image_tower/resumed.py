"""A training in a process of its own, to be killed in the middle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

import stcontrast as stc
from stcontrast._models.image_tower import TowerOptions, training
from tests.models.image_tower.synthetic import QUICK, spots, store_of, task_of, tower


class Slow(training.TowerTraining):
    """Takes its time over a step, so that it can be killed between two."""

    def training_step(self, batch: Any) -> None:
        time.sleep(0.5)
        super().training_step(batch)


def main(folder: str) -> None:
    stc.settings.progress = False
    torch.set_num_threads(1)
    training.TowerTraining = Slow  # type: ignore[misc]
    options = TowerOptions(**{**QUICK, "epochs": 5})
    data = spots()
    with store_of(data) as store:
        training.train_tower(tower(options), task_of(data, store), options, folder=Path(folder))

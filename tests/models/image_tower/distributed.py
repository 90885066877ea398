"""The same training by one process and by two."""

from __future__ import annotations

from typing import Any

import torch

import stcontrast as stc
from stcontrast._models.image_tower import TowerOptions, training
from tests.models.image_tower.synthetic import QUICK, spots, store_of, task_of, tower


class Plain(training.TowerTraining):
    """Plain steps along the gradient: Adam would hide a gradient that is too large by a factor."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)]


def trained(**how: Any) -> tuple[dict[str, torch.Tensor], float]:
    # a batch that two can share, no random augmentation, a micro-batch less than a share
    options = TowerOptions(**{**QUICK, "epochs": 2, "micro_batch": 5, "augment": False, "precision": "64-true", **how})
    data = spots()
    with store_of(data) as store:
        part = tower(options)
        rows = training.train_tower(part, task_of(data, store), options)
    return {name: value.clone() for name, value in part.backbone.state_dict().items()}, rows[-1]["loss"]


def main() -> None:
    stc.settings.progress = False
    torch.set_num_threads(1)
    training.TowerTraining = Plain  # type: ignore[misc]
    first = tower(TowerOptions()).backbone.state_dict()
    one, loss = trained()
    two, loss_of_two = trained(strategy="ddp_fork", devices=2)

    def largest(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor]) -> float:
        return max(float((these[name].double() - those[name].double()).abs().max()) for name in these)

    print(abs(loss - loss_of_two), largest(one, two), largest(one, first))  # noqa: T201

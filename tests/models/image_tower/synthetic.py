"""Crops with a planted signal, and a network small enough to train in a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stcontrast._models.image_tower import CropRows, CropStore
from stcontrast._models.image_tower.batches import TowerTargets
from stcontrast._models.image_tower.module import ImageTower
from stcontrast._models.image_tower.training import Task
from stcontrast.pp import TimmEncoder
from tests.methods.synthetic import training_data

if TYPE_CHECKING:
    from pathlib import Path

    from stcontrast._models.image_tower import TowerOptions
    from stcontrast.methods import Spots

SIZE = 32
QUICK: dict[str, Any] = {"accelerator": "cpu", "n_components": 4, "n_embedding": 8, "batch_size": 24, "micro_batch": 24}


def encoder(seed: int = 0) -> TimmEncoder:
    """A network with batch normalisation and random weights."""
    return TimmEncoder("test_resnet", pretrained=False, size_px=SIZE, device="cpu", seed=seed)


def tower(options: TowerOptions) -> ImageTower:
    """The same to be trained."""
    base = encoder()
    return ImageTower(base._model.requires_grad_(), mean=base.mean or (), std=base.std or (), options=options)


def spots(*, donors: int = 3, n_spots: int = 16) -> Spots:
    """Training spots; every fifth has no counts, the next no label."""
    data = training_data(donors=donors, n_spots=n_spots, n_genes=6)
    data.depth[::5], data.label[1::5] = 0, -1
    return data


def store_of(data: Spots, *, n_fields: int = 1, directory: Path | None = None) -> CropStore:
    """Crops whose colours follow the design, with noise."""
    rng = np.random.default_rng(0)
    store = CropStore(len(data.slide), n_fields, SIZE, directory=directory)
    for row, design in enumerate(data.design):
        for field in range(n_fields):
            noise = rng.normal(scale=20, size=(SIZE, SIZE, 3))
            store.write(row, field, np.clip(128 + 30 * design[:3] + noise, 0, 255).astype(np.uint8))
    return store


def task_of(data: Spots, store: CropStore, *, n_components: int = 4, seed: int = 0) -> Task:
    """Learn from all spots."""
    rows = np.arange(len(data.slide))
    targets = TowerTargets.of(data, rows, n_components=n_components)
    return Task(CropRows(store, rows), targets, rows, None, center=True, seed=seed)

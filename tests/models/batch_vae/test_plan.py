from __future__ import annotations

import torch
from scvi import REGISTRY_KEYS

from stcontrast._models.batch_vae import BatchAgnosticVAEModule
from stcontrast._models.batch_vae.training import HeldOutBatchPlan


def make_batch(codes: list[int]) -> dict[str, torch.Tensor]:
    return {REGISTRY_KEYS.BATCH_KEY: torch.tensor(codes).unsqueeze(1), "other": torch.ones(len(codes), 1)}


def make_plan(trained: list[int] | None) -> HeldOutBatchPlan:
    return HeldOutBatchPlan(BatchAgnosticVAEModule(5, n_batch=4), trained_batches=trained)


def test_spots_of_an_untrained_batch_are_decoded_as_the_trained_ones_in_turn():
    batch = make_batch([2, 2, 2, 2, 2])
    moved = make_plan([0, 1, 3])._in_trained_batches(batch)
    assert moved[REGISTRY_KEYS.BATCH_KEY].squeeze(1).tolist() == [0, 1, 3, 0, 1]
    assert batch[REGISTRY_KEYS.BATCH_KEY].squeeze(1).tolist() == [2] * 5
    assert torch.equal(moved["other"], batch["other"])


def test_spots_of_a_trained_batch_stay_in_it():
    moved = make_plan([0, 3])._in_trained_batches(make_batch([3, 1, 0, 1, 3]))
    assert moved[REGISTRY_KEYS.BATCH_KEY].squeeze(1).tolist() == [3, 3, 0, 3, 3]


def test_without_a_list_of_batches_nothing_moves():
    batch = make_batch([3, 1])
    assert make_plan(None)._in_trained_batches(batch) is batch

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from stcontrast._models.image_tower import TowerOptions
from stcontrast._models.image_tower.batches import SpotBatches
from stcontrast._models.image_tower.training import train_tower
from tests.models.image_tower.synthetic import QUICK, spots, store_of, task_of, tower

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
# seconds, on a busy machine
PATIENCE = 240


def trained(folder: Path | None = None, **options: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights and losses of a short training."""
    how = TowerOptions(**{"epochs": 2, **QUICK, **options})
    data = spots()
    with store_of(data) as store:
        part = tower(how)
        rows = train_tower(part, task_of(data, store), how, folder=folder)
    return {name: value.clone() for name, value in part.backbone.state_dict().items()}, rows


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def test_a_tower_learns_and_repeats_itself() -> None:
    one, rows = trained(epochs=6, learning_rate=3e-3, batch_norm="adapted")
    again, _ = trained(epochs=6, learning_rate=3e-3, batch_norm="adapted")
    assert rows[-1]["expression"] < 0.9 * rows[0]["expression"]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert largest_difference(one, again) == 0


def test_micro_batches_do_not_change_the_weights() -> None:
    # turns are drawn for a micro-batch: without them both see the same crops. In double precision, as Adam divides by
    # the size of a gradient, and makes as much of one that is nothing but rounding
    one, of_one = trained(augment=False, precision="64-true")
    cut, of_cut = trained(augment=False, precision="64-true", micro_batch=7)
    assert largest_difference(one, cut) < 1e-8
    assert of_cut[-1]["loss"] == pytest.approx(of_one[-1]["loss"], abs=1e-8)


def test_half_precision_learns_much_the_same() -> None:
    _, of_one = trained(augment=False)
    weights, of_half = trained(augment=False, precision="bf16-mixed", micro_batch=7)
    assert of_half[-1]["loss"] == pytest.approx(of_one[-1]["loss"], rel=0.1)
    assert all(value.dtype == torch.float32 for name, value in weights.items() if "num_batches" not in name)


def test_a_diverging_training_is_an_error() -> None:
    with pytest.raises(
        FloatingPointError, match=r"The loss of the image tower is (nan|inf) in epoch .*lower `learning_"
    ):
        trained(epochs=4, learning_rate=1e30)


def test_statistics_of_batch_normalisation_stay_as_they_were() -> None:
    how = TowerOptions(**QUICK)
    before = {k: v.clone() for k, v in tower(how).backbone.state_dict().items() if "running" in k}
    after, _ = trained()
    assert before
    assert all(torch.equal(after[name], value) for name, value in before.items())
    adapted, _ = trained(batch_norm="adapted")
    assert any(not torch.equal(adapted[name], value) for name, value in before.items())


def test_spots_without_counts_and_label_are_not_drawn_and_every_other_is_once_an_epoch() -> None:
    data = spots()
    data.depth[:4], data.label[:4] = 0, -1
    with store_of(data) as store:
        rows = task_of(data, store).teaching
    assert set(rows) == set(range(4, 48))
    batches = SpotBatches(rows, 20, seed=3)
    first = list(batches)
    assert [len(batch) for batch in first] == [15, 15, 14]
    np.testing.assert_array_equal(np.sort(np.concatenate(first)), rows)
    batches.set_epoch(1)
    assert not np.array_equal(np.concatenate(list(batches)), np.concatenate(first))


def test_the_session_s_random_numbers_and_threads_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    trained(epochs=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_two_processes_train_as_one() -> None:
    with started("from tests.models.image_tower.distributed import main; main()") as process:
        out = process.communicate(timeout=PATIENCE)[0].decode()
    loss, difference, moved = (float(value) for value in out.split()[-3:])
    assert loss < 1e-8
    assert difference < 1e-6
    assert moved > 1e-3


@pytest.mark.slow
def test_a_killed_training_resumes_with_the_same_result(tmp_path: Path) -> None:
    with started(f"from tests.models.image_tower.resumed import main; main({str(tmp_path)!r})") as process:
        deadline = time.monotonic() + PATIENCE
        while not list(tmp_path.glob("epoch=1.ckpt")):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    resumed, rows = trained(folder=tmp_path, epochs=5)
    unbroken, _ = trained(epochs=5)
    torch.set_num_threads(threads)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert largest_difference(resumed, unbroken) < 1e-6


@contextmanager
def started(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of Python in a group of its own, ended with all its children."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

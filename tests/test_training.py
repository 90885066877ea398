from __future__ import annotations

import logging
import os
import random
import signal
import sys
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from stcontrast._training import (
    check_loss,
    fit_quietly,
    interruptible,
    one_thread,
    quiet_loggers,
    quiet_training,
    seeded,
)


def test_levels_are_restored_also_after_an_error():
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level

    message = "stop"

    def interrupted() -> None:
        with quiet_training():
            assert not logger.isEnabledFor(logging.INFO)
            raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=message):
        interrupted()
    assert logger.level == before


def test_a_level_above_warning_is_kept():
    logger = logging.getLogger("stcontrast.test.quiet")
    logger.setLevel(logging.CRITICAL)
    with quiet_loggers(logger.name):
        assert logger.level == logging.CRITICAL


def test_only_known_warnings_are_silenced():
    with quiet_training():
        warnings.warn("Last batch will have a small size of 1 samples. Consider", UserWarning, stacklevel=1)
        with pytest.warns(UserWarning, match="learning rate"):
            warnings.warn("the learning rate is odd", UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="Last batch"):
        warnings.warn("Last batch will have a small size of 1 samples. Consider", UserWarning, stacklevel=1)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002


def test_same_seed_same_numbers():
    with seeded(3):
        first = draw()
    with seeded(3):
        second = draw()
    with seeded(4):
        other = draw()
    assert first == second
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_session_goes_on_as_if_nothing_had_been_drawn():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    expected = draw()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    with seeded(1):
        draw()
    assert draw() == expected


def test_session_is_restored_when_the_block_raises():
    message = "stop"

    def interrupted() -> None:
        with seeded(1):
            draw()
            raise RuntimeError(message)

    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    with pytest.raises(RuntimeError, match=message):
        interrupted()
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_no_environment_variable_is_written():
    before = dict(os.environ)
    with seeded(7):
        pass
    assert dict(os.environ) == before


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(seed: int):
    with pytest.raises(ValueError, match="must lie between 0"), seeded(seed):
        pass


def test_threads_are_put_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="half-way"), one_thread():
            raise RuntimeError("half-way")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class Interrupting(pl.Callback):
    """Presses Ctrl-C in the second epoch."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            signal.raise_signal(signal.SIGINT)


class Slope(pl.LightningModule):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_ctrl_c_ends_the_training_and_not_the_session(capfd):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit_quietly(
            Slope(),
            DataLoader(torch.ones(4)),
            name="slope",
            max_epochs=5,
            callbacks=[Interrupting()],
            accelerator="cpu",
        )
    # the next Ctrl-C works too
    assert signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr() == ("", "")


def test_a_process_that_means_to_exit_exits():
    with pytest.raises(SystemExit), interruptible():
        sys.exit(3)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_is_said(loss):
    with pytest.raises(FloatingPointError, match=rf"of the net is {loss} in epoch 7: .*lower the learning rate"):
        check_loss(loss, of="net", at="epoch 7")
    check_loss(1e30, of="net", at="epoch 7")

from __future__ import annotations

import logging
import os
import random
import warnings

import numpy as np
import pytest
import torch

from stcontrast._training import one_thread, quiet_loggers, quiet_training, seeded


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

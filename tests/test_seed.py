from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from stcontrast._training import seeded


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

"""How everything that learns is run: seeded, on one thread, leaving the session as it was."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["one_thread", "seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch inside a ``with`` block, and put their states back after it.

    Unlike ``scvi.settings.seed`` and ``lightning.seed_everything``, nothing of the user's session changes: no global
    seed, no environment variable, and the next random number after the block is the one that would have come without
    it, also when the block raises.

    Parameters
    ----------
    seed
        Seed, 0 to 2³² − 1, of :mod:`random`, NumPy's global generator and torch on every device.

    Yields
    ------
    None

    Raises
    ------
    ValueError
        If ``seed`` is out of range.

    Examples
    --------
    >>> import torch
    >>> with seeded(0):
    ...     first = torch.rand(3)
    >>> with seeded(0):
    ...     second = torch.rand(3)
    >>> bool((first == second).all())
    True
    """
    if not 0 <= seed < 2**32:
        msg = f"seed is {seed}; it must lie between 0 and 2**32 - 1."
        raise ValueError(msg)
    python_state = random.getstate()
    # scvi-tools draws from NumPy's global generator.
    numpy_state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread inside a ``with`` block.

    Layers of a few hundred units are too small to share: threads wait for one another, and where another process
    wants the same cores a step takes ten times as long.

    Yields
    ------
    None
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""How long and how fast a method is trained where it was published, to stand beside what is done here."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Schedule"]


class Schedule(NamedTuple):
    """A published training; `None` where it is not known.

    Attributes
    ----------
    data
        What it was trained on.
    n_spots, n_slides
        Training spots and slides of it.
    batch_size, max_epochs, n_steps
        Spots in a step, passes, and steps in all.
    optimizer, learning_rate, weight_decay
        How a step is made.
    end
        What ends it.
    """

    data: str
    n_spots: int
    n_slides: int
    batch_size: int
    max_epochs: int | None
    n_steps: int | None
    optimizer: str
    learning_rate: float
    weight_decay: float | None
    end: str

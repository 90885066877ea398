"""Training without a trace in the user's session: no tips, no warnings they cannot act on."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["quiet_training"]

_LOGGERS = ("lightning.pytorch", "lightning.fabric")


@contextmanager
def quiet_training() -> Iterator[None]:
    """Silence Lightning's tips and the warnings that a user of the model can do nothing about, in a ``with`` block.

    Yields
    ------
    None
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

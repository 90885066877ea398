"""Training and loading without a trace in the user's session: no tips, no warnings that nobody can act on."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["quiet_loggers", "quiet_training"]

_TRAINING_LOGGERS = ("lightning.pytorch", "lightning.fabric")

# Message and category of what Lightning, torch and scvi-tools say about their own workings.
_NOT_FOR_USERS: tuple[tuple[str, type[Warning]], ...] = (
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),
    (r"The '\w+' does not have many workers which may be a bottleneck", UserWarning),
    (r"Last batch will have a small size of \d samples", UserWarning),
)


@contextmanager
def quiet_loggers(*names: str, level: int = logging.WARNING) -> Iterator[None]:
    """Let loggers pass on warnings and errors only, in a ``with`` block.

    Parameters
    ----------
    *names
        Names of the loggers.
    level
        Level below which they are silent; warnings are heard by default.

    Yields
    ------
    None
    """
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, level))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def quiet_training() -> Iterator[None]:
    """Silence Lightning's tips and the warnings that a user of the model can do nothing about, in a ``with`` block.

    Yields
    ------
    None
    """
    with warnings.catch_warnings(), quiet_loggers(*_TRAINING_LOGGERS):
        for message, category in _NOT_FOR_USERS:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _log_level_of_the_session() -> Iterator[None]:
    """The command line sets the level of the package's log, which other tests look at."""
    logger = logging.getLogger("stcontrast")
    before = logger.level
    yield
    logger.setLevel(before)

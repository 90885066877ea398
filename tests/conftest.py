from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

import stcontrast as stc

if TYPE_CHECKING:
    from collections.abc import Iterator

# examples are few and cheap; their first one pays for imports, so that a deadline would only measure the machine
settings.register_profile("stcontrast", deadline=None, max_examples=40)
settings.load_profile("stcontrast")


@pytest.fixture(autouse=True, scope="session")
def _no_progress_bar() -> Iterator[None]:
    with stc.settings.override(progress=False):
        yield

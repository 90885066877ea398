from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

import stcontrast as stc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# examples are few and cheap; their first one pays for imports, so that a deadline would only measure the machine
settings.register_profile("stcontrast", deadline=None, max_examples=40)
settings.load_profile("stcontrast")


@pytest.fixture(autouse=True, scope="session")
def _no_progress_bar() -> Iterator[None]:
    with stc.settings.override(progress=False):
        yield


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> Iterator[None]:
    # a shell lets the processes that it starts in the background ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Client of a dask cluster of two processes."""
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client

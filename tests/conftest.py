from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from lightning.pytorch.trainer.connectors import callback_connector

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


@pytest.fixture(autouse=True, scope="session")
def _no_search_for_callbacks() -> Iterator[None]:
    """Lightning looks through all installed packages for callbacks at every training: a tenth of the time of short ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callback_connector, "_load_external_callbacks", lambda group: [])
        yield


@pytest.fixture(autouse=True)
def _log_level_of_the_session() -> Iterator[None]:
    """The command line, and code of the guide, set the level of the package's log, which other tests look at."""
    logger = logging.getLogger("stcontrast")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Client of a dask cluster of two processes."""
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client

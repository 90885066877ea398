"""Work that is distributed to the workers of a dask cluster."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

__all__ = ["ATTEMPTS", "loaded", "n_workers", "on_cluster", "running_client", "sent", "spread"]

logger = logging.getLogger(__name__)

# how often data are sent to the workers if all workers with a copy die
ATTEMPTS: Final = 3
# tasks for every worker that are sent before the first of them is done
AHEAD: Final = 2
# seconds that a scheduler gets to see that a worker has died, or to start another one
PATIENCE: Final = 30


def running_client() -> Any:
    """The dask client that the user has started in this process, or `None`."""
    # looking for a client must not import distributed
    if "distributed" not in sys.modules:
        return None
    from distributed import default_client, get_worker

    try:
        get_worker()
    except ValueError:
        try:
            return default_client()
        except ValueError:
            return None
    # this process is a worker: its part is not split again
    return None


def on_cluster() -> AbstractContextManager[object]:
    """Inside it, joblib's tasks go to the dask client that the user has started; nothing changes where there is none.

    A backend that the user has chosen stays.
    """
    from joblib import parallel_config
    from joblib.parallel import get_active_backend

    backend, _ = get_active_backend()
    client = running_client()
    # joblib's own default
    if client is None or type(backend).__name__ != "LokyBackend":
        return nullcontext()
    context: AbstractContextManager[object] = parallel_config(backend="dask", client=client)
    return context


def n_workers(client: Any) -> int:
    """Number of workers of a client, one at least."""
    return max(1, len(client.scheduler_info(n_workers=-1)["workers"]))


def spread[Key, Part, Result](
    client: Any, function: Callable[[Any, Part], Result], common: Any, parts: Iterable[tuple[Key, Part]]
) -> Iterator[tuple[Key, Result]]:
    """Call a function on every part, on the workers of a cluster.

    A part is made, sent and fetched while others are at work; two for every worker are on their way at most, so that
    memory is bounded here and there. The part of a worker that dies is sent to another one.

    Parameters
    ----------
    client
        A :class:`distributed.Client`.
    function
        Function of `common` and a part, at the top level of a module.
    common
        What all calls need; sent once.
    parts
        Parts to call it on, each with a key.

    Yields
    ------
    The key of a part and its result, as they come.
    """
    from distributed import as_completed

    waiting, done = iter(parts), as_completed()
    at_work: dict[Any, tuple[Key, Part, int]] = {}
    shared = sent(client, common, broadcast=True)

    def send(key: Key, part: Part, attempt: int) -> None:
        future = client.submit(_call, function, shared, sent(client, part), pure=False, retries=1)
        at_work[future] = key, part, attempt
        done.add(future)

    def send_next() -> None:
        for key, part in waiting:
            send(key, part, 1)
            return

    try:
        for _ in range(AHEAD * n_workers(client)):
            send_next()
        for future in done:
            key, part, attempt = at_work.pop(future)
            if future.status not in {"cancelled", "lost"}:
                result = future.result()
                send_next()
                yield key, result
            elif attempt < ATTEMPTS:
                logger.warning("The cluster has lost a part with a worker: it is sent again.")
                shared = sent(client, common, broadcast=True)
                send(key, part, attempt + 1)
            else:
                msg = f"The cluster has lost a part {ATTEMPTS} times: do its workers have enough memory?"
                raise RuntimeError(msg)
    finally:
        client.cancel(list(at_work))


def sent(client: Any, value: object, *, broadcast: bool = False) -> Any:
    """Send an object to a worker, or to all of them, as bytes that :func:`loaded` reads.

    A worker that has died is addressed until the scheduler sees it, so a failed transfer is tried again.

    Raises
    ------
    RuntimeError
        If no transfer succeeds for 30 s.
    """
    from distributed.protocol.pickle import dumps

    # pickled, because dask would compute lazy arrays inside
    pickled = dumps(value)
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return client.scatter(pickled, broadcast=broadcast, hash=False)
        except OSError as error:  # a closed connection, or no worker yet
            if time.monotonic() > end:
                msg = (
                    f"Nothing could be sent to the workers of the cluster for {PATIENCE} s ({error}): are any of them "
                    "alive, and do they have enough memory?"
                )
                raise RuntimeError(msg) from error
            logger.warning("A worker of the cluster has not answered: its data are sent again.")
            time.sleep(0.5)


def _call[Part, Result](function: Callable[[Any, Part], Result], common: bytes, part: bytes) -> Result:
    from distributed.protocol.pickle import loads

    return function(loaded(common), loads(part))


@lru_cache(maxsize=8)
def loaded(pickled: bytes) -> Any:
    """An object from its bytes, once for all parts: an encoder or a model may take seconds to load."""
    from distributed.protocol.pickle import loads

    return loads(pickled)

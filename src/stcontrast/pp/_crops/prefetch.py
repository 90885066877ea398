"""An iterator run ahead on a thread of its own."""

from __future__ import annotations

import threading
from queue import Full, Queue
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

__all__ = ["prefetched"]

POLL_S: Final = 0.1


def prefetched[T](items: Iterable[T], *, depth: int = 2) -> Generator[T]:
    """Make items on a thread, at most `depth` of them ahead of who takes them.

    Parameters
    ----------
    items
        What is made.
    depth
        Items that may wait.

    Yields
    ------
    The items in their order. What is raised while one is made is raised here; the thread stops when the iterator is
    closed.
    """
    queue: Queue[tuple[str, T | BaseException | None]] = Queue(maxsize=depth)
    stopped = threading.Event()

    def put(kind: str, item: T | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                queue.put((kind, item), timeout=POLL_S)
            except Full:
                continue
            return

    def work() -> None:
        try:
            for item in items:
                put("item", item)
                if stopped.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - handed over to who takes the items
            put("error", error)
        else:
            put("end", None)

    thread = threading.Thread(target=work, name="stcontrast-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = queue.get()
            if kind == "end":
                return
            if kind == "error":
                raise item  # type: ignore[misc]
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
        close = getattr(items, "close", None)
        if close is not None:
            close()

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from stcontrast.pp._features import prefetched

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_items_come_in_their_order() -> None:
    assert list(prefetched(iter(range(100)), depth=3)) == list(range(100))


def test_they_are_made_ahead_and_no_further() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    ahead = prefetched(items(), depth=2)
    assert next(ahead) == 0
    time.sleep(0.3)
    # one taken, two waiting, one that waits to be put
    assert made == [0, 1, 2, 3]
    ahead.close()


def test_an_error_is_raised_where_the_items_are_taken() -> None:
    def items() -> Iterator[int]:
        yield 1
        msg = "no more"
        raise KeyError(msg)

    found: list[int] = []
    with pytest.raises(KeyError, match="no more"):
        found.extend(prefetched(items()))
    assert found == [] or found == [1]


def test_the_thread_ends_with_the_iterator() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    ahead = prefetched(items())
    next(ahead)
    ahead.close()
    assert closed.is_set()
    assert not any(thread.name == "stcontrast-prefetch" for thread in threading.enumerate())

"""The fits of a cross-validation, one after another or in several processes, and how long they will still take."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import threading
import time
import traceback
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import psutil
from joblib import Parallel, cpu_count, delayed, effective_n_jobs
from joblib.parallel import get_active_backend

from stcontrast.methods._base import METHODS
from stcontrast.tl.cross_validation._fits import fit_and_predict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from stcontrast._data import Spots
    from stcontrast.methods import Method
    from stcontrast.tl.cross_validation._fits import Fit, OutOfFold

__all__ = ["Pace", "count_processes", "run_fits"]

logger = logging.getLogger(__name__)

# a process takes seconds to start: a fit on fewer values takes less
SMALL: Final = 1_000_000
# what a process takes with the libraries alone
LIBRARY_BYTES: Final = 7 * 2**27
GPU_BYTES: Final = 2**31
CGROUP_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
# the seeds of random numbers belong to a process: where the backend has threads, they take turns
ONE_FIT: Final = threading.Lock()


def count_processes(n_jobs: int | None, fits: Sequence[Fit]) -> int:
    """The number of processes to fit in; 1 means this process.

    Parameters
    ----------
    n_jobs
        What the user asked for.
    fits
        Fits to do.

    Returns
    -------
    With `n_jobs`, that many. Otherwise 1 if the fits are small or this is a child process already, else as many as
    there are fits, cores and estimated shares of the free memory (of the GPU too, if there is one); on a dask cluster as
    many as there are fits and threads of workers.
    """
    if n_jobs is not None:
        # one fit alone gets a process too: whoever asks for processes wants to survive a process that dies
        return min(n_jobs, max(len(fits), 2))
    n_values = max((fit.n_values for fit in fits), default=0)
    if n_values < SMALL or multiprocessing.parent_process() is not None:
        return 1
    if type(get_active_backend()[0]).__name__ == "DaskDistributedBackend":
        return max(1, min(len(fits), effective_n_jobs(-1)))
    # the largest fits may run at the same time
    needed = np.cumsum(sorted((LIBRARY_BYTES + fit.bytes_held for fit in fits), reverse=True))
    n_places = int((needed <= available_memory()).sum())
    return max(1, min(n_places, cpu_count(), _places_on_gpu()))


def available_memory() -> int:
    """Bytes of memory that this process and its children may still take."""
    available = int(psutil.virtual_memory().available)
    for path in CGROUP_LIMITS:
        limit = path.read_text().strip() if path.is_file() else "max"
        if limit.isdigit():
            available = min(available, int(limit) - int(psutil.Process().memory_info().rss))
    return max(available, 0)


def run_fits(
    fits: Sequence[Fit], n_processes: int, *, on_start: Callable[[Fit], None] = lambda _: None
) -> Iterator[tuple[Fit, OutOfFold | Exception]]:
    """Do all fits, in any order.

    Parameters
    ----------
    fits
        The fits.
    n_processes
        How many at once; with 1 they are done in this process. The backend is that of ``joblib.parallel_config``.
    on_start
        Called with every fit that begins, in this process.

    Yields
    ------
    A fit, and its predictions or its error. A process that dies costs its own fit only.
    """
    if n_processes == 1:
        for fit in fits:
            on_start(fit)
            yield fit, _attempt(fit)
        return
    waiting = dict(enumerate(fits))
    while waiting and n_processes > 1:
        started: list[int] = []
        try:
            for number, outcome in _in_processes(waiting, n_processes, started, on_start):
                yield waiting.pop(number), outcome
        # each backend has its own error for a worker that died; one of the fits that had started is the reason
        except Exception as error:  # noqa: BLE001
            suspects = [number for number in started if number in waiting]
            # the most frequent reason is too little memory
            n_processes //= 2
            logger.warning(
                "A process ended before its fit (%s): %d fits are repeated one at a time, the others in %d processes.",
                type(error).__name__, len(suspects), n_processes,
            )  # fmt: skip
            for number in suspects:
                fit = waiting.pop(number)
                on_start(fit)
                yield fit, _alone(fit)
    for fit in waiting.values():
        on_start(fit)
        yield fit, _alone(fit)


def _in_processes(
    waiting: dict[int, Fit], n_processes: int, started: list[int], on_start: Callable[[Fit], None] = lambda _: None
) -> Iterator[tuple[int, OutOfFold | Exception]]:
    def tasks() -> Iterator[Any]:
        for number, fit in list(waiting.items()):
            started.append(number)
            on_start(fit)
            # spots and features apart from the rest: what many fits share is sent once
            yield delayed(_in_worker)(number, fit.alone(), fit.spots, fit.features, dict(METHODS))

    # one batch a fit, and none handed over before a process is free: what a dying process takes with it is known
    parallel = Parallel(
        n_jobs=n_processes, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs", mmap_mode="c"
    )
    yield from parallel(tasks())


def _alone(fit: Fit) -> OutOfFold | Exception:
    """Fit in a process while no other does."""
    try:
        # (joblib takes 1 as "in this process")
        [(_, outcome)] = list(_in_processes({0: fit}, 2, []))
    except BrokenExecutor as error:
        msg = (
            "The process that fitted it ended unexpectedly, twice: it was killed, possibly for lack of memory, or it "
            "crashed."
        )
        died = RuntimeError(msg)
        died.__cause__ = error
        return died
    # the fit could not be sent or its result not come back, or the backend has its own error for a dead worker
    except Exception as error:  # noqa: BLE001
        return error
    return outcome


def _attempt(fit: Fit) -> OutOfFold | Exception:
    try:
        with ONE_FIT:
            return fit_and_predict(fit)
    # whatever it is: the other fits took hours and are kept
    except Exception as error:  # noqa: BLE001
        return error


def _in_worker(
    number: int, fit: Fit, spots: Spots, features: NDArray[np.float32], registered: dict[str, type[Method]]
) -> tuple[int, OutOfFold | Exception]:
    # a worker knows a user's own class only once it has been sent
    METHODS.update(registered)
    outcome = _attempt(replace(fit, spots=spots, features=features))
    return number, _sendable(outcome) if isinstance(outcome, Exception) else outcome


def _sendable(error: Exception) -> Exception:
    """The error with its traceback as a note: a traceback cannot be sent between processes."""
    note = "".join(traceback.format_exception(error))
    try:
        sent = pickle.loads(pickle.dumps(error))
    # an exception with arguments of its own may fail in any way
    except Exception:  # noqa: BLE001
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(note)
    return sent


def _places_on_gpu() -> int:
    import torch

    if not torch.cuda.is_available():
        return cpu_count()
    free, _ = torch.cuda.mem_get_info()
    return int(free // GPU_BYTES)


class Pace:
    """The time that fits took, by method, and what it says of those that are left.

    Methods differ a thousandfold: the share of fits that are done says nothing about the time that is left.

    Parameters
    ----------
    fits
        The fits to do.
    n_processes
        How many are done at once.
    """

    def __init__(self, fits: Sequence[Fit], n_processes: int) -> None:
        self._left = list(fits)
        self._n_processes = n_processes
        self._begun: dict[Fit, float] = {}
        self._took: dict[str, list[float]] = {}

    def begin(self, fit: Fit) -> None:
        """Note that a fit begins, also if it does so again."""
        # an iterable that is drawn from runs in a thread of joblib: a dict and a list take one step at a time
        self._begun[fit] = time.monotonic()

    def end(self, fit: Fit) -> float:
        """Note that a fit has ended; the seconds that it took."""
        seconds = time.monotonic() - self._begun.pop(fit)
        self._left.remove(fit)
        self._took.setdefault(fit.name, []).append(seconds)
        return seconds

    def running(self) -> str:
        """What is being fitted, in words."""
        names = [f"{fit.name} without {', '.join(fit.donors)}" for fit in list(self._begun)]
        return "; ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")

    def remaining(self) -> float | None:
        """Seconds that are left; `None` as long as a method that is still to be fitted never was."""
        if any(fit.name not in self._took for fit in self._left):
            return None
        now, begun = time.monotonic(), dict(self._begun)
        of_fit = [
            max(float(np.median(self._took[fit.name])) - (now - begun.get(fit, now)), 0.0) for fit in list(self._left)
        ]
        # the longest one is not shared by processes
        return max(sum(of_fit) / self._n_processes, max(of_fit, default=0.0))

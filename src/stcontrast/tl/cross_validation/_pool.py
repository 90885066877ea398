"""Fits of a cross-validation one after another, or in several processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import sys
import threading
import time
import traceback
from concurrent.futures import BrokenExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky import process_executor

from stcontrast.methods._base import METHODS
from stcontrast.tl.cross_validation._jobs import fit_and_predict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stcontrast.methods import Method
    from stcontrast.tl.cross_validation._jobs import Fitted, Job, Material

__all__ = ["check_n_jobs", "count_processes", "run_jobs"]

logger = logging.getLogger(__name__)

# a process takes seconds to start: a fit on fewer values (spots × (features + genes)) is over before that
SMALL: Final = 1_000_000
# what the libraries take, and how many times the bytes of features and expression a fit holds at once
LIBRARY_BYTES: Final = 3 * 2**29
COPIES: Final = 6
GPU_BYTES: Final = 2**31
IDLE_SECONDS: Final = 60
WATCHED_EVERY_S: Final = 5
CGROUP_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def check_n_jobs(n_jobs: int | None) -> None:
    """Raise where it is no number of processes."""
    if n_jobs is not None and n_jobs < 1:
        msg = f"`n_jobs` must be at least 1, or `None` for as many processes as cores and memory allow; found {n_jobs}."
        raise ValueError(msg)


def count_processes(n_jobs: int | None, *, n_fits: int, material: Material, n_genes: int) -> int:
    """How many processes to fit in; 1 is this one.

    Parameters
    ----------
    n_jobs
        What the user said.
    n_fits
        Fits to do.
    material
        What they work on.
    n_genes
        Genes that are modelled.

    Returns
    -------
    With `n_jobs`, that many. Else 1 if a fit is small or this is a child process already, otherwise as many as there
    are fits, cores and estimated shares of the free memory (of the GPU too, if there is one).
    """
    if n_jobs is not None:
        # one fit alone gets a process too: whoever asks for processes wants to outlive their death
        return min(n_jobs, max(n_fits, 2))
    n_spots, n_features = material.features.shape
    n_values = n_spots * (n_features + n_genes)
    if n_values < SMALL or multiprocessing.parent_process() is not None:
        return 1
    of_one = LIBRARY_BYTES + COPIES * 4 * n_values
    return max(1, min(n_fits, cpu_count(), available_memory() // of_one, _places_on_gpu()))


def available_memory() -> int:
    """Bytes of memory that this process and its children may still take."""
    available = int(psutil.virtual_memory().available)
    for path in CGROUP_LIMITS:
        limit = path.read_text().strip() if path.is_file() else "max"
        if limit.isdigit():
            available = min(available, int(limit) - int(psutil.Process().memory_info().rss))
    return max(available, 0)


def run_jobs(jobs: Mapping[int, Job], material: Material, n_processes: int) -> Iterator[tuple[int, Fitted | Exception]]:
    """Do all fits, in any order.

    Parameters
    ----------
    jobs
        Fits by number.
    material
        What they work on.
    n_processes
        How many at once; with 1 they are done here.

    Yields
    ------
    Number of a fit, and its predictions or what went wrong; a process that dies is the failure of its fit alone.
    """
    if n_processes == 1:
        for number, job in jobs.items():
            yield number, _attempt(job, material)
        return
    waiting = dict(jobs)
    while waiting and n_processes > 1:
        started: list[int] = []
        try:
            for number, outcome in _pool(n_processes)(_tasks(waiting, material, started)):
                del waiting[number]
                yield number, outcome
        # whatever it is: it is looked for among those that were under way
        except Exception as error:  # noqa: BLE001
            suspects = [number for number in started if number in waiting]
            # too little memory is the most frequent reason
            n_processes //= 2
            logger.warning(
                "A process ended before its fit (%s): %d fits are repeated one at a time, the others in %d.",
                type(error).__name__, len(suspects), n_processes,
            )  # fmt: skip
            for number in suspects:
                yield number, _alone(waiting.pop(number), material)
    for number, job in waiting.items():
        yield number, _alone(job, material)


def _pool(n_processes: int) -> Parallel:
    return Parallel(
        n_jobs=n_processes, backend="loky", return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs",
        mmap_mode="c", inner_max_num_threads=1, idle_worker_timeout=IDLE_SECONDS,
    )  # fmt: skip


def _tasks(jobs: Mapping[int, Job], material: Material, started: list[int]) -> Iterator[Any]:
    for number, job in list(jobs.items()):
        started.append(number)
        yield delayed(_in_worker)(number, job, material, dict(METHODS), os.getpid())


def _alone(job: Job, material: Material) -> Fitted | Exception:
    """Fit in a process while no other does."""
    try:
        # (joblib takes 1 as "in this process")
        [(_, outcome)] = list(_pool(2)(_tasks({0: job}, material, [])))
    except BrokenExecutor as error:
        msg = (
            "The process that fitted it ended unexpectedly, twice: it was killed, perhaps for want of memory, or it "
            "crashed."
        )
        died = RuntimeError(msg)
        died.__cause__ = error
        return died
    # it could not be sent, or its result not come back
    except Exception as error:  # noqa: BLE001
        return error
    return outcome


def _attempt(job: Job, material: Material) -> Fitted | Exception:
    try:
        return fit_and_predict(job, material)
    # whatever it is: the hours that the other fits took are kept
    except Exception as error:  # noqa: BLE001
        return error


def _in_worker(
    number: int, job: Job, material: Material, registered: dict[str, type[Method]], parent: int
) -> tuple[int, Fitted | Exception]:
    _end_with(parent)
    # what the first network imports would be taken for a leak, and the process be ended and started anew
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    # a class of the user's own is known here only once it has come, and perhaps has taken another's name on its way
    METHODS.clear()
    METHODS.update(registered)
    outcome = _attempt(job, material)
    return number, _sendable(outcome) if isinstance(outcome, Exception) else outcome


@cache
def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a parent that is killed cannot end its workers."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCHED_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _sendable(error: Exception) -> Exception:
    """The error, with the traceback as a note, since that does not travel."""
    told = "".join(traceback.format_exception(error))
    try:
        sent = pickle.loads(pickle.dumps(error))
    # an exception with arguments of its own may come apart in any way
    except Exception:  # noqa: BLE001
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(told)
    return sent


def _places_on_gpu() -> int:
    import torch

    if not torch.cuda.is_available():
        return cpu_count()
    free, _ = torch.cuda.mem_get_info()
    return int(free // GPU_BYTES)

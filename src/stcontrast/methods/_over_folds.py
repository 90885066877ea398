"""The fits of the inner folds, one after another or in several processes."""

from __future__ import annotations

import logging
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING

from stcontrast._data import Fold
from stcontrast._progress import parts_of, stage
from stcontrast._settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from stcontrast._data import Spots

__all__ = ["over_folds"]

logger = logging.getLogger(__name__)


def over_folds[T](work: Callable[[Fold], T], folds: Sequence[Fold]) -> list[T]:
    """What `work` makes of every fold, in their order.

    Inside ``joblib.parallel_config(n_jobs=...)`` so many processes share the folds, or the workers of its backend. A
    backend of threads is not used: random seeds belong to a process. If a process dies, its fold and those that are left
    are done in this process.

    Parameters
    ----------
    work
        Something that can be sent to another process, as can what it returns.
    folds
        The folds.
    """
    from joblib import effective_n_jobs
    from joblib.parallel import get_active_backend

    backend, n_jobs = get_active_backend()
    found: list[T] = []
    if len(folds) > 1 and not getattr(backend, "supports_sharedmem", False) and effective_n_jobs(n_jobs) > 1:
        try:
            _in_processes(work, folds, found)
        except Exception as error:
            # dask has an error of its own for a worker that died
            if not isinstance(error, BrokenExecutor) and type(error).__name__ != "KilledWorker":
                raise
            logger.warning(
                "A process ended before its fold (%s): %d of %d folds are fitted here, one after another. The most "
                "frequent reason is too little memory.", type(error).__name__, len(folds) - len(found), len(folds),
            )  # fmt: skip
    found.extend(work(fold) for fold in parts_of(folds, "fold", done=len(found)))
    return found


def _in_processes[T](work: Callable[[Fold], T], folds: Sequence[Fold], found: list[T]) -> None:
    """Add what `work` makes of the folds to `found`, in order."""
    from joblib import Parallel, delayed

    # the spots apart from the rest: what folds share is sent to a cluster once
    tasks = (delayed(_in_worker)(work, fold.spots, fold.train, fold.held_out, fold.unit) for fold in folds)
    # copy on write: what a fit overwrites is its own
    parallel = Parallel(return_as="generator", batch_size=1, mmap_mode="c")
    with stage("inner folds", total=len(folds), unit="fold") as here:
        for result in parallel(tasks):
            found.append(result)
            here.update()


def _in_worker[T](
    work: Callable[[Fold], T],
    spots: Spots,
    train: NDArray[np.intp],
    held_out: NDArray[np.intp],
    unit: str,
) -> T:
    with settings.override(progress=False):
        return work(Fold(spots=spots, train=train, held_out=held_out, unit=unit))

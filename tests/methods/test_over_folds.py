"""Inner folds one after another or in several processes: the same results in the same order."""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from typing import TYPE_CHECKING

import joblib
import numpy as np
import pytest

from stcontrast._data import inner_folds
from stcontrast.methods._over_folds import over_folds
from tests.methods.synthetic import training_data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stcontrast.methods import Fold

# (loky says so too where a process takes long to start)
pytestmark = pytest.mark.filterwarnings("ignore:A worker stopped while some jobs were given to the executor")


@pytest.fixture(scope="module")
def folds() -> Sequence[Fold]:
    return inner_folds(training_data(donors=3, n_spots=20))


def held_out_in(fold: Fold) -> tuple[int, list[int], float]:
    return os.getpid(), fold.held_out.tolist(), float(fold.training.design.sum())


def told(found: Sequence[tuple[int, list[int], float]]) -> list[tuple[list[int], float]]:
    return [(rows, total) for _, rows, total in found]


def test_by_default_in_this_process(folds):
    found = over_folds(held_out_in, folds)
    assert {pid for pid, *_ in found} == {os.getpid()}
    assert [rows for _, rows, _ in found] == [fold.held_out.tolist() for fold in folds]


def test_not_in_threads(folds):
    # the random seeds of a process are one for all its threads
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert {pid for pid, *_ in over_folds(held_out_in, folds)} == {os.getpid()}


def test_one_fold_needs_no_other_process(folds):
    with joblib.parallel_config(n_jobs=2):
        assert [pid for pid, *_ in over_folds(held_out_in, folds[:1])] == [os.getpid()]
        assert over_folds(held_out_in, []) == []


@pytest.mark.slow
def test_in_other_processes_the_same(folds):
    with joblib.parallel_config(n_jobs=2):
        found = over_folds(held_out_in, folds)
    assert os.getpid() not in {pid for pid, *_ in found}
    assert told(found) == told(over_folds(held_out_in, folds))


def overwritten(fold: Fold) -> float:
    design = fold.spots.design
    design += 1
    return float(design.sum())


@pytest.mark.slow
def test_what_a_process_overwrites_is_its_own(folds):
    before = folds[0].spots.design.copy()
    with joblib.parallel_config(n_jobs=2, max_nbytes=1):
        assert len(set(over_folds(overwritten, folds[:2]))) == 1
    np.testing.assert_array_equal(folds[0].spots.design, before)


def killed(caller: int, victim: int, fold: Fold) -> tuple[int, list[int], float]:
    if os.getpid() != caller and fold.held_out[0] == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    return held_out_in(fold)


@pytest.mark.slow
def test_a_process_that_dies_costs_nothing(folds, caplog):
    work = partial(killed, os.getpid(), int(folds[1].held_out[0]))
    with joblib.parallel_config(n_jobs=2), caplog.at_level(logging.WARNING, logger="stcontrast"):
        found = over_folds(work, folds)
    assert told(found) == told(over_folds(held_out_in, folds))
    assert "A process ended before its fold" in caplog.text


def failing(victim: int, fold: Fold) -> None:
    if fold.held_out[0] == victim:
        msg = f"no spots at {victim}"
        raise ValueError(msg)


@pytest.mark.slow
def test_an_error_is_that_of_the_fold(folds):
    victim = int(folds[1].held_out[0])
    with joblib.parallel_config(n_jobs=2), pytest.raises(ValueError, match=f"no spots at {victim}"):
        over_folds(partial(failing, victim), folds)

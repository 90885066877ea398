from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pandas as pd
import pytest

import stcontrast as stc
from stcontrast.methods._base import METHODS
from stcontrast.methods.baselines import Mean, Ridge
from stcontrast.tl.cross_validation import _parallel
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, kept_fits, parts_of

# loky's warning when it restarts a process
pytestmark = pytest.mark.filterwarnings("ignore:A worker stopped while some jobs were given to the executor")

QUICK = {"n_genes": 12, "n_score_genes": 6}
COMPARED = {
    "ridge": {}, "color": {}, "network": {"method": "mlp", "max_epochs": 2}, "tenth": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def registered():
    """A class that only this session knows: a worker can import it from nowhere."""
    before = dict(METHODS)

    class Tenth(Ridge):
        name = "tenth"

        def predict_expression(self, view):
            return super().predict_expression(view) / 10

    class Deadly(Mean):
        name = "deadly"

        def __init__(self, *, spared: int = 0, seed: int = 0):
            super().__init__(seed=seed)
            self.spared = spared

        def fit(self, data, folds):
            # the first slide is learnt from where donor 2 is held out
            if data.slide[0] == 0 and os.getpid() != self.spared:
                os._exit(3)
            return super().fit(data, folds)

    class Growing(Mean):
        name = "growing"

        def __init__(self, *, log: str = "", seed: int = 0):
            super().__init__(seed=seed)
            self.log = log

        def fit(self, data, folds):
            # 350 MB that stay: loky restarts a process that grows by 300 MB, but looks once a second
            sys.__dict__.setdefault("kept", []).append(bytearray(b"x" * 350_000_000))
            time.sleep(1.2)
            with Path(self.log).open("a") as file:
                file.write(f"{os.getpid()}\n")
            return super().fit(data, folds)

    class Unlucky(Mean):
        name = "unlucky"

        def fit(self, data, folds):
            msg = "no luck"
            raise LookupError(msg)

    yield
    METHODS.clear()
    METHODS.update(before)


def cross_validated(sdata, **kwargs):
    return stc.tl.cross_validate(sdata, donor_key="donor", label_key=LABELS, **{**QUICK, **kwargs})


@pytest.mark.slow
def test_processes_give_the_same_numbers_also_for_a_user_s_methods(toy, registered):
    one, two = (cross_validated(copied(toy), methods=COMPARED, n_jobs=n_jobs) for n_jobs in (1, 2))
    assert len(two.failures) == 0
    pd.testing.assert_frame_equal(two.scores, one.scores, check_exact=True)
    pd.testing.assert_frame_equal(two.summary(), one.summary(), check_exact=True)
    pd.testing.assert_frame_equal(two.classes, one.classes, check_exact=True)
    for name in COMPARED:
        np.testing.assert_array_equal(two.predictions.layers[name], one.predictions.layers[name])
    np.testing.assert_array_equal(two.predictions.layers["tenth"], two.predictions.layers["ridge"] / np.float32(10))
    assert set(METHODS) > {"ridge", "tenth"}
    assert METHODS["ridge"] is Ridge


@pytest.mark.slow
def test_a_process_that_dies_is_the_failure_of_its_fit_alone(toy, registered, caplog, tmp_path):
    sdata = parts_of(copied(toy), "donor1", "donor2")
    compared = {"deadly": {"spared": os.getpid()}, "mean": {}, "unlucky": {}}
    cv = cross_validated(sdata, methods=compared, n_jobs=2, directory=tmp_path)
    failures = cv.failures.sort_values(["method", "donors"])
    assert failures["method"].tolist() == ["deadly", "unlucky", "unlucky"]
    assert failures["donors"].tolist() == ["donor2", "donor1", "donor2"]
    died, *raised = failures["error"]
    assert "ended unexpectedly, twice: it was killed, possibly for lack of memory" in died
    assert raised == ["LookupError: no luck"] * 2
    # the traceback came along
    assert "in fit\n" in caplog.text
    assert set(cv.scores.query("method == 'deadly'")["donor"]) == {"donor1"}
    assert set(cv.scores.query("method == 'mean'")["donor"]) == {"donor1", "donor2"}
    # neither what failed is kept, nor what a class inside a function predicts
    assert {method for method, _, _ in kept_fits(tmp_path)} == {"mean"}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_a_process_that_is_restarted_for_its_memory_loses_no_fit(toy, registered, tmp_path):
    sdata = parts_of(copied(toy), "donor1", "donor2")
    compared = {"mean": {}} | {str(i): {"method": "growing", "log": str(tmp_path / "pids")} for i in range(3)}
    cv = cross_validated(sdata, methods=compared, n_jobs=2)
    assert cv.failures.empty
    expected = cv.scores.query("method == 'mean'")["value"]
    for name in ("0", "1", "2"):
        np.testing.assert_array_equal(cv.scores[cv.scores["method"] == name]["value"], expected)
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 6
    assert len(set(pids)) > 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["threading", "dask"])
def test_the_user_s_backend_is_used_and_gives_the_same_numbers(toy, registered, monkeypatch, backend):
    sdata = parts_of(copied(toy), "donor1", "donor2")
    one = cross_validated(copied(sdata), methods=COMPARED, n_jobs=1)
    threads = []
    fit_and_predict = _parallel.fit_and_predict

    def noted(fit):
        threads.append(threading.current_thread())
        return fit_and_predict(fit)

    monkeypatch.setattr(_parallel, "fit_and_predict", noted)
    with ExitStack() as stack:
        if backend == "dask":
            distributed = pytest.importorskip("distributed")
            options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
            cluster = stack.enter_context(distributed.LocalCluster(**options))
            stack.enter_context(distributed.Client(cluster))
        stack.enter_context(joblib.parallel_config(backend=backend))
        other = cross_validated(copied(sdata), methods=COMPARED, n_jobs=2)
    assert other.failures.empty
    pd.testing.assert_frame_equal(other.scores, one.scores, check_exact=True)
    # both backends have threads of this process here
    assert len(threads) == 2 * len(COMPARED)
    assert threading.main_thread() not in threads


@pytest.mark.parametrize(
    ("n_jobs", "n_fits", "n_spots", "available", "expected"),
    [
        (1, 12, 10_000, 2**40, 1),
        (5, 12, 10, 0, 5),
        (5, 3, 10_000, 2**40, 3),
        (None, 12, 10_000, 2**40, 8),
        (None, 3, 10_000, 2**40, 3),
        (None, 12, 100, 2**40, 1),
        # 0.875 GiB + 24 bytes × 10 000 × (200 + 800) = 1.1 GiB each
        (None, 12, 10_000, 3 * 2**30, 2),
        (None, 12, 10_000, 4 * 2**30, 3),
        (None, 12, 10_000, 2**20, 1),
    ],
)
def test_as_many_processes_as_fits_cores_and_memory(monkeypatch, n_jobs, n_fits, n_spots, available, expected):
    monkeypatch.setattr(_parallel, "cpu_count", lambda: 8)
    monkeypatch.setattr(_parallel, "available_memory", lambda: available)
    monkeypatch.setattr(_parallel, "_places_on_gpu", lambda: 8)
    n_values = n_spots * (200 + 800)
    fits = [SimpleNamespace(n_values=n_values, bytes_held=24 * n_values)] * n_fits
    assert _parallel.count_processes(n_jobs, fits) == expected


def test_the_largest_fits_decide_on_the_number_of_processes(monkeypatch):
    monkeypatch.setattr(_parallel, "cpu_count", lambda: 8)
    monkeypatch.setattr(_parallel, "available_memory", lambda: 8 * 2**30)
    monkeypatch.setattr(_parallel, "_places_on_gpu", lambda: 8)
    # 0.875 GiB of libraries each
    small, large = (SimpleNamespace(n_values=10**7, bytes_held=gib * 2**30) for gib in (1, 5))
    assert _parallel.count_processes(None, [small] * 8) == 4
    assert _parallel.count_processes(None, [small] * 8 + [large]) == 2
    assert _parallel.count_processes(None, [large, large, *[small] * 8]) == 1


def test_the_memory_of_a_container_counts(monkeypatch, tmp_path):
    free = _parallel.available_memory()
    assert free > 0
    for text, expected in (("max\n", free), (str(2**60), free), ("1000", 0)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(_parallel, "CGROUP_LIMITS", (tmp_path / "memory.max", tmp_path / "absent"))
        assert _parallel.available_memory() == pytest.approx(expected, rel=0.2)


def test_an_error_that_cannot_be_sent_is_replaced():
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    for error, expected in ((ValueError("bad"), ValueError), (Odd(1, 2), RuntimeError)):
        sent = _parallel._sendable(error)
        assert type(sent) is expected
        assert str(error) in str(sent)
        assert str(error) in sent.__notes__[0]


@pytest.mark.parametrize("n_jobs", [0, -1])
def test_a_wrong_number_of_processes_is_refused(raw, n_jobs):
    with pytest.raises(ValueError, match=f"`n_jobs` must be a whole number of at least 1, found {n_jobs}"):
        stc.tl.cross_validate(raw, donor_key="donor", n_jobs=n_jobs)
    assert "X_image" not in raw["table"].obsm


def test_a_fit_is_a_fit_on_one_thread(toy, monkeypatch):
    import torch
    from threadpoolctl import threadpool_info

    from stcontrast.tl.cross_validation import _fits

    seen = []
    original = _fits.fit_model

    def fit_model(*args, **kwargs):
        seen.append({*(pool["num_threads"] for pool in threadpool_info()), torch.get_num_threads()})
        return original(*args, **kwargs)

    monkeypatch.setattr(_fits, "fit_model", fit_model)
    cross_validated(copied(toy), methods=["mean"])
    assert seen == [{1}] * 3

"""Fits of a cross-validation on the workers of a dask cluster: the same numbers, data sent once, nothing lost."""

from __future__ import annotations

import os
import signal
import threading
import time

import joblib
import numpy as np
import pandas as pd
import pytest

import stcontrast as stc
from stcontrast._cluster import on_cluster
from stcontrast.methods import Spots
from stcontrast.methods._base import METHODS
from stcontrast.methods.baselines import Mean
from stcontrast.tl.cross_validation import _parallel
from tests.cluster import WARNINGS_OF_WORKERS
from tests.tl.conftest import copied
from tests.tl.toy import LABELS

distributed = pytest.importorskip("distributed", reason="distributed is not installed")

pytestmark = [pytest.mark.slow, *WARNINGS_OF_WORKERS]
QUICK = {"donor_key": "donor", "label_key": LABELS, "n_genes": 12, "n_score_genes": 6}
COMPARED = {"ridge": {}, "color": {}, "stcontrast": {"max_epochs": 2}, "mean": {}}


@pytest.fixture(scope="module")
def alone(toy):
    return stc.tl.cross_validate(copied(toy), methods=COMPARED, n_jobs=1, **QUICK)


def same(found, expected):
    assert found.failures.empty
    pd.testing.assert_frame_equal(found.scores, expected.scores, check_exact=True)
    pd.testing.assert_frame_equal(found.classes, expected.classes, check_exact=True)
    for name in expected.predictions.layers:
        np.testing.assert_array_equal(found.predictions.layers[name], expected.predictions.layers[name])


@pytest.mark.parametrize("named", [False, True], ids=["a client that runs", "joblib's backend"])
def test_the_numbers_are_those_of_one_process_and_the_spots_are_sent_once(toy, alone, client, monkeypatch, named):
    sent, fitted_here = [], []
    scatter = client.scatter

    def noted(data, **kwargs):
        sent.append(data)
        return scatter(data, **kwargs)

    monkeypatch.setattr(client, "scatter", noted)
    monkeypatch.setattr(_parallel, "fit_and_predict", fitted_here.append)
    with joblib.parallel_config(**({"backend": "dask"} if named else {})):
        found = stc.tl.cross_validate(copied(toy), methods=COMPARED, n_jobs=2, **QUICK)
    same(found, alone)
    assert fitted_here == []
    assert sum(isinstance(data, Spots) for data in sent) == 1


def test_by_default_there_are_as_many_fits_as_threads_of_workers(client, monkeypatch):
    monkeypatch.setattr(_parallel, "SMALL", 0)
    fits = [type("Large", (), {"n_values": 1})()] * 12
    with on_cluster():
        assert _parallel.count_processes(None, fits) == 2
        assert _parallel.count_processes(None, fits[:1]) == 1
    with joblib.parallel_config(backend="threading"), on_cluster():
        assert type(_parallel.get_active_backend()[0]).__name__ == "ThreadingBackend"


@pytest.fixture
def noting():
    """The mean, which notes in a folder where it works; a class of its own in every test."""
    before = dict(METHODS)

    class Noting(Mean):
        name = ""

        def __init__(self, *, folder: str = "", seed: int = 0):
            super().__init__(seed=seed)
            self.folder = folder

        def note(self):
            with open(f"{self.folder}/{os.getpid()}", "a") as file:  # noqa: PTH123
                file.write("x")

    yield Noting
    METHODS.clear()
    METHODS.update(before)


def test_a_killed_worker_costs_its_task_alone(toy, client, tmp_path, noting):
    class Noted(noting):
        name = "noted"

        def fit(self, data, folds):
            self.note()
            time.sleep(0.5)
            return super().fit(data, folds)

    methods = {"mean": {}} | {f"noted{i}": {"method": "noted", "folder": str(tmp_path)} for i in range(3)}
    before_kill = set(client.run(os.getpid).values())

    def kill() -> None:
        while not any(tmp_path.iterdir()):
            time.sleep(0.02)
        pid = int(next(tmp_path.iterdir()).name)
        assert pid in before_kill
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        cv = stc.tl.cross_validate(copied(toy), methods=methods, n_jobs=2, **QUICK)
    finally:
        thread.join()
    assert cv.failures.empty
    expected = cv.scores.query("method == 'mean'")["value"]
    for i in range(3):
        np.testing.assert_array_equal(cv.scores[cv.scores["method"] == f"noted{i}"]["value"], expected)
    # nine fits; what was done again is what the dead worker held
    done = sum(len(file.read_text()) for file in tmp_path.iterdir())
    assert 9 < done <= 9 + 4


def test_inner_folds_of_a_fit_go_to_the_workers(toy, client, tmp_path, noting):
    class Placed(noting):
        name = "placed"

        def fit_parts(self, spots):
            self.note()
            super().fit_parts(spots)

    def half_width(**given):
        model = stc.tl.fit(
            copied(toy), donor_key="donor", n_genes=12, method="placed", options={"folder": str(tmp_path)}, **given
        )
        return model.calibration.half_width

    there = half_width()
    workers = set(client.run(os.getpid).values())
    fitted = {int(file.name): len(file.read_text()) for file in tmp_path.iterdir()}
    # the last fit is here
    assert fitted.pop(os.getpid()) == 1
    assert set(fitted) <= workers
    assert sum(fitted.values()) == toy["table"].obs["donor"].nunique()
    with joblib.parallel_config(backend="sequential"):
        np.testing.assert_allclose(half_width(), there, atol=1e-5)

"""Predictions into a store by the workers of a dask cluster: the same numbers, bounded memory, nothing lost."""

from __future__ import annotations

import os
import signal
import threading
import time

import anndata as ad
import numpy as np
import pytest

import stcontrast as stc
from stcontrast import _cluster
from stcontrast.tl import _predict_to_store
from tests.cluster import WARNINGS_OF_WORKERS
from tests.tl.conftest import copied
from tests.tl.toy import parts_of

distributed = pytest.importorskip("distributed", reason="distributed is not installed")

pytestmark = [pytest.mark.slow, *WARNINGS_OF_WORKERS]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(_predict_to_store, "CHUNK", 16)


@pytest.fixture(scope="module")
def models(toy, model):
    training = parts_of(copied(toy), "donor1", "donor2")
    fitted = {name: stc.tl.fit(copied(training), batch_key="donor", method=name) for name in ("ridge", "field")}
    return {**fitted, "stcontrast": model}


def predicted(sdata, model, path, monkeypatch, client):
    with monkeypatch.context() as patch:
        patch.setattr(_predict_to_store, "running_client", lambda: client)
        sdata = copied(sdata)
        stc.tl.predict_expression(sdata, model, store=path)
    return ad.read_zarr(path)


def same(found, expected):
    np.testing.assert_array_equal(found.X, expected.X)
    for name in ("lower", "upper"):
        np.testing.assert_array_equal(found.layers[name], expected.layers[name])
    assert list(found.obs["stc_in_distribution"]) == list(expected.obs["stc_in_distribution"])


@pytest.mark.parametrize("method", ["ridge", "stcontrast", "field"])
def test_the_numbers_are_those_of_this_process(models, toy, client, tmp_path, monkeypatch, method):
    # two slides, their spots mixed in the table
    sdata = parts_of(copied(toy), "donor2", "donor3")
    order = np.random.default_rng(0).permutation(sdata["table"].n_obs)
    sdata.tables.data["table"] = sdata["table"][order].copy()
    expected = predicted(sdata, models[method], tmp_path / "here.zarr", monkeypatch, None)
    assert _cluster.running_client() is client
    same(predicted(sdata, models[method], tmp_path / "there.zarr", monkeypatch, client), expected)


def test_a_killed_worker_loses_nothing(models, toy, client, tmp_path, monkeypatch):
    sdata = parts_of(copied(toy), "donor3")
    expected = predicted(sdata, models["ridge"], tmp_path / "here.zarr", monkeypatch, None)
    pids = tmp_path / "pids"
    pids.mkdir()

    def slow(model, pieces, folder=str(pids)):
        with open(f"{folder}/{os.getpid()}", "a") as file:  # noqa: PTH123
            file.write("x")
        time.sleep(0.5)
        from stcontrast.tl._predict_to_store import _predicted

        return _predicted(model, pieces)

    monkeypatch.setattr(_predict_to_store, "_predicted", slow)

    def kill() -> None:
        while not any(pids.iterdir()):
            time.sleep(0.02)
        pid = int(next(pids.iterdir()).name)
        assert pid != os.getpid()
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        found = predicted(sdata, models["ridge"], tmp_path / "there.zarr", monkeypatch, client)
    finally:
        thread.join()
    same(found, expected)
    n_parts = -(-len(expected) // 16)
    done = sum(len(file.read_text()) for file in pids.iterdir())
    # what the dead worker had begun or was to begin is done again
    assert n_parts < done <= n_parts + 2 * _cluster.AHEAD


def doubled(common, part):
    return common["factor"] * part


def test_parts_are_made_as_workers_get_free(client):
    drawn = []

    def parts():
        for i in range(20):
            drawn.append(i)
            yield i, np.full(3, i)

    found = {}
    for key, result in _cluster.spread(client, doubled, {"factor": 2}, parts()):
        found[key] = result
        assert len(drawn) <= len(found) + _cluster.AHEAD * 2 + 1
    assert sorted(found) == list(range(20))
    for key, result in found.items():
        np.testing.assert_array_equal(result, np.full(3, 2 * key))
    assert list(_cluster.spread(client, doubled, {"factor": 2}, [])) == []


def test_an_error_of_a_part_is_told(client):
    with pytest.raises(TypeError, match="unsupported operand"):
        list(_cluster.spread(client, doubled, {"factor": {}}, [(0, 1.5)]))


class Flaky:
    """A client whose transfers fail at first, as they do until the scheduler has seen that a worker is dead."""

    def __init__(self, client, n_failures):
        self.client, self.n_failures = client, n_failures

    def __getattr__(self, name):
        return getattr(self.client, name)

    def scatter(self, *args, **kwargs):
        if self.n_failures:
            self.n_failures -= 1
            msg = "Stream is closed"
            raise distributed.comm.core.CommClosedError(msg)
        return self.client.scatter(*args, **kwargs)


def test_a_transfer_to_a_dead_worker_is_tried_again(client, caplog):
    flaky = Flaky(client, 3)
    found = dict(_cluster.spread(flaky, doubled, {"factor": 2}, ((i, np.full(2, i)) for i in range(4))))
    assert flaky.n_failures == 0
    assert sorted(found) == list(range(4))
    assert "data are sent again" in caplog.text


def test_a_cluster_without_workers_is_told(client, monkeypatch):
    monkeypatch.setattr(_cluster, "PATIENCE", 0)
    with pytest.raises(RuntimeError, match=r"could be sent to the workers .*Stream is closed.*alive"):
        list(_cluster.spread(Flaky(client, 100), doubled, {"factor": 2}, [(0, 1.0)]))

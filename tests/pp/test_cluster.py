"""Slides and bands of their spots on the workers of a dask cluster."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import pytest
import spatialdata

import stcontrast as stc
from stcontrast._cluster import running_client
from stcontrast.pp._features import cluster as _cluster
from tests.cluster import WARNINGS_OF_WORKERS

distributed = pytest.importorskip("distributed", reason="distributed is not installed")

pytestmark = WARNINGS_OF_WORKERS


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(_cluster, "MIN_SHARD", 4)


@pytest.fixture(scope="module")
def expected():
    # made before there is a client
    sdata = stc.datasets.toy(n_donors=2, n_spots=30, n_genes=10)
    stc.pp.image_features(sdata, field_um=(50, 200))
    return sdata["table"].obsm["X_image"].copy()


@pytest.mark.slow
@pytest.mark.parametrize("stored", [False, True])
def test_the_numbers_are_those_of_one_process(expected, client, stored, tmp_path):
    sdata = stc.datasets.toy(n_donors=2, n_spots=30, n_genes=10)
    if stored:
        sdata.write(tmp_path / "toy.zarr")
        sdata = spatialdata.read_zarr(tmp_path / "toy.zarr")
    assert running_client() is client
    stc.pp.image_features(sdata, field_um=(50, 200))
    np.testing.assert_allclose(sdata["table"].obsm["X_image"], expected, atol=1e-6)


class Slow:
    """An encoder that takes its time and writes down what it has done."""

    size_px = 16

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @property
    def spec(self) -> dict[str, Any]:
        return {"kind": "callable", "name": "slow", "size_px": 16}

    def __call__(self, crops):
        time.sleep(0.3)
        with open(f"{self.folder}/{os.getpid()}", "a") as file:  # noqa: PTH123
            file.write(f"{len(crops)}\n")
        return crops.mean(axis=(1, 2)).astype(np.float32)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(client, tmp_path):
    import threading

    sdata = stc.datasets.toy(n_donors=2, n_spots=60, n_genes=10)
    fetched: list[int] = []
    encode = _cluster.encode_on_cluster

    def watched(*args: Any) -> Any:
        for part in encode(*args):
            fetched.append(len(part[1]))
            yield part

    _cluster.encode_on_cluster = watched  # type: ignore[assignment]
    before = set(client.run(os.getpid).values())
    killed: list[int] = []

    def kill() -> None:
        while not fetched:
            time.sleep(0.02)
        killed.append(next(iter(before)))
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        stc.pp.image_features(sdata, encoder=Slow(str(tmp_path)), field_um=50)
    finally:
        _cluster.encode_on_cluster = encode
        thread.join()
    assert sum(fetched) == 120
    done = sum(int(line) for file in tmp_path.iterdir() for line in file.read_text().split())
    # what the dead worker had begun or not yet handed over is done again: of eight shards three at most
    assert 120 <= done <= 120 + 3 * max(fetched)
    plain = stc.pp.crops(sdata, field_um=50, size_px=16).mean(axis=(1, 2))
    np.testing.assert_allclose(sdata["table"].obsm["X_image"], plain, atol=1e-4)


@pytest.mark.slow
def test_predictions_on_a_cluster(client, tmp_path):
    sdata = stc.datasets.toy(n_donors=3, n_spots=30, n_genes=10)
    model = stc.tl.fit(sdata, batch_key="donor", method="ridge", encoder="color", field_um=100)
    new = stc.datasets.toy(n_donors=1, n_spots=30, n_genes=10, seed=3)
    stc.tl.predict_expression(new, model, store=tmp_path / "pred.zarr")
    on_cluster = np.asarray(new["stc_pred"].X)
    features, slide, xy = (
        stc.pp.crops(new, field_um=100, size_px=64),
        np.zeros(30, dtype=int),
        new["table"].obsm["spatial"],
    )
    alone = model.predict(stc.pp.ColorEncoder()(features), slide=slide, xy=np.asarray(xy))
    assert alone.expression is not None
    np.testing.assert_allclose(on_cluster, alone.expression, atol=2e-4)


@pytest.mark.slow
def test_parts_whose_image_was_lost_are_sent_again(expected, client, monkeypatch, caplog):
    encode, calls = _cluster._encode_shards, []

    def losing(client: Any, slides: Any, recipe: Any, shards: Any) -> Any:
        calls.append(len(shards))
        # two parts are lost at first
        yield from encode(client, slides, recipe, shards if len(calls) > 1 else shards[2:])
        return shards[:2] if len(calls) == 1 else []

    monkeypatch.setattr(_cluster, "_encode_shards", losing)
    sdata = stc.datasets.toy(n_donors=2, n_spots=30, n_genes=10)
    stc.pp.image_features(sdata, field_um=(50, 200))
    np.testing.assert_allclose(sdata["table"].obsm["X_image"], expected, atol=1e-6)
    assert calls[1:] == [2]
    assert "lost the images of 2 parts" in caplog.text

    def lost(client: Any, slides: Any, recipe: Any, shards: Any) -> Any:
        yield from ()
        return list(shards)

    monkeypatch.setattr(_cluster, "_encode_shards", lost)
    with pytest.raises(RuntimeError, match="parts of the slides 3 times"):
        stc.pp.image_features(sdata, field_um=51)


def test_an_error_of_a_worker_is_told(client):
    def broken(crops: np.ndarray) -> np.ndarray:
        msg = "no such layer"
        raise RuntimeError(msg)

    sdata = stc.datasets.toy(n_donors=1, n_spots=12, n_genes=10)
    with pytest.raises(RuntimeError, match="no such layer"):
        stc.pp.image_features(sdata, encoder=broken, field_um=50)
    assert "X_image" not in sdata["table"].obsm


def test_without_a_client_there_is_none(monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "distributed")
    assert running_client() is None

"""Predictions that are written as they are made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest

import stcontrast as stc
from stcontrast.pp._features import on_disk as _on_disk
from stcontrast.tl import _predict_to_store
from tests.tl.conftest import copied
from tests.tl.toy import parts_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def ridge(toy):
    return stc.tl.fit(parts_of(copied(toy), "donor1", "donor2"), batch_key="donor", method="ridge")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(_predict_to_store, "CHUNK", 16)
    monkeypatch.setattr(_on_disk, "UNWRITTEN", 16)


def without_features(toy, *donors: str):
    sdata = parts_of(copied(toy), *donors)
    del sdata["table"].obsm["X_image"], sdata["table"].uns["stcontrast"]["image_features"]
    return sdata


def same(found: ad.AnnData, expected: ad.AnnData) -> None:
    assert list(found.obs_names) == list(expected.obs_names)
    np.testing.assert_allclose(np.asarray(found.X), expected.X, atol=2e-4)
    for name in ("lower", "upper"):
        np.testing.assert_allclose(np.asarray(found.layers[name]), expected.layers[name], atol=2e-4)
    assert list(found.obs["stc_in_distribution"]) == list(expected.obs["stc_in_distribution"])
    assert found.uns["stcontrast"] == expected.uns["stcontrast"]
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
    np.testing.assert_allclose(found.var["stc_held_out_r"], expected.var["stc_held_out_r"])


def test_it_is_the_prediction_in_memory(ridge, toy, tmp_path):
    # two slides, their spots mixed in the table
    sdata = without_features(toy, "donor2", "donor3")
    order = np.random.default_rng(0).permutation(sdata["table"].n_obs)
    sdata.tables.data["table"] = sdata["table"][order].copy()
    expected = copied(sdata)
    stc.tl.predict_expression(expected, ridge, donor_key="donor")
    stc.tl.predict_expression(sdata, ridge, donor_key="donor", store=tmp_path / "pred.zarr")
    same(sdata["stc_pred"], expected["stc_pred"])
    same(ad.read_zarr(tmp_path / "pred.zarr"), expected["stc_pred"])
    assert sdata["stc_pred"].uns["stcontrast"]["prediction"]["provenance"]["donor2_a"] == "in-sample"
    assert "X_image" not in sdata["table"].obsm
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pred.zarr"]


def test_every_method_of_the_ensemble(model, toy, tmp_path):
    sdata = parts_of(copied(toy), "donor3")
    stc.tl.predict_expression(sdata, model)
    expected = sdata["stc_pred"].copy()
    stc.tl.predict_expression(sdata, model, store=tmp_path / "pred.zarr")
    same(sdata["stc_pred"], expected)


@pytest.mark.parametrize("method", ["mean", "knn", "kernel", "color", "field"])
def test_other_methods(method, toy, tmp_path, caplog):
    fitted = stc.tl.fit(parts_of(copied(toy), "donor1", "donor2"), batch_key="donor", method=method)
    sdata = parts_of(copied(toy), "donor3")
    stc.tl.predict_expression(sdata, fitted)
    expected = sdata["stc_pred"].copy()
    stc.tl.predict_expression(sdata, fitted, store=tmp_path / "pred.zarr")
    same(sdata["stc_pred"], expected)
    assert ("looks at a slide as a whole" in caplog.text) == (method == "field")


def test_an_anndata_gives_it_back(ridge, toy, tmp_path):
    table = parts_of(copied(toy), "donor3")["table"]
    adata = ad.AnnData(obs=table.obs, obsm={"spatial": table.obsm["spatial"], "X_image": table.obsm["X_image"]})
    adata.uns["stcontrast"] = {"image_features": table.uns["stcontrast"]["image_features"]}
    expected = stc.tl.predict_expression(adata, ridge)
    same(stc.tl.predict_expression(adata, ridge, store=tmp_path / "pred.zarr"), expected)


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # squidpy 1.8
def test_it_chains_with_squidpy(ridge, toy, tmp_path):
    import squidpy as sq

    sdata = parts_of(copied(toy), "donor3")
    stc.tl.predict_expression(sdata, ridge, store=tmp_path / "pred.zarr")
    table = sdata["stc_pred"].to_memory()
    sq.gr.spatial_neighbors_knn(table, n_neighs=6)
    sq.gr.spatial_autocorr(table, mode="moran", genes=list(table.var_names[:3]))
    assert np.isfinite(table.uns["moranI"]["I"]).all()


class Counting:
    """An encoder that counts its crops and dies after some of them."""

    def __init__(self, die_after: int) -> None:
        self.inner, self.left, self.seen = stc.pp.ColorEncoder(), die_after, 0

    size_px = 64

    @property
    def spec(self) -> dict[str, Any]:
        return {**self.inner.spec, "name": "color"}

    def __call__(self, crops):
        if self.seen >= self.left:
            raise KeyboardInterrupt
        self.seen += len(crops)
        return self.inner(crops)


def test_what_was_encoded_is_not_encoded_again(toy, tmp_path, monkeypatch):
    from stcontrast.pp._features import encoding as _encoding

    monkeypatch.setattr(_encoding, "BATCH", 8)
    encoder = stc.pp.ColorEncoder()
    train = without_features(toy, "donor1", "donor2")
    fitted = stc.tl.fit(train, batch_key="donor", method="ridge", encoder=encoder, field_um=100)
    sdata = without_features(toy, "donor3")
    expected = copied(sdata)
    stc.tl.predict_expression(expected, fitted)
    first, second = Counting(20), Counting(10**6)
    with pytest.raises(KeyboardInterrupt):
        stc.tl.predict_expression(sdata, fitted, encoder=first, store=tmp_path / "pred.zarr")
    assert not (tmp_path / "pred.zarr").exists()
    assert first.seen == 24
    stc.tl.predict_expression(sdata, fitted, encoder=second, store=tmp_path / "pred.zarr")
    assert second.seen == 40 - 24
    same(sdata["stc_pred"], expected["stc_pred"])


def test_what_was_predicted_is_not_predicted_again(ridge, toy, tmp_path, monkeypatch):
    sdata = parts_of(copied(toy), "donor2", "donor3")
    stc.tl.predict_expression(sdata, ridge)
    expected = sdata["stc_pred"].copy()
    seen: list[int] = []
    predict_spots = type(ridge).predict_spots

    def dying(self, spots):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(len(spots))
        return predict_spots(self, spots)

    monkeypatch.setattr(type(ridge), "predict_spots", dying)
    with pytest.raises(KeyboardInterrupt):
        stc.tl.predict_expression(sdata, ridge, store=tmp_path / "pred.zarr")
    monkeypatch.setattr(type(ridge), "predict_spots", lambda *args: (seen.append(0), predict_spots(*args))[1])
    stc.tl.predict_expression(sdata, ridge, store=tmp_path / "pred.zarr")
    # eighty spots in chunks of sixteen, the third of them on both slides: six views in all, and one that was broken off
    assert len(seen) <= 7
    same(sdata["stc_pred"], expected)


def test_remains_of_a_published_store_say_nothing_of_a_new_one(ridge, toy, tmp_path, monkeypatch):
    """Killed after the store was published and before its remains were cleared away; then the store was moved."""
    sdata = parts_of(copied(toy), "donor2", "donor3")
    with monkeypatch.context() as patch:
        patch.setattr("stcontrast._files.ResumableStore.remove", lambda self: None)
        stc.tl.predict_expression(sdata, ridge, store=tmp_path / "pred.zarr")
    expected = sdata["stc_pred"].to_memory()
    (tmp_path / "pred.zarr").rename(tmp_path / "moved.zarr")
    again = parts_of(copied(toy), "donor2", "donor3")
    stc.tl.predict_expression(again, ridge, store=tmp_path / "pred.zarr")
    same(again["stc_pred"], expected)
    assert (np.asarray(again["stc_pred"].X) > 0).any()
    assert not (tmp_path / "pred.zarr.partial").exists()


SCRIPT = """
import sys, time
import spatialdata
import stcontrast as stc
from stcontrast.pp._features import encoding as _encoding
from stcontrast.pp._features import on_disk as _on_disk

_on_disk.UNWRITTEN, _encoding.BATCH = 8, 4
folder = sys.argv[1]
inner = stc.pp.ColorEncoder.__call__

def slowly(self, crops):
    time.sleep(0.2)
    return inner(self, crops)

stc.pp.ColorEncoder.__call__ = slowly
model = stc.models.load(folder + "/model")
stc.tl.predict_expression(spatialdata.read_zarr(folder + "/toy.zarr"), model, store=folder + "/pred.zarr")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_killed_process_loses_nothing_that_was_written(toy, tmp_path: Path):
    train = without_features(toy, "donor1", "donor2")
    stc.tl.fit(train, batch_key="donor", method="ridge", encoder="color", field_um=100).save(tmp_path / "model")
    sdata = without_features(toy, "donor3")
    sdata.write(tmp_path / "toy.zarr")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    marks = tmp_path / "pred.zarr.partial" / "encoded0.npy"
    deadline = time.monotonic() + 120
    while not marks.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    encoded = int(np.load(marks).sum())
    assert 8 <= encoded < 40
    model, counting = stc.models.load(tmp_path / "model"), Counting(10**6)
    stc.tl.predict_expression(sdata, model, encoder=counting, store=tmp_path / "pred.zarr")
    assert counting.seen == 40 - encoded
    expected = without_features(toy, "donor3")
    stc.tl.predict_expression(expected, model)
    same(sdata["stc_pred"], expected["stc_pred"])


def test_another_prediction_is_not_resumed(ridge, toy, tmp_path, monkeypatch):
    sdata = parts_of(copied(toy), "donor3")
    monkeypatch.setattr(type(ridge), "predict_spots", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stc.tl.predict_expression(sdata, ridge, store=tmp_path / "pred.zarr")
    with pytest.raises(ValueError, match=r"differs in \['donor_key'\]"):
        stc.tl.predict_expression(sdata, ridge, donor_key="donor", store=tmp_path / "pred.zarr")
    half = parts_of(copied(toy), "donor3")
    half.tables.data["table"] = half["table"][:20].copy()
    with pytest.raises(ValueError, match=r"interrupted work that differs in \[.*'spots'\]"):
        stc.tl.predict_expression(half, ridge, store=tmp_path / "pred.zarr")


def test_the_prediction_of_another_model_is_not_resumed(ridge, toy, tmp_path, monkeypatch):
    sdata = parts_of(copied(toy), "donor3")
    other = stc.tl.fit(parts_of(copied(toy), "donor1"), batch_key="donor", method="ridge")
    with monkeypatch.context() as patch:
        patch.setattr(type(ridge), "predict_spots", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stc.tl.predict_expression(sdata, ridge, store=tmp_path / "pred.zarr")
    with pytest.raises(ValueError, match=r"interrupted work that differs in \['model_id'\]"):
        stc.tl.predict_expression(sdata, other, store=tmp_path / "pred.zarr")
    assert not (tmp_path / "pred.zarr").exists()


@pytest.mark.parametrize("changed", ["pixels", "scale", "encoder"])
def test_the_prediction_of_another_image_is_not_resumed(toy, tmp_path, changed):
    train = without_features(toy, "donor1", "donor2")
    fitted = stc.tl.fit(train, batch_key="donor", method="ridge", encoder=stc.pp.ColorEncoder(), field_um=100)
    sdata = without_features(toy, "donor3")
    with pytest.raises(KeyboardInterrupt):
        stc.tl.predict_expression(sdata, fitted, encoder=Counting(0), store=tmp_path / "pred.zarr")
    arguments: dict[str, Any] = {"encoder": Counting(10**6)}
    if changed == "pixels":
        image = sdata.images["donor3_a_he"].copy()
        image["scale0"] = image["scale0"].dataset.map(lambda values: 255 - values, keep_attrs=True)
        sdata.images["donor3_a_he"] = image
    elif changed == "scale":
        arguments["um_per_px"] = 0.75
    else:
        arguments["encoder"].inner = stc.pp.ColorEncoder(32)
    with pytest.raises(ValueError, match=r"interrupted work that differs in \['features'\]"):
        stc.tl.predict_expression(sdata, fitted, store=tmp_path / "pred.zarr", **arguments)


def test_wrong_stores_are_refused_before_any_work(ridge, toy, tmp_path):
    sdata = parts_of(copied(toy), "donor3")
    (tmp_path / "mine.zarr").mkdir()
    with pytest.raises(FileExistsError, match=r"`store`: .* exists. Remove it"):
        stc.tl.predict_expression(sdata, ridge, store=tmp_path / "mine.zarr")
    with pytest.raises(ValueError, match=r"must end in '.zarr'"):
        stc.tl.predict_expression(sdata, ridge, store=tmp_path / "mine")
    with pytest.raises(ValueError, match="one object, found 2"):
        stc.tl.predict_expression([sdata, parts_of(copied(toy), "donor1")], ridge, store=tmp_path / "new.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.zarr"]

"""From slide files to predictions in one call, interrupted and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import spatialdata

import stcontrast as stc
from stcontrast._reading import resolve_slides
from stcontrast.pp._features import encoding, on_disk
from tests.real_data import require
from tests.slide_files import halved, write_slide

if TYPE_CHECKING:
    from pathlib import Path

wsidata = pytest.importorskip("wsidata", reason="needs wsidata to open slide files")


def pixels(seed: int, *, n_spots: int = 40) -> np.ndarray:
    image = stc.datasets.toy(n_donors=1, n_spots=n_spots, n_genes=10, seed=seed)["donor1_a_he"]
    return np.moveaxis(image["scale0"]["image"].to_numpy(), 0, -1)


@pytest.fixture(scope="module")
def model():
    train = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    return stc.tl.fit(
        train, batch_key="donor", label_key="subtype", method="ridge", encoder="color", field_um=(100, 200)
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two slides, and one that does not say its scale."""
    folder = tmp_path_factory.mktemp("slides")
    for name, seed, um_per_px in (("one", 7, 1.0), ("slide two", 8, 1.0), ("unscaled", 9, None)):
        picture = pixels(seed)
        write_slide(folder / f"{name}.tiff", [picture, halved(picture)], um_per_px=um_per_px)
    return folder


@pytest.fixture
def small_steps(monkeypatch):
    """Write features often, so that there is something to go on with."""
    monkeypatch.setattr(on_disk, "UNWRITTEN", 8)
    monkeypatch.setattr(encoding, "BATCH", 4)


def by_hand(file, model):
    """What the call replaces."""
    wsi = wsidata.open_wsi(file, store=None)
    stc.pp.tissue_grid(wsi, pitch_um=100.0)
    stc.tl.predict_expression(wsi, model)
    stc.tl.classify(wsi, model)
    return wsi


def test_it_is_what_the_functions_do_one_after_another(files, model, tmp_path):
    result = stc.tl.predict_slide(files / "one.tiff", model, out=tmp_path / "out.zarr")
    expected = by_hand(files / "one.tiff", model)
    np.testing.assert_allclose(np.asarray(result["stc_pred"].X), np.asarray(expected["stc_pred"].X), rtol=1e-5)
    assert result["table"].obs["stc_class"].tolist() == expected["table"].obs["stc_class"].tolist()
    read = spatialdata.read_zarr(tmp_path / "out.zarr")
    assert set(read.images) == {"one_he"}
    assert set(read.shapes) == {"one_spots"}
    assert set(read.tables) == {"table", "stc_pred"}
    assert not (tmp_path / "out.zarr.partial").exists()
    # reading finds the small image under the spots, at its scale
    [slide] = resolve_slides(read).slides
    assert slide.image is not None
    assert slide.image.name == "one_he"
    assert slide.um_per_px == 1.0
    # features belong to the file, and would be made anew from the small image
    assert "X_image" not in read["table"].obsm
    assert stc.pl.spatial_pred(read, read["stc_pred"].var_names[0], return_fig=True) is not None


def test_several_slides_have_systems_of_their_own(files, model):
    wsi = wsidata.open_wsi(files / "slide two.tiff", store=None)
    result = stc.tl.predict_slide([files / "one.tiff", wsi], model)
    assert result.path is None
    assert set(result.coordinate_systems) == {"one", "slide_two"}
    alone = stc.tl.predict_slide(files / "one.tiff", model)
    here = result["stc_pred"][result["stc_pred"].obs["region"] == "one_spots"]
    np.testing.assert_allclose(np.asarray(here.X), np.asarray(alone["stc_pred"].X), rtol=1e-5)


def test_a_large_slide_is_copied_small(files, model, monkeypatch):
    from stcontrast.tl import _predict_slide

    monkeypatch.setattr(_predict_slide, "PICTURE_PX", 200)
    result = stc.tl.predict_slide(files / "one.tiff", model)
    assert max(result["one_he"].shape) <= 200
    [slide] = resolve_slides(result).slides
    factor = -(-max(pixels(7).shape) // 200)
    assert slide.um_per_px == factor
    # the spots lie where they lay
    at = slide.centers * factor
    np.testing.assert_allclose(at, by_hand(files / "one.tiff", model)["table"].obsm["spatial"], atol=factor)


class Counting:
    """An encoder that counts its crops, and can be interrupted."""

    def __init__(self, model, monkeypatch, *, most: int = 10**9):
        self.seen, inner = 0, stc.pp.ColorEncoder.__call__

        def call(encoder, crops):
            if self.seen + len(crops) > most:
                raise KeyboardInterrupt
            self.seen += len(crops)
            return inner(encoder, crops)

        monkeypatch.setattr(stc.pp.ColorEncoder, "__call__", call)


@pytest.mark.usefixtures("small_steps")
def test_an_interrupted_call_goes_on(files, model, tmp_path, monkeypatch):
    slides, out = [files / "one.tiff", files / "slide two.tiff"], tmp_path / "out.zarr"
    expected = stc.tl.predict_slide(slides, model)
    total = 2 * len(expected["table"])
    with monkeypatch.context() as patch:
        first = Counting(model, patch, most=total // 2)
        with pytest.raises(KeyboardInterrupt):
            stc.tl.predict_slide(slides, model, out=out)
    assert not out.exists()
    rest = Counting(model, monkeypatch)
    result = stc.tl.predict_slide(slides, model, out=out)
    # each is encoded once, but for those that were not yet written
    assert total <= first.seen + rest.seen <= total + 16
    assert rest.seen < total
    np.testing.assert_array_equal(np.asarray(result["stc_pred"].X), np.asarray(expected["stc_pred"].X))
    assert not out.with_name("out.zarr.partial").exists()


@pytest.mark.usefixtures("small_steps")
def test_work_on_another_slide_is_not_gone_on_with_unless_told_to_begin_anew(files, model, tmp_path, monkeypatch):
    out = tmp_path / "out.zarr"
    with monkeypatch.context() as patch:
        Counting(model, patch, most=20)
        with pytest.raises(KeyboardInterrupt):
            stc.tl.predict_slide(files / "one.tiff", model, out=out)
    with pytest.raises(ValueError, match=r"interrupted work that differs in \['slides', 'um_per_px'\]"):
        stc.tl.predict_slide(files / "slide two.tiff", model, out=out)
    stc.tl.predict_slide(files / "slide two.tiff", model, out=out, overwrite=True)
    assert set(spatialdata.read_zarr(out).shapes) == {"slide_two_spots"}


def test_a_result_is_replaced_only_when_told_to(files, model, tmp_path):
    out = tmp_path / "out.zarr"
    stc.tl.predict_slide(files / "one.tiff", model, out=out)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        stc.tl.predict_slide(files / "slide two.tiff", model, out=out)
    assert set(spatialdata.read_zarr(out).shapes) == {"one_spots"}
    stc.tl.predict_slide(files / "slide two.tiff", model, out=out, overwrite=True)
    assert set(spatialdata.read_zarr(out).shapes) == {"slide_two_spots"}


@pytest.mark.parametrize(
    ("slides", "given", "error", "says"),
    [
        pytest.param("nowhere.svs", {}, FileNotFoundError, "No slide file at '.*nowhere.svs'", id="no file"),
        pytest.param("no slide.tiff", {}, ValueError, "cannot be read as a slide", id="no slide"),
        pytest.param(["one.tiff", "one.tiff"], {}, ValueError, r"called \['one'\]", id="twice"),
        pytest.param([], {}, ValueError, "empty", id="none"),
        pytest.param("unscaled.tiff", {}, ValueError, r"unknown for \['unscaled'\]", id="no scale"),
        pytest.param("one.tiff", {"um_per_px": {"two": 1.0}}, KeyError, r"names \['two'\]", id="other scale"),
        pytest.param("one.tiff", {"um_per_px": -1.0}, ValueError, "um_per_px", id="scale"),
        pytest.param("one.tiff", {"pitch_um": 0.0}, ValueError, "pitch_um", id="pitch"),
        pytest.param("one.tiff", {"out": "result"}, ValueError, "must end in '.zarr'", id="store"),
        pytest.param("one.tiff", {"um_per_px": 0.001}, ValueError, "No tissue stands out", id="too fine"),
        pytest.param("one.tiff", {"overwrite": "yes"}, TypeError, "overwrite|True or False", id="flag"),
    ],
)
def test_what_cannot_be_predicted_is_said_before_any_work(
    slides, given, error, says, files, model, tmp_path, monkeypatch
):
    (files / "no slide.tiff").write_text("nothing")
    counting = Counting(model, monkeypatch)
    if "out" in given:
        given = given | {"out": tmp_path / given["out"]}
    paths = [files / name for name in slides] if isinstance(slides, list) else files / slides
    with pytest.raises((error, ValueError) if error is TypeError else error, match=says):
        stc.tl.predict_slide(paths, model, **given)
    assert counting.seen == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["spatialdata", "array"])
def test_what_is_no_slide_file_is_refused(kind, model):
    thing = stc.datasets.toy(n_donors=1, n_spots=20) if kind == "spatialdata" else np.zeros((3, 3))
    with pytest.raises(TypeError, match="path of a slide file or a WSIData"):
        stc.tl.predict_slide(thing, model)


def test_a_file_that_tissue_fills(model, tmp_path):
    picture = pixels(7)[200:400, 200:400]
    write_slide(tmp_path / "core.tiff", [picture], um_per_px=1.0)
    result = stc.tl.predict_slide(tmp_path / "core.tiff", model, tissue=None, standardize="training", pitch_um=50)
    assert len(result["stc_pred"]) >= 12


def test_the_scale_can_be_given(files, model):
    result = stc.tl.predict_slide(files / "unscaled.tiff", model, um_per_px={"unscaled": 1.0})
    assert len(result["stc_pred"]) > 10


@pytest.mark.parametrize("learnt", ["genes", "classes"])
def test_a_model_predicts_what_it_has(learnt, files):
    train = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    if learnt == "classes":
        for name in list(train.tables):
            train.tables[name] = train.tables[name][:, :0].copy()
    model = stc.tl.fit(
        train, batch_key="donor", label_key="subtype" if learnt == "classes" else None, method="ridge",
        encoder="color", field_um=100,
    )  # fmt: skip
    result = stc.tl.predict_slide(files / "one.tiff", model)
    assert ("stc_pred" in result.tables) is (learnt == "genes")
    assert ("stc_class" in result["table"].obs) is (learnt == "classes")


def test_a_model_of_features_of_the_users_own_is_refused(files):
    train = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    train["table"].obsm["mine"] = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    model = stc.tl.fit(train, batch_key="donor", method="ridge", use_rep="mine")
    with pytest.raises(ValueError, match="custom features"):
        stc.tl.predict_slide(files / "one.tiff", model)


SCRIPT = """
import sys, time
import stcontrast as stc
from stcontrast.pp._features import encoding, on_disk

on_disk.UNWRITTEN, encoding.BATCH = 8, 4
inner = stc.pp.ColorEncoder.__call__

def slowly(self, crops):
    time.sleep(0.2)
    return inner(self, crops)

stc.pp.ColorEncoder.__call__ = slowly
stc.tl.predict_slide(sys.argv[1], sys.argv[2], out=sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_killed_process_goes_on(files, model, tmp_path: Path, monkeypatch):
    model.save(tmp_path / "model")
    out = tmp_path / "out.zarr"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(files / "one.tiff"), str(tmp_path / "model"), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    marks = tmp_path / "out.zarr.partial" / "encoded0.npy"
    deadline = time.monotonic() + 180
    while not marks.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    encoded = int(np.load(marks).sum())
    rest = Counting(model, monkeypatch)
    result = stc.tl.predict_slide(files / "one.tiff", tmp_path / "model", out=out)
    assert encoded >= 8
    assert rest.seen == 2 * (len(result["table"]) - encoded)
    np.testing.assert_allclose(
        np.asarray(result["stc_pred"].X), np.asarray(by_hand(files / "one.tiff", model)["stc_pred"].X), rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
def test_a_section_that_has_h_and_e_only(tmp_path: Path):
    """A section of a patient of which others are measured, from its picture."""
    from PIL import Image

    root = require("her2st", "data").parent
    with stc.settings.override(data_mirror=str(root)):
        train = stc.datasets.her2st(["C2", "C5"])
    model = stc.tl.fit(train, batch_key="donor", label_key=None, method="ridge", n_genes=100)
    picture = np.asarray(Image.open(next((root / "data" / "ST-imgs" / "C" / "C3").glob("*.jpg"))).convert("RGB"))
    write_slide(tmp_path / "C3.tiff", [picture, halved(picture)], um_per_px=0.68)
    result = stc.tl.predict_slide(tmp_path / "C3.tiff", model, out=tmp_path / "out.zarr")
    assert len(result["stc_pred"]) > 50
    assert np.isfinite(np.asarray(result["stc_pred"].X)).all()

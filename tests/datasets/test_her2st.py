"""On a made-up repository with the layout of the real one, and on the real files where they are at hand."""

from __future__ import annotations

import gzip
import hashlib
import logging
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from PIL import Image
from scipy.sparse import issparse
from spatialdata.models import get_table_keys
from spatialdata.transformations import Identity, get_transformation

import stcontrast as stc
from stcontrast.datasets import _her2st
from stcontrast.datasets._remote import RemoteFile, fetch, read_registry
from tests.real_data import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PITCH_PX = 40.0


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    with stc.settings.override(data_dir=tmp_path / "cache", data_mirror="", progress=False):
        yield


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sections X1 (image, labels) and Y1 (neither in the repository, image in its registry)."""
    root = tmp_path / "repository"
    rng = np.random.default_rng(0)
    ids = [(x, y) for x in range(2, 8) for y in range(3, 8)]
    spots = pd.DataFrame(ids, columns=["x", "y"])
    spots["new_x"], spots["new_y"] = spots["x"] + 0.03, spots["y"] - 0.02
    spots["pixel_x"], spots["pixel_y"] = spots["x"] * PITCH_PX, spots["y"] * PITCH_PX
    spots["selected"] = 1
    contents: dict[str, bytes] = {}
    for section, genes in (("X1", ["A", "B", "C"]), ("Y1", ["B", "C", "D", "E"])):
        # The first spot has no counts, and one row of counts has no spot; the order differs.
        rows = [*(f"{x}x{y}" for x, y in ids[:0:-1]), "99x99"]
        counts = pd.DataFrame(rng.poisson(2, (len(rows), len(genes))), index=rows, columns=genes)
        contents[f"data/ST-cnts/{section}.tsv.gz"] = gzip.compress(counts.to_csv(sep="\t").encode(), mtime=0)
        contents[f"data/ST-spotfiles/{section}_selection.tsv"] = spots.to_csv(sep="\t", index=False).encode()
    labels = spots[["x", "y"]] + rng.uniform(-0.2, 0.2, (len(spots), 2))
    labels["pixel_x"] = labels["pixel_y"] = -1.0
    labels["label"] = np.where(spots["x"] < 4, "breast glands", "invasive cancer")
    labels.loc[spots["y"] == 7, "label"] = "undetermined"
    labels.loc[len(labels)] = [np.nan, np.nan, 1.0, 1.0, np.nan]
    contents["data/ST-pat/lbl/X1_labeled_coordinates.tsv"] = labels.to_csv(sep="\t").encode()
    image_path = root / "data/ST-imgs/X/X1/slide.jpg"
    image_path.parent.mkdir(parents=True)
    Image.fromarray(rng.integers(0, 255, (403, 410, 3), dtype=np.uint8)).save(image_path, quality=95)
    contents["data/ST-imgs/X/X1/slide.jpg"] = image_path.read_bytes()
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    # As in the real registry, the SHA-256 of some files is not known.
    registry = {
        path: RemoteFile(path, git_blob(content), "" if path.endswith(".jpg") else sha256(content))
        for path, content in contents.items()
    }
    absent = "data/ST-imgs/Y/Y1/slide.jpg"
    registry[absent] = RemoteFile(absent, "0" * 40, "")
    monkeypatch.setattr(_her2st, "read_registry", lambda _: registry)
    return root


@pytest.fixture
def server(repository: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of the repository, and the requests that came in."""
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            requests.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(repository))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}", requests
        finally:
            http.shutdown()
            thread.join()


def test_tables_are_joined_by_spot_and_gene(repository: Path) -> None:
    table = stc.datasets.her2st(["Y1", "X1"], mirror=repository)["table"]
    assert get_table_keys(table) == (["Y1", "X1"], "region", "spot_id")
    assert issparse(table.X)
    assert table.X.format == "csr"
    assert table.X.dtype == np.float32
    assert set(table.var_names) == set("ABCDE")
    assert table.obs["donor"].astype(str).tolist() == ["Y"] * 29 + ["X"] * 29
    found = table.to_df()
    for section, missing in (("X1", ["D", "E"]), ("Y1", ["A"])):
        counts = pd.read_csv(repository / f"data/ST-cnts/{section}.tsv.gz", sep="\t", index_col=0)
        assert (found.loc[table.obs["slide"] == section, missing] == 0).all(axis=None)
        counts = counts.drop("99x99")
        pd.testing.assert_frame_equal(
            found.loc[section + "_" + counts.index, counts.columns].set_axis(counts.index),
            counts.astype(np.float32),
            check_names=False,
        )
    xy = table.obs[["array_x", "array_y"]].to_numpy()
    np.testing.assert_allclose(table.obsm["spatial"], xy * PITCH_PX)
    assert (table.obs["spot_id"] == [f"{x}x{y}" for x, y in xy]).all()


def test_labels_are_joined_by_rounded_position_and_undetermined_is_missing(repository: Path) -> None:
    obs = stc.datasets.her2st(["X1", "Y1"], mirror=repository)["table"].obs
    assert obs["subtype"].cat.categories.tolist() == ["breast glands", "invasive cancer"]
    assert obs.loc[obs["slide"] == "Y1", "subtype"].isna().all()
    labelled = obs[obs["slide"] == "X1"]
    assert labelled.loc[labelled["array_y"] == 7, "subtype"].isna().all()
    labelled = labelled[labelled["array_y"] < 7]
    expected = np.where(labelled["array_x"] < 4, "breast glands", "invasive cancer")
    assert labelled["subtype"].astype(str).tolist() == expected.tolist()


def test_image_and_circles_share_the_pixels_of_the_image(repository: Path) -> None:
    sdata = stc.datasets.her2st("X1", mirror=str(repository))
    assert sdata.coordinate_systems == ["X1"]
    image, circles = sdata["X1_he"], sdata["X1"]
    assert get_transformation(image, "X1") == Identity()
    assert get_transformation(circles, "X1") == Identity()
    pixels = np.asarray(Image.open(repository / "data/ST-imgs/X/X1/slide.jpg"))
    np.testing.assert_array_equal(image["scale0"]["image"].values, pixels.transpose(2, 0, 1))
    assert [image[k]["image"].shape[1:] for k in image.children] == [(403, 410), (201, 205), (100, 102), (50, 51)]
    half = pixels[:402].reshape(201, 2, 205, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(image["scale1"]["image"].values, half, atol=1)
    np.testing.assert_allclose(circles["radius"], PITCH_PX / 4)
    np.testing.assert_allclose(np.c_[circles.geometry.x, circles.geometry.y], sdata["table"].obsm["spatial"])
    assert circles.index.tolist() == sdata["table"].obs["spot_id"].tolist()
    assert sdata["table"].uns["stcontrast"]["um_per_px"] == {"X1": pytest.approx(200 / PITCH_PX)}


def test_a_section_whose_image_is_absent_is_loaded_without_one(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "stcontrast"):
        sdata = stc.datasets.her2st(["X1", "Y1"], mirror=repository)
    assert set(sdata.images) == {"X1_he"}
    assert set(sdata.shapes) == {"X1", "Y1"}
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("Section Y1 is loaded without its image")
    assert "data/ST-imgs/Y/Y1/slide.jpg" in warnings[0]


def test_labels_may_be_absent_too(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    (repository / "data/ST-pat/lbl/X1_labeled_coordinates.tsv").unlink()
    with caplog.at_level(logging.INFO, "stcontrast"):
        table = stc.datasets.her2st("X1", mirror=repository)["table"]
    assert table.obs["subtype"].isna().all()
    assert any("X1 is loaded without the pathologist's classes" in r.getMessage() for r in caplog.records)


def test_a_reduced_image_is_not_attached(
    repository: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repository / "data/ST-imgs/X/X1/slide.jpg"
    Image.open(path).reduce(4).save(path)
    name = "data/ST-imgs/X/X1/slide.jpg"
    reduced = RemoteFile(name, git_blob(path.read_bytes()), "")
    known = vars(_her2st)["read_registry"]("her2st.tsv")
    monkeypatch.setattr(_her2st, "read_registry", lambda _: known | {name: reduced})
    sdata = stc.datasets.her2st("X1", mirror=repository)
    assert not sdata.images
    assert "slide.jpg has 103×101 pixels, but spots lie up to x=280, y=280" in caplog.text


def test_large_images_are_read_and_the_limit_of_pillow_is_restored(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert set(stc.datasets.her2st("X1", mirror=repository).images) == {"X1_he"}
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("name", ["data/ST-cnts/X1.tsv.gz", "data/ST-imgs/X/X1/slide.jpg"], ids=["sha256", "git"])
def test_a_corrupted_file_in_a_mirror_is_an_error_and_is_not_deleted(repository: Path, name: str) -> None:
    path = repository / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    with pytest.raises(ValueError, match=f"{path.name} is not the published file: its checksum is .*, expected"):
        stc.datasets.her2st("X1", mirror=repository)
    assert path.exists()


def test_absent_counts_are_an_error(repository: Path) -> None:
    (repository / "data/ST-cnts/X1.tsv.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"X1\.tsv\.gz does not exist"):
        stc.datasets.her2st("X1", mirror=repository)


def test_unknown_sections_are_an_error_with_a_list(repository: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no section 'Z9'; available: X1, Y1\."):
        stc.datasets.her2st(["X1", "Z9"], mirror=repository)
    with pytest.raises(ValueError, match=r"No section is given; available: X1, Y1\."):
        stc.datasets.her2st([], mirror=repository)


def test_all_sections_are_the_default_and_the_mirror_is_a_setting(repository: Path) -> None:
    with stc.settings.override(data_mirror=str(repository)):
        assert set(stc.datasets.her2st().shapes) == {"X1", "Y1"}


def test_files_are_downloaded_once(
    server: tuple[str, list[str]], repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address, requests = server
    sdata = stc.datasets.her2st(["X1", "Y1"], mirror=address)
    assert set(sdata.images) == {"X1_he"}
    assert "Section Y1 is loaded without its image" in caplog.text
    np.testing.assert_array_equal(
        sdata["table"].X.toarray(), stc.datasets.her2st(["X1", "Y1"], mirror=repository)["table"].X.toarray()
    )
    before = len(requests)
    assert set(stc.datasets.her2st("X1", mirror=address + "/").images) == {"X1_he"}
    assert len(requests) == before


@pytest.mark.parametrize("name", ["data/ST-cnts/X1.tsv.gz", "data/ST-imgs/X/X1/slide.jpg"], ids=["sha256", "git"])
def test_a_corrupted_download_is_deleted_and_an_error(
    server: tuple[str, list[str]], repository: Path, tmp_path: Path, name: str
) -> None:
    content = (repository / name).read_bytes()
    (repository / name).write_bytes(content + b"?")
    with pytest.raises(ValueError, match=r"does not match the known hash|is not the published file"):
        stc.datasets.her2st("X1", mirror=server[0])
    assert not (tmp_path / "cache/her2st" / name).exists()
    (repository / name).write_bytes(content)
    assert set(stc.datasets.her2st("X1", mirror=server[0]).images) == {"X1_he"}


@pytest.mark.parametrize("known", [True, False], ids=["sha256", "git"])
def test_a_damaged_file_in_the_cache_is_downloaded_again(
    server: tuple[str, list[str]], repository: Path, tmp_path: Path, known: bool
) -> None:
    name = "data/ST-cnts/X1.tsv.gz"
    content = (repository / name).read_bytes()
    file = RemoteFile(name, git_blob(content), sha256(content) if known else "")
    path = fetch(file, source=server[0], cache=tmp_path / "c", progress=False)
    path.write_bytes(b"half of it")
    assert fetch(file, source=server[0], cache=tmp_path / "c", progress=False).read_bytes() == content


def test_a_server_that_cannot_be_reached_is_not_an_absent_image(repository: Path) -> None:
    with pytest.raises(OSError, match=r"Could not download http://127\.0\.0\.1:9/data.*STCONTRAST_DATA_MIRROR"):
        stc.datasets.her2st("X1", mirror="http://127.0.0.1:9")


def test_it_can_be_written_to_zarr_and_read(repository: Path, tmp_path: Path) -> None:
    sdata = stc.datasets.her2st(["X1", "Y1"], mirror=repository)
    sdata.write(tmp_path / "her2st.zarr")
    back = sd.read_zarr(tmp_path / "her2st.zarr")
    np.testing.assert_array_equal(sdata["table"].X.toarray(), back["table"].X.toarray())
    pd.testing.assert_frame_equal(sdata["table"].obs.astype(str), back["table"].obs.astype(str), check_dtype=False)
    assert back["table"].uns["stcontrast"]["um_per_px"] == {"X1": pytest.approx(5.0), "Y1": pytest.approx(5.0)}
    for scale in ("scale0", "scale2"):
        np.testing.assert_array_equal(sdata["X1_he"][scale]["image"].values, back["X1_he"][scale]["image"].values)


def test_the_registry_names_every_file_of_all_36_sections() -> None:
    registry = read_registry("her2st.tsv")
    sections = _her2st._choose(None, registry)
    assert len(sections) == 36
    assert {s[0] for s in sections} == set("ABCDEFGH")
    for section in sections:
        assert f"data/ST-spotfiles/{section}_selection.tsv" in registry
        assert sum(path.startswith(f"data/ST-imgs/{section[0]}/{section}/") for path in registry) == 1
    assert all(len(f.git_blob) == 40 and len(f.sha256) in (0, 64) for f in registry.values())
    assert sum("lbl" in path for path in registry) == 8


def test_real_files_match_the_registry() -> None:
    root = require("her2st", "data").parent
    paths = [f for f in read_registry("her2st.tsv").values() if (root / f.path).exists()]
    assert len(paths) > 70
    for file in paths:
        assert fetch(file, source=str(root), cache=root, progress=False) == root / file.path
        assert git_blob((root / file.path).read_bytes()) == file.git_blob


@pytest.mark.slow
def test_real_sections_agree_with_the_files_they_come_from() -> None:
    root = require("her2st", "data", "ST-cnts", "D5.tsv.gz").parents[2]
    table = stc.datasets.her2st(["D5", "G2"], mirror=root)["table"]
    totals = np.asarray(table.X.sum(axis=1)).ravel()
    for section in ("D5", "G2"):
        counts = pd.read_csv(root / f"data/ST-cnts/{section}.tsv.gz", sep="\t", index_col=0)
        spots = pd.read_csv(root / f"data/ST-spotfiles/{section}_selection.tsv", sep="\t")
        spots["id"] = [f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)]
        expected = spots.merge(counts.sum(axis=1).rename("total"), left_on="id", right_index=True)
        rows = (table.obs["slide"] == section).to_numpy()
        found = pd.Series(totals[rows], index=table.obs["spot_id"][rows].to_numpy())
        assert len(expected) == rows.sum()
        assert found.loc[expected["id"]].tolist() == expected["total"].tolist()
        gene = str(counts.sum().idxmax())
        column = np.ravel(table[rows, gene].X.toarray())
        assert column.tolist() == counts.loc[table.obs["spot_id"][rows], gene].tolist()
        centres = pd.DataFrame(table.obsm["spatial"][rows], index=found.index).loc[expected["id"]]
        np.testing.assert_array_equal(centres, expected[["pixel_x", "pixel_y"]])
    assert (totals == 0).sum() == 1

    labels = pd.read_csv(root / "data/ST-pat/lbl/G2_labeled_coordinates.tsv", sep="\t").dropna(subset=["x"])
    class_at = {(round(x), round(y)): c for x, y, c in labels[["x", "y", "label"]].itertuples(index=False)}
    for _, spot in table.obs[table.obs["slide"] == "G2"].iterrows():
        expected_class = class_at[spot["array_x"], spot["array_y"]]
        assert pd.isna(spot["subtype"]) if expected_class == "undetermined" else spot["subtype"] == expected_class
    for value in table.uns["stcontrast"]["um_per_px"].values():
        assert 0.68 < value < 0.70


@pytest.mark.slow
def test_a_real_image_has_tissue_under_the_spots() -> None:
    root = require("her2st", "data", "ST-imgs", "C", "C2").parents[3]
    sdata = stc.datasets.her2st("C2", mirror=root)
    image = sdata["C2_he"]["scale3"]["image"].values.astype(float)
    x, y = (sdata["table"].obsm["spatial"] / 8).astype(int).T
    absorbed = image.max() - image.mean(axis=0)
    assert np.median(absorbed[y, x]) > 3 * np.median(absorbed)

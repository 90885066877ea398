"""From an instrument's folder to predictions, by the code of the guide, on what the readers really bring."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import spatialdata_io
from PIL import Image

import stcontrast as stc
from stcontrast._records import read_record
from tests.journeys import folders
from tests.journeys.guide import direct_crops, follow

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

SAMPLES = {"S1": "C4", "S2": "C5", "S3": "C6"}


@pytest.fixture(scope="module")
def visium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples of Visium, and a scan without spots."""
    folder = tmp_path_factory.mktemp("visium")
    folders.visium(folder, SAMPLES)
    folders.scan(folder / "new_HE.tif")
    return folder


def positions(folder: Path, name: str, barcodes: Any) -> NDArray[np.float64]:
    """Centres of spots in pixels of the scan, from Space Ranger's own file."""
    table = pd.read_csv(folder / name / "outs/spatial/tissue_positions.csv", index_col=0).loc[list(barcodes)]
    return table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(float)


def check_crops(
    data: Any, pixels: NDArray[np.uint8], centers: NDArray[np.float64], *, um_per_px: float, fields_um: tuple[float, ...],
    tolerance: float = 4.0, **keys: Any,
) -> None:  # fmt: skip
    """Crops have to be what direct cutting from the scan gives, for spots whose crop lies inside of it."""
    for field in fields_um:
        half = field / um_per_px / 2
        reach = 1.1 * half + 1
        inside = ((centers > reach) & (centers < np.array(pixels.shape[1::-1]) - reach)).all(axis=1)
        assert inside.sum() >= 8
        found = stc.pp.crops(data, field_um=field, size_px=8, **keys)[inside].astype(float)
        expected = direct_crops(pixels, centers[inside], field_px=2 * half, size_px=8).astype(float)
        assert np.abs(found - expected).mean() < tolerance
        # a shift of a tenth of the field is seen
        moved = direct_crops(pixels, centers[inside] + [0.1 * half, 0], field_px=2 * half, size_px=8).astype(float)
        assert np.abs(found - moved).mean() > 1.2 * np.abs(found - expected).mean()


def check_prediction(table: AnnData, again: AnnData, *, n_obs: int) -> None:
    """A prediction is finite, differs between spots, and is the same after a round trip through a file."""
    values = np.asarray(table.X)
    assert values.shape[0] == n_obs
    assert np.isfinite(values).all()
    assert values.std(axis=0).max() > 0.05
    np.testing.assert_array_equal(np.asarray(again.X), values)
    np.testing.assert_array_equal(np.asarray(again.obsm["spatial"]), np.asarray(table.obsm["spatial"]))
    then, now = (read_record(one, "prediction") for one in (table, again))
    assert then is not None
    assert then == now


@pytest.mark.slow
def test_visium_with_the_scan(visium: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(visium)
    found = follow("Visium with the full-resolution scan")
    for name in SAMPLES:
        pixels = folders.he_of(visium / f"{name}/{name}_HE.tif")
        table = found["slides"][name]["table"]
        centers = positions(visium, name, table.obs_names)
        # as the reader left it, of one task
        check_crops(found["slides"][name], pixels, centers, um_per_px=0.7, fields_um=(11.2, 100.0, 200.0))
    assert found["sdata"]["table"].obs_names.is_unique
    apart = [found["slides"][name]["table"].obsm["X_image"] for name in SAMPLES]
    np.testing.assert_array_equal(found["sdata"]["table"].obsm["X_image"], np.concatenate(apart))
    assert found["model"].spec["spot_distance_um"] == pytest.approx(100, rel=0.01)
    check_prediction(found["new"]["stc_pred"], found["again"]["stc_pred"], n_obs=found["new"]["table"].n_obs)
    check_crops(
        found["again"], folders.he_of(visium / "new_HE.tif"), found["again"]["table"].obsm["spatial"], um_per_px=0.7,
        fields_um=(100.0,),
    )  # fmt: skip
    assert np.isfinite(found["new"]["stc_pred"].uns["moranI"]["I"]).all()


@pytest.mark.slow
def test_visium_hires_only(visium: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(visium)
    found = follow("Visium with the hires image only")
    assert "only the hires image 'S1_hires_image' is there, 1.75 µm per pixel" in caplog.text
    for slide, name in zip(found["slides"], SAMPLES, strict=True):
        pixels = folders.he_of(visium / f"{name}/{name}_HE.tif")
        centers = positions(visium, name, slide["table"].obs_names)
        # a field of 8 × 8 pixels of the hires image, and coarser ones
        check_crops(slide, pixels, centers, um_per_px=0.7, fields_um=(56.0, 200.0), tolerance=6.0)
    check_prediction(
        found["slides"][2]["stc_pred"], found["again"]["stc_pred"], n_obs=found["slides"][2]["table"].n_obs
    )


@pytest.mark.slow
def test_visium_as_anndata(visium: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(visium)
    found = follow("Visium as AnnData")
    for slide, name in zip(found["slides"], SAMPLES, strict=True):
        pixels = folders.he_of(visium / f"{name}/{name}_HE.tif")
        centers = positions(visium, name, slide.obs_names)
        check_crops(slide, pixels, centers, um_per_px=0.7, fields_um=(56.0, 200.0), tolerance=6.0)
    check_prediction(found["predicted"], found["again"], n_obs=found["slides"][2].n_obs)
    apart = [stc.pp.image_features(slide, encoder="color", field_um=(200, 400)) or slide.obsm["X_image"] for slide in found["slides"][:2]]  # fmt: skip
    np.testing.assert_array_equal(found["joined"].obsm["X_image"], np.concatenate(apart))


@pytest.mark.slow
def test_visium_hd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    folders.visium_hd(tmp_path, {"HD1": "C4", "HD2": "C5"})
    found = follow("Visium HD")
    for name, slide in found["slides"].items():
        pixels = folders.he_of(tmp_path / f"{name}/{name}_tissue_image.tif")
        for bins in ("008", "016"):
            table = slide[f"square_{bins}um"]
            file = tmp_path / f"{name}/binned_outputs/square_{bins}um/spatial/tissue_positions.parquet"
            at = pd.read_parquet(file).set_index("barcode").loc[table.obs_names]
            check_crops(
                slide, pixels, at[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(), um_per_px=0.7,
                fields_um=(11.2, 64.0), table_key=f"square_{bins}um",
            )  # fmt: skip
    assert "neighbouring spots are 8 µm apart, and 16 µm on the slides that the model was trained on" in caplog.text
    slide = found["slides"]["HD2"]
    check_prediction(slide["stc_pred"], found["again"]["stc_pred"], n_obs=slide["square_016um"].n_obs)
    check_prediction(slide["pred_8um"], found["again"]["pred_8um"], n_obs=slide["square_008um"].n_obs)


@pytest.mark.slow
def test_xenium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    cells = {name: folders.xenium(tmp_path / name, seed=i)[1] for i, name in enumerate(["X1", "X2", "X3"])}
    found = follow("Xenium")
    samples = {**found["samples"], "X3": found["new"]}
    for name, slide in samples.items():
        pixels = folders.he_of(tmp_path / name / "slide_he_image.ome.tif")
        check_crops(slide, pixels, cells[name], um_per_px=0.7, fields_um=(11.2, 50.0))
    # joined: every sample its own H&E, and the same scale
    both = stc.pp.crops(found["cells"], field_um=50, size_px=8)
    apart = [stc.pp.crops(slide, field_um=50, size_px=8) for slide in found["samples"].values()]
    np.testing.assert_array_equal(both, np.concatenate(apart))
    check_prediction(found["new"]["stc_pred"], found["again"]["stc_pred"], n_obs=240)


@pytest.fixture(scope="module")
def in_xenium(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder of Xenium, and the centres of its cells in the H&E."""
    folder = tmp_path_factory.mktemp("xenium") / "X1"
    return folder, folders.xenium(folder)[1]


def read_xenium(folder: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return spatialdata_io.xenium(folder, transcripts=False, nucleus_labels=False, **options)


def test_a_table_of_xenium_that_annotates_labels_works(in_xenium: tuple[Path, Any]) -> None:
    folder, centers = in_xenium
    pixels = folders.he_of(folder / "slide_he_image.ome.tif")
    check_crops(read_xenium(folder), pixels, centers, um_per_px=0.7, fields_um=(50.0,))


@pytest.mark.situation("Images", "A Xenium object without aligned H&E", "error", "that is H&E")
@pytest.mark.parametrize("options", [{}, {"cells_as_circles": True}], ids=["annotates labels", "annotates circles"])
def test_fluorescence_alone_is_refused(in_xenium: tuple[Path, Any], options: dict[str, bool]) -> None:
    sdata = read_xenium(in_xenium[0], aligned_images=False, **options)
    with pytest.raises(ValueError, match=r"that is H&E.*'morphology_focus' is not RGB \(channels \['DAPI'"):
        stc.pp.image_features(sdata, um_per_px=0.2125)
    assert "X_image" not in sdata["table"].obsm


@pytest.mark.situation(
    "µm per pixel", "A given scale contradicts the shapes of Xenium, which are in µm", "warning", "but shapes of Xenium"
)
def test_the_pixels_of_the_stains_given_for_those_of_the_he_are_warned_of(
    in_xenium: tuple[Path, Any], caplog: pytest.LogCaptureFixture
) -> None:
    stc.pp.crops(read_xenium(in_xenium[0]), field_um=50, size_px=8, um_per_px=0.2125)
    assert (
        "0.2125 µm per pixel (`um_per_px`), but shapes of Xenium ('cell_boundaries'), which are in µm gives 0.7"
        in caplog.text
    )


@pytest.mark.situation(
    "Tables, shapes and images",
    "A Xenium object was read without shapes",
    "error",
    "Read Xenium with `cells_as_circles=True`",
)
def test_xenium_without_outlines_says_how_to_read_it(in_xenium: tuple[Path, Any]) -> None:
    with pytest.raises(ValueError, match="Read Xenium with `cells_as_circles=True`"):
        stc.pp.crops(
            read_xenium(in_xenium[0], cells_boundaries=False, nucleus_boundaries=False), field_um=50, size_px=8
        )


@pytest.mark.slow
def test_legacy_st(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    folders.legacy(tmp_path, {"L1": "1", "L2": "2"})
    found = follow("Legacy ST from text files")
    assert "from a legacy ST lattice (200 µm pitch)" in caplog.text
    for name, slide in zip(["L1", "L2"], found["slides"], strict=True):
        pixels = np.asarray(Image.open(tmp_path / f"{name}_HE.jpg").convert("RGB"))
        spots = pd.read_csv(tmp_path / f"{name}_spots.tsv", sep="\t")
        centers = spots[["pixel_x", "pixel_y"]].to_numpy()
        check_crops(slide, pixels, centers, um_per_px=0.7, fields_um=(11.2, 100.0))
    check_prediction(
        found["slides"][1]["stc_pred"], found["again"]["stc_pred"], n_obs=found["slides"][1]["table"].n_obs
    )

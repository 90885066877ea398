from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from spatialdata.transformations import Identity, Scale

import stcontrast as stc
from stcontrast._reading import (
    image_of_element,
    resolve_slides,
    slide_element,
    slide_image,
    slide_name,
    slide_um_per_px,
    tiles_alone,
)
from stcontrast._reading import wsi as _wsi
from tests.slide_files import halved, write_slide
from tests.synthetic import circles, hexagonal, picture, points, slide, smooth_picture, table

if TYPE_CHECKING:
    from pathlib import Path

wsidata = pytest.importorskip("wsidata", reason="wsidata is not installed")

PIXELS = np.concatenate([smooth_picture(320), picture(320, 100)], axis=1)
CENTERS = points(25, *PIXELS.shape[:2])


@pytest.fixture(autouse=True)
def _many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wsi, "TILE_PX", 96)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "a slide.tiff", [PIXELS, halved(PIXELS), halved(halved(PIXELS))], um_per_px=0.5)


def opened(file: Path, centers: np.ndarray = CENTERS, *, to: Any = None, **options: Any) -> Any:
    wsi = wsidata.open_wsi(file, store=None, **options)
    wsi.shapes["spots"] = circles(centers, {"global": to or Identity()})
    wsi.tables["table"] = table({"spots": np.arange(len(centers))}, um_per_px=None)
    return wsi


def test_a_file_gives_the_same_crops_as_its_pixels_in_memory(tmp_path: Path) -> None:
    plain = slide(PIXELS, CENTERS, name="spots", um_per_px=0.5, scale_factors=[2, 2])
    levels = [np.moveaxis(level.compute(), 0, -1) for level in image_of_element(plain["spots_he"], "he").levels]
    wsi = opened(write_slide(tmp_path / "same.tiff", levels, um_per_px=0.5))
    for field_um in (17.3, 40.0, 150.0):
        np.testing.assert_array_equal(
            stc.pp.crops(wsi, field_um=field_um, size_px=32), stc.pp.crops(plain, field_um=field_um, size_px=32)
        )


def test_every_level_is_read_whole_and_in_place(tmp_path: Path) -> None:
    odd = PIXELS[:301, :403]
    levels = [odd, halved(odd), halved(halved(odd))]
    wsi = wsidata.open_wsi(write_slide(tmp_path / "odd.tiff", levels, um_per_px=0.5), store=None)
    image = slide_image(wsi)
    assert image is not None
    assert image.downsampling == (1.0, 2.0, 4.0)
    assert image.levels[0].chunks[1:] == ((96, 96, 96, 13), (96, 96, 96, 96, 19))
    for i, (level, pixels) in enumerate(zip(image.levels, levels, strict=True)):
        read = np.moveaxis(level.compute(), 0, -1)
        assert read.shape == pixels.shape
        # the file's factors are 2.006 and 4.014: the tiles behind the first are read that bit beside the pixel
        np.testing.assert_array_equal(read[:96, :96], pixels[:96, :96])
        if i == 0:
            np.testing.assert_array_equal(read, pixels)


def test_features_of_a_file(tmp_path: Path) -> None:
    wsi = opened(write_slide(tmp_path / "one level.tiff", [PIXELS], um_per_px=0.5))
    plain = slide(PIXELS, CENTERS, name="spots", um_per_px=0.5)
    for sdata in (wsi, plain):
        stc.pp.image_features(sdata, encoder="color", field_um=16)
    np.testing.assert_array_equal(wsi["table"].obsm["X_image"], plain["table"].obsm["X_image"])
    assert wsi["table"].uns["stcontrast"]["image_features"]["um_per_px"] == {"spots": 0.5}


def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path: Path) -> None:
    colors = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    levels = [np.full((512 >> i, 512 >> i, 3), color, dtype=np.uint8) for i, color in enumerate(colors)]
    wsi = opened(write_slide(tmp_path / "levels.tiff", levels, um_per_px=0.5), np.array([[256.0, 256.0]]))
    for field_um, color in ((31, colors[0]), (33, colors[1]), (65, colors[2])):
        crop = stc.pp.crops(wsi, field_um=field_um, size_px=32)
        np.testing.assert_array_equal(crop.reshape(-1, 3), np.tile(color, (32 * 32, 1)))


def test_shapes_are_placed_by_their_way_to_global(file: Path) -> None:
    there = resolve_slides(opened(file, CENTERS / 4, to=Scale([4.0, 4.0], axes=("x", "y")))).slides[0]
    np.testing.assert_allclose(there.centers, CENTERS)
    assert there.coordinate_system == "global"


def test_the_scale_of_the_file_comes_after_what_is_given_or_stored(file: Path) -> None:
    wsi = opened(file, 20 + hexagonal(5, 5, pitch=50.0))

    def scale(**given: Any) -> float | None:
        return resolve_slides(wsi, **given).slides[0].um_per_px

    assert scale() == 0.5  # and not 2, which the lattice would say
    assert scale(um_per_px=0.7) == 0.7
    assert scale(spot_diameter_um=55) == 5.5
    wsi["table"].uns["stcontrast"] = {"um_per_px": {"spots": 0.9}}
    assert scale() == 0.9
    del wsi["table"].uns["stcontrast"]
    wsi.set_mpp(0.25)
    assert scale() == 0.25


@pytest.mark.parametrize("um_per_px", [None, 25400 / 72])
def test_a_file_that_knows_no_scale(tmp_path: Path, um_per_px: float | None, caplog: pytest.LogCaptureFixture) -> None:
    wsi = opened(write_slide(tmp_path / "a.tiff", [PIXELS], um_per_px=um_per_px))
    with pytest.raises(ValueError, match=r"µm per pixel is unknown for \['spots'\]"):
        stc.pp.crops(wsi, field_um=20, size_px=16)
    assert ("352.8 µm per pixel, which no microscope has (72 dots per inch" in caplog.text) == (um_per_px is not None)


def test_what_wsidata_attaches_of_the_slide_is_not_taken_for_it(file: Path) -> None:
    wsi = opened(file, attach_images=True, attach_thumbnail=True)
    assert sorted(wsi.images) == ["wsi", "wsi_thumbnail"]
    found = resolve_slides(wsi).slides[0]
    assert found.image is not None
    assert (found.image.name, found.um_per_px) == ("a slide.tiff", 0.5)
    asked = resolve_slides(wsi, image_key="wsi_thumbnail").slides[0]
    assert asked.image is not None
    assert (asked.image.name, asked.um_per_px) == ("wsi_thumbnail", None)
    by_name = resolve_slides(wsi, image_key="a slide.tiff").slides[0]
    assert by_name.image is not None
    assert by_name.image.name == "a slide.tiff"
    with pytest.raises(KeyError, match=r"its images are \['a slide.tiff', 'wsi', 'wsi_thumbnail'\]"):
        resolve_slides(wsi, image_key="he")


def test_an_image_element_under_spots_that_the_slide_does_not_hold(file: Path) -> None:
    wsi = opened(file)
    away = slide(PIXELS, CENTERS)
    wsi.images["s1_he"], wsi.shapes["s1"] = away["s1_he"], away["s1"]
    wsi.tables["of_s1"] = away["table"]
    found = resolve_slides(wsi, table_key="of_s1", um_per_px=1.0).slides[0]
    assert found.image is not None
    assert found.image.name == "s1_he"


def test_a_slide_in_memory_is_its_own_image() -> None:
    plain = slide(PIXELS, CENTERS, um_per_px=None)
    wsi = wsidata.open_wsi(plain, image_key="s1_he")
    wsi.set_mpp(0.25)
    found = resolve_slides(wsi).slides[0]
    assert found.image is not None
    assert (found.image.name, found.um_per_px) == ("s1_he", 0.25)
    assert (slide_element(wsi), slide_image(wsi), slide_name(wsi)) == ({}, None, "s1_he")


def test_another_spatialdata_has_no_slide_file() -> None:
    plain = slide(PIXELS, CENTERS)
    assert (slide_element(plain), slide_image(plain), slide_name(plain)) == ({}, None, None)
    assert slide_um_per_px(plain) is None


def test_pixels_travel_without_the_open_file(file: Path) -> None:
    wsi = opened(file)
    image = slide_image(wsi)
    assert image is not None
    image.levels[0][:, :8, :8].compute()  # a file is open now
    sent = pickle.dumps(image)
    assert len(sent) < 50_000
    wsi.close()
    del wsi, image
    arrived = pickle.loads(sent)
    pixels = arrived.levels[0].compute(scheduler="threads", num_workers=8)
    np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1), PIXELS)


def test_a_file_that_is_gone(file: Path) -> None:
    wsi = opened(file)
    file.rename(file.with_name("moved.tiff"))
    with pytest.raises(FileNotFoundError, match=r"a slide\.tiff' of the WSIData is gone.*wsidata\.open_wsi"):
        stc.pp.crops(wsi, field_um=20, size_px=16)


def test_tiles_alone_leave_the_slide_as_it_is(file: Path) -> None:
    wsi = opened(file)
    wsi.set_mpp(0.25)
    attrs = {**wsi.attrs}
    alone = tiles_alone(wsi, "spots")
    assert (sorted(alone.shapes), sorted(alone.tables)) == (["spots"], ["table"])
    assert alone["table"].shape == (25, 0)
    assert resolve_slides(alone).slides[0].um_per_px == 0.25
    assert sorted(wsi.tables) == ["table"]
    assert wsi["table"].n_vars == 3
    assert wsi.attrs == attrs
    with pytest.raises(KeyError, match=r"No tiles 'tiles' .* its shapes are \['spots'\]"):
        tiles_alone(wsi, "tiles")
    with pytest.raises(TypeError, match=r"Expected a WSIData \(`wsidata\.open_wsi`\), found SpatialData"):
        tiles_alone(slide(PIXELS, CENTERS), "s1")


def test_a_grid_on_the_tissue_of_a_file(tmp_path: Path) -> None:
    pixels = np.full((640, 800, 3), 240, dtype=np.uint8)
    pixels[160:480, 200:600] = (170, 90, 150)
    wsi = wsidata.open_wsi(write_slide(tmp_path / "my slide.tiff", [pixels, halved(pixels)], um_per_px=0.5), store=None)
    stc.pp.tissue_grid(wsi, pitch_um=20, spot_diameter_um=10)
    centers = np.asarray(wsi["table"].obsm["spatial"])
    assert (centers > (195, 155)).all()
    assert (centers < (605, 485)).all()
    # 200 × 160 µm of tissue, a spot on every 20² × √3/2
    assert len(centers) == pytest.approx(200 * 160 / (20**2 * np.sqrt(0.75)), rel=0.1)
    stc.pp.image_features(wsi, field_um=20)
    assert wsi["table"].obsm["X_image"].shape == (len(centers), 63)
    assert wsi["table"].uns["stcontrast"]["um_per_px"] == {"my_slide_spots": 0.5}

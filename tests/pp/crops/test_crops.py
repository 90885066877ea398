from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import spatialdata as sd
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.transformations import Affine, Identity, Scale, Translation

import stcontrast as stc
from stcontrast._reading import image_from_array
from stcontrast.pp._crops import background_color
from tests.real_data import require
from tests.slides import olfactory_bulb
from tests.synthetic import circles, image, picture, points, polygons, slide, smooth_picture, table, visium_adata

if TYPE_CHECKING:
    from pathlib import Path

AXES = ("x", "y")
PICTURE = picture()
# whole pixels, some of them at the border
CENTERS = np.array([[40, 50], [3, 4], [125, 90], [64, 48], [100, 10], [20, 80]], dtype=float)


def beyond(pixels: np.ndarray) -> np.ndarray:
    return background_color(image_from_array(pixels, "he"))


def sliced(pixels: np.ndarray, centers: np.ndarray, half: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    board = np.tile(beyond(pixels), (height + 2 * half, width + 2 * half, 1))
    board[half : half + height, half : half + width] = pixels[..., :3]
    return np.stack([board[y : y + 2 * half, x : x + 2 * half] for x, y in centers.astype(int)])


def test_a_crop_is_the_square_around_the_spot() -> None:
    found = stc.pp.crops(slide(PICTURE, CENTERS), field_um=20, size_px=20)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, sliced(PICTURE, CENTERS, 10))
    assert (found[1, :6, :7] == beyond(PICTURE)).all()


@pytest.mark.parametrize("um_per_px", [0.25, 0.5, 4.0])
def test_the_side_is_true_in_um(um_per_px: float) -> None:
    expected = sliced(PICTURE, CENTERS, 10)
    given_ = stc.pp.crops(slide(PICTURE, CENTERS), field_um=20 * um_per_px, size_px=20, um_per_px=um_per_px)
    stored = stc.pp.crops(slide(PICTURE, CENTERS, um_per_px=um_per_px), field_um=20 * um_per_px, size_px=20)
    np.testing.assert_array_equal(given_, expected)
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize("size_px", [16, 24])
def test_the_resolution_of_the_scan_hardly_matters(size_px: int) -> None:
    fine = smooth_picture(256)
    coarse = fine.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    centers = 40 + 176 * points(12, 96, 96) / 96
    from_fine = stc.pp.crops(slide(fine, centers), field_um=48, size_px=size_px, um_per_px=1.0).astype(int)
    from_coarse = stc.pp.crops(slide(coarse, centers / 2), field_um=48, size_px=size_px, um_per_px=2.0)
    assert np.abs(from_fine - from_coarse).max() <= 6
    assert from_fine.std() > 20


@settings(max_examples=12)
@given(st.permutations(range(6)), st.booleans())
def test_crops_come_in_the_order_of_the_table(order: list[int], with_b_first: bool) -> None:
    names = ["B", "A"] if with_b_first else ["A", "B"]
    here = {name: {f"of {name}": Identity()} for name in names}
    pixels = {name: picture(seed=seed) for seed, name in enumerate("AB")}
    rows = table({name: np.arange(6) for name in names})
    rows = rows[np.concatenate([order, 6 + np.arange(6)])[np.argsort(np.arange(12) % 6, kind="stable")]].copy()
    sdata = SpatialData(
        images={f"{name}_he": image(pixels[name], here[name]) for name in names},
        shapes={name: circles(CENTERS, here[name]) for name in names},
        tables={"table": rows},
    )
    found = stc.pp.crops(sdata, field_um=8, size_px=8)
    cut = {name: sliced(pixels[name], CENTERS, 4) for name in names}
    expected = [cut[region][i] for region, i in zip(rows.obs["region"], rows.obs["spot_id"], strict=True)]
    np.testing.assert_array_equal(found, np.stack(expected))


def test_circles_and_squares_of_one_place_give_one_crop() -> None:
    here = {"s1": Identity()}
    sdata = slide(PICTURE, CENTERS)
    squares = SpatialData(
        images=dict(sdata.images), shapes={"s1": polygons(CENTERS, here)}, tables={"table": sdata["table"]}
    )
    np.testing.assert_array_equal(
        stc.pp.crops(squares, field_um=20, size_px=20), stc.pp.crops(sdata, field_um=20, size_px=20)
    )


def test_a_transformation_moves_centres_and_not_crops() -> None:
    # a quarter turn, half the size, moved
    turn = Affine([[0, -0.5, 300], [0.5, 0, 20], [0, 0, 1]], input_axes=AXES, output_axes=AXES)
    in_system = np.column_stack([300 - 0.5 * CENTERS[:, 1], 20 + 0.5 * CENTERS[:, 0]])
    sdata = SpatialData(
        images={"he": image(PICTURE, {"um": turn})},
        shapes={"s1": circles(in_system - [7, 9], {"um": Translation([7.0, 9.0], axes=AXES)})},
        tables={"table": table({"s1": np.arange(6)}, um_per_px=0.5)},
    )
    np.testing.assert_array_equal(stc.pp.crops(sdata, field_um=10, size_px=20), sliced(PICTURE, CENTERS, 10))


@pytest.mark.parametrize(
    "convert",
    [
        lambda p: np.dstack([p, np.zeros(p.shape[:2], dtype=np.uint8)]),
        lambda p: p.astype(np.uint16) * 257,
        lambda p: p.astype(np.float32) / 255,
    ],
    ids=["RGBA", "uint16", "float"],
)
def test_other_images_give_the_same_crops(convert: Any) -> None:
    found = stc.pp.crops(slide(convert(PICTURE), CENTERS), field_um=20, size_px=20)
    np.testing.assert_array_equal(found, sliced(PICTURE, CENTERS, 10))


@pytest.mark.parametrize("scale_factors", [None, [2, 2]], ids=["single scale", "multiscale"])
def test_an_image_on_disk_gives_the_same_crops(scale_factors: list[int] | None, tmp_path: Path) -> None:
    pixels = smooth_picture(128)
    centers = points(10, 128, 128)
    sdata = slide(pixels, centers, scale_factors=scale_factors)
    sdata.write(tmp_path / "x.zarr")
    stored = sd.read_zarr(tmp_path / "x.zarr")
    for field_um, size_px in ((20, 20), (30.5, 12), (64, 8)):
        in_memory = stc.pp.crops(sdata, field_um=field_um, size_px=size_px).astype(int)
        found = stc.pp.crops(stored, field_um=field_um, size_px=size_px)
        np.testing.assert_array_equal(found, in_memory)


def test_a_coarse_level_stands_for_the_finest() -> None:
    centers = points(10, 128, 128)
    one, many = (slide(smooth_picture(128), centers, scale_factors=factors) for factors in (None, [2]))
    coarse, fine = (stc.pp.crops(sdata, field_um=64, size_px=8).astype(int) for sdata in (many, one))
    # at the border, what lies there is averaged otherwise
    assert np.abs(coarse - fine).mean() < 2


def test_the_image_that_is_named_is_cut() -> None:
    sdata = slide(PICTURE, CENTERS)
    sdata["other"] = image(255 - PICTURE[::2, ::2], {"s1": Scale([2.0, 2.0], axes=AXES)})
    found = stc.pp.crops(sdata, field_um=20, size_px=10, um_per_px=2.0, image_key="other")
    even = (CENTERS % 2 == 0).all(axis=1)
    np.testing.assert_array_equal(found[even], sliced(255 - PICTURE[::2, ::2], CENTERS[even] / 2, 5))


def test_scanpy_visium_is_cut_like_any_other() -> None:
    adata = visium_adata(PICTURE.astype(np.float32) / 255, CENTERS * 4, factor=0.25)
    found = stc.pp.crops(adata, field_um=40, size_px=20, um_per_px=2.0)
    np.testing.assert_array_equal(found, sliced(PICTURE, CENTERS, 10))


@pytest.mark.parametrize(("field_um", "size_px"), [(0, 8), (-5.0, 8), (float("nan"), 8), (float("inf"), 8), (10, 0)])
def test_sides_must_be_positive(field_um: float, size_px: int) -> None:
    with pytest.raises(ValueError, match=r"`(field_um|size_px)` must be"):
        stc.pp.crops(slide(PICTURE, CENTERS), field_um=field_um, size_px=size_px)


def test_a_slide_without_image_or_scale_is_an_error() -> None:
    sdata = slide(PICTURE, CENTERS, um_per_px=None)
    with pytest.raises(ValueError, match="Give `um_per_px`"):
        stc.pp.crops(sdata, field_um=20, size_px=20)
    del sdata.images["s1_he"]
    with pytest.raises(ValueError, match="No image lies under the spots"):
        stc.pp.crops(sdata, field_um=20, size_px=20)


def test_toy_slides_are_placed_in_different_ways_and_cut_alike() -> None:
    # shapes of the toy slides are scaled or moved against the image; obsm["spatial"] is in pixels
    sdata = stc.datasets.toy(n_donors=3, n_spots=12, n_genes=9)
    adata = sdata["table"]
    found = stc.pp.crops(sdata, field_um=40, size_px=40)
    for name in sdata.shapes:
        rows = np.flatnonzero(adata.obs["region"] == name)
        pixels = np.moveaxis(np.asarray(sdata[f"{name}_he"]["scale0"]["image"]), 0, -1)
        expected = sliced(pixels, np.round(adata.obsm["spatial"][rows]), 20).astype(int)
        # centres are not whole pixels here
        assert np.abs(found[rows] - expected).mean() < 0.4 * np.abs(found[rows] - np.roll(expected, 3, axis=2)).mean()


def test_real_slides_spots_are_where_they_are_said_to_be() -> None:
    sdata = olfactory_bulb(require("olfactory_bulb"), 1)
    found = stc.pp.crops(sdata, field_um=100, size_px=36)
    pixels = np.moveaxis(np.asarray(sdata["Rep01_he"]["scale0"]["image"]), 0, -1)
    expected = sliced(pixels, np.round(sdata["table"].obsm["spatial"]), 18)
    assert found.shape == (267, 36, 36, 3)
    levels = np.array([[crop.mean() for crop in cut] for cut in (found, expected)])
    assert np.abs(levels[0] - levels[1]).max() < 3

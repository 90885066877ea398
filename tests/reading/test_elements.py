from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation, set_transformation

from stcontrast._reading import image_from_array, image_of_element, images_over, rgb_size, shape_centers
from stcontrast._reading.elements import OF_FILE, why_no_image
from tests.synthetic import circles, image, picture, points, polygons

if TYPE_CHECKING:
    from pathlib import Path

AXES = ("x", "y")
PICTURE = picture()

finite = st.floats(-500, 500)
factor = st.floats(0.05, 20)
angle = st.floats(0, 2 * np.pi)


def affine(matrix: np.ndarray) -> Affine:
    return Affine(matrix, input_axes=AXES, output_axes=AXES)


def similarity(scale: float, turn: float, x: float, y: float) -> np.ndarray:
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    return np.array([[c, -s, x], [s, c, y], [0, 0, 1]])


def moved(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    return (np.column_stack([xy, np.ones(len(xy))]) @ matrix.T)[:, :2]


def one(centers: np.ndarray, *, shapes_to: dict[str, Any], **images_to: dict[str, Any]) -> SpatialData:
    return SpatialData(
        images={name: image(PICTURE, to) for name, to in images_to.items()}, shapes={"s1": circles(centers, shapes_to)}
    )


def test_circles_have_centres_and_diameters() -> None:
    xy = points(5)
    centers, diameters = shape_centers(circles(xy, {"s": Identity()}, radius=3.5))
    np.testing.assert_array_equal(centers, xy)
    np.testing.assert_array_equal(diameters, np.full(5, 7.0))


def test_squares_have_centres_and_sides() -> None:
    xy = points(5)
    centers, diameters = shape_centers(polygons(xy, {"s": Identity()}, side=8.0))
    np.testing.assert_allclose(centers, xy)
    np.testing.assert_allclose(diameters, 8.0)


def test_a_column_called_radius_makes_no_circle_of_a_square() -> None:
    squares = polygons(points(5), {"s": Identity()}, side=8.0)
    squares["radius"] = 100.0
    np.testing.assert_allclose(shape_centers(squares)[1], 8.0)


@settings(max_examples=30)
@given(factor, angle, finite, finite, factor, factor, angle, st.floats(-0.8, 0.8), finite, finite, st.booleans())
def test_spots_are_found_through_any_transformations(
    scale: float, turn: float, x: float, y: float, sx: float, sy: float, turn_2: float, shear: float, x_2: float,
    y_2: float, mirror: bool,
) -> None:  # fmt: skip
    image_matrix = similarity(scale, turn, x, y)
    shapes_matrix = similarity(1.0, turn_2, x_2, y_2) @ np.diag([-sx if mirror else sx, sy, 1.0])
    shapes_matrix = shapes_matrix @ np.array([[1, shear, 0], [0, 1, 0], [0, 0, 1]])
    pixels = points(8)
    centers = moved(np.linalg.inv(shapes_matrix), moved(image_matrix, pixels))
    sdata = one(centers, shapes_to={"here": affine(shapes_matrix)}, he={"here": affine(image_matrix)})
    found = images_over(sdata["s1"], "s1", centers, images=sdata.images)
    assert found is not None
    assert (found.name, found.coordinate_system) == ("he", "here")
    np.testing.assert_allclose(found.to_pixels(centers), pixels, atol=1e-5)
    assert found.pixels_per_unit == pytest.approx(np.sqrt(sx * sy) / scale)


def test_a_sequence_of_transformations_is_composed_in_order() -> None:
    to = Sequence([Scale([2.0, 2.0], axes=AXES), Translation([10.0, -4.0], axes=AXES)])
    xy = np.array([[30.0, 21.0], [40.0, 40.0]])
    sdata = one(xy, shapes_to={"here": Identity()}, he={"here": to})
    found = images_over(sdata["s1"], "s1", xy, images=sdata.images)
    assert found is not None
    np.testing.assert_allclose(found.to_pixels(xy), (xy - [10, -4]) / 2)


def test_the_shared_coordinate_system_is_used_whatever_its_name() -> None:
    xy = points(6)
    shapes_to = {"mine": Identity(), "other": Translation([1e4, 0], axes=AXES)}
    sdata = one(xy, shapes_to=shapes_to, he={"global": Translation([5, 5], axes=AXES), "mine": Identity()})
    found = images_over(sdata["s1"], "s1", xy, images=sdata.images)
    assert found is not None
    assert found.coordinate_system == "mine"
    np.testing.assert_allclose(found.to_pixels(xy), xy)


@pytest.mark.parametrize(
    ("shapes_to", "image_to"),
    [({"a": Identity()}, {"b": Identity()}), ({"a": Identity()}, {"a": Translation([500.0, 0], axes=AXES)})],
    ids=["no shared system", "elsewhere"],
)
def test_an_image_that_is_not_under_the_spots_is_not_theirs(shapes_to: dict, image_to: dict) -> None:
    xy = points(20)
    sdata = one(xy, shapes_to=shapes_to, he=image_to)
    assert images_over(sdata["s1"], "s1", xy, images=sdata.images) is None


@pytest.mark.parametrize(("outside", "found"), [(1, True), (2, False)])
def test_nearly_every_spot_must_lie_on_the_image(outside: int, found: bool) -> None:
    xy = points(20)
    xy[:outside] = -50
    here = {"here": Identity()}
    sdata = one(xy, shapes_to=here, he=here)
    assert (images_over(sdata["s1"], "s1", xy, images=sdata.images) is not None) is found


def opaque(pixels: np.ndarray) -> np.ndarray:
    """With a mask of transparency, a tenth of it clear."""
    alpha = np.full((*pixels.shape[:2], 1), 255, dtype=np.uint8)
    alpha[:, : pixels.shape[1] // 10] = 0
    return np.dstack([pixels, alpha])


@pytest.mark.situation(
    "Images", "Fluorescence or other images that are not H&E lie over the spots", "not used", "is not RGB"
)
@pytest.mark.parametrize(
    ("channels", "names"),
    [
        (1, None), (2, None), (5, None), (4, None), (3, ["DAPI", "18S", "AlphaSMA/Vimentin"]),
        (4, ["DAPI", "ATP1A1/CD45/E-Cadherin", "18S", "AlphaSMA/Vimentin"]), (4, ["r", "g", "b", "DAPI"]),
        (3, ["r", "g", "DAPI"]), (5, ["r", "g", "b", "0", "1"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("finer", [1.0, 0.5])
@pytest.mark.parametrize("levels", [None, [2]], ids=["one level", "pyramid"])
def test_fluorescence_is_not_taken_for_the_stain(
    channels: int, names: list[str] | None, finer: float, levels: list[int] | None
) -> None:
    # scverse/spatialdata-io#226, #311
    here, xy = {"here": Identity()}, points(6) / 2
    sdata = one(xy, shapes_to=here)
    fine = {"here": Scale([finer, finer], axes=AXES)}
    sdata["if"] = image(picture(192, 256, channels=channels), fine, names=names, scale_factors=levels)
    assert images_over(sdata["s1"], "s1", xy, images=sdata.images) is None
    named = "channels [0, 1" if names is None and channels > 1 else "channels"
    assert f"'if' is not RGB ({named}" in why_no_image(sdata["s1"], xy, images=sdata.images)
    sdata["he"] = image(opaque(PICTURE), here)
    found = images_over(sdata["s1"], "s1", xy, images=sdata.images)
    assert found is not None
    assert found.name == "he"


@pytest.mark.situation("Images", "Red, green and blue are in any order, with or without alpha", "works")
@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("rgb", ["r", "g", "b"]), ("rgb", ["Red", "Green", "Blue"]), ("bgr", ["b", "g", "r"]), ("gbr", ["G", "B", "R"]),
        ("rgb", ["c0", "c1", "c2"]), ("rgb", ["Channel:0:0", "Channel:0:1", "Channel:0:2"]), ("rgb", None),
        ("argb", ["alpha", "red", "green", "blue"]), ("rgba", ["r", "g", "b", "a"]), ("rgba", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("levels", [None, [2]], ids=["one level", "pyramid"])
def test_colours_are_found_by_the_names_of_their_channels(
    order: str, names: list[str] | None, levels: list[int] | None
) -> None:
    pixels = opaque(PICTURE)
    element = image(
        pixels[..., ["rgba".index(color) for color in order]], {"a": Identity()}, names=names, scale_factors=levels
    )
    assert rgb_size(element) == PICTURE.shape[:2]
    found = image_of_element(element, "he").levels[0]
    np.testing.assert_array_equal(np.moveaxis(found.compute(), 0, -1), PICTURE)


def test_why_an_image_is_not_taken() -> None:
    xy = points(20)
    xy[:5] = -50
    sdata = one(
        xy, shapes_to={"a": Identity()}, near={"a": Identity()}, away={"a": Translation([900.0, 0.0], axes=AXES)},
        other={"b": Identity()},
    )  # fmt: skip
    said = why_no_image(sdata["s1"], xy, images=sdata.images)
    assert said == (
        "75% of the spots lie on 'near'; 0% of the spots lie on 'away'; 'other' shares no coordinate system with the spots"
    )


@pytest.mark.situation(
    "Images", "Several RGB images lie under the spots", "warning", "is used, because it is finer than"
)
def test_the_finest_image_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    xy = points(6) / 4
    sdata = one(
        xy, shapes_to={"a": Identity()}, low={"a": Scale([0.9, 0.9], axes=AXES)},
        full={"a": Scale([0.25, 0.25], axes=AXES)}, mid={"a": Scale([0.5, 0.5], axes=AXES)},
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="stcontrast"):
        found = images_over(sdata["s1"], "s1", xy, images=sdata.images)
    assert found is not None
    assert found.name == "full"
    assert "'full' is used, because it is finer than ['low', 'mid']" in caplog.text
    named = images_over(sdata["s1"], "s1", xy, images={"mid": sdata["mid"]})
    assert named is not None
    assert named.name == "mid"


def test_of_equal_images_the_name_decides() -> None:
    here, xy = {"global": Identity()}, points(6)
    sdata = one(xy, shapes_to=here, s10_he=here, s1_he=here, xs1=here)
    found = images_over(sdata["s1"], "s1", xy, images=sdata.images)
    assert found is not None
    assert found.name == "s1_he"


@pytest.mark.situation(
    "Images", "Several images of the same resolution lie under the spots", "error", "same resolution"
)
@pytest.mark.parametrize("names", [("a", "b"), ("s10", "s1b"), ("s1_he", "s1_if")])
def test_equal_images_that_no_name_tells_apart_are_an_error(names: tuple[str, str]) -> None:
    here, xy = {"global": Identity()}, points(6)
    sdata = one(xy, shapes_to=here, **dict.fromkeys(names, here))
    with pytest.raises(ValueError, match=r"same resolution.*image_key") as error:
        images_over(sdata["s1"], "s1", xy, images=sdata.images)
    assert all(name in str(error.value) for name in names)


@pytest.mark.situation("Images", "An image lies at two places in two coordinate systems", "error", "different places")
def test_an_image_at_two_places_is_an_error() -> None:
    xy = points(20) / 4 + 20
    both = {"a": Identity(), "b": Identity()}
    sdata = one(xy, shapes_to=both, he={"a": Identity(), "b": Translation([3.0, 0.0], axes=AXES)})
    with pytest.raises(ValueError, match=r"different places.*'[ab]' and '[ab]'"):
        images_over(sdata["s1"], "s1", xy, images=sdata.images)


def test_stretched_pixels_are_an_error() -> None:
    xy = points(20) * [2, 1]
    sdata = one(xy, shapes_to={"a": Identity()}, he={"a": Scale([2.0, 1.0], axes=AXES)})
    with pytest.raises(ValueError, match=r"'he' to 'a' stretches its pixels \(2 against 1"):
        images_over(sdata["s1"], "s1", xy, images=sdata.images)


@pytest.mark.situation("Images", "A transformation stretches the pixels", "error", "stretches its pixels")
@pytest.mark.parametrize(("stretch", "refused"), [(1.01, False), (1.05, True)])
def test_pixels_may_differ_from_squares_by_two_per_cent(stretch: float, refused: bool) -> None:
    xy = points(20)
    sdata = one(xy, shapes_to={"a": Identity()}, he={"a": Scale([stretch, 1.0], axes=AXES)})
    if not refused:
        assert images_over(sdata["s1"], "s1", xy, images=sdata.images) is not None
        return
    with pytest.raises(ValueError, match="stretches its pixels"):
        images_over(sdata["s1"], "s1", xy, images=sdata.images)


def test_a_stretched_image_elsewhere_is_no_matter() -> None:
    xy = points(20)
    away = Sequence([Scale([2.0, 1.0], axes=AXES), Translation([900.0, 0.0], axes=AXES)])
    sdata = one(xy, shapes_to={"a": Identity()}, he={"a": Identity()}, map={"a": away})
    found = images_over(sdata["s1"], "s1", xy, images=sdata.images)
    assert found is not None
    assert found.name == "he"


def test_an_image_in_memory_is_the_same() -> None:
    slide = image_from_array(PICTURE, "lib/hires")
    assert slide.name == "lib/hires"
    np.testing.assert_array_equal(np.moveaxis(slide.levels[0].compute(), 0, -1), PICTURE)


def test_levels_that_are_computed_count_too() -> None:
    element = image(picture(256, 256), {"a": Identity()}, scale_factors=[2, 2])
    assert image_of_element(element, "he").downsampling == (1.0, 2.0, 4.0)


def test_levels_on_disk_are_used(tmp_path: Path) -> None:
    pixels = picture(256, 200)
    SpatialData(images={"he": image(pixels, {"a": Identity()}, scale_factors=[2, 2])}).write(tmp_path / "x.zarr")
    slide = image_of_element(sd.read_zarr(tmp_path / "x.zarr")["he"], "he")
    assert slide.downsampling == (1.0, 2.0, 4.0)
    assert [level.shape for level in slide.levels] == [(3, 256, 200), (3, 128, 100), (3, 64, 50)]
    np.testing.assert_array_equal(np.moveaxis(slide.levels[0].compute(), 0, -1), pixels)


def tree(*sizes: tuple[int, int]) -> Any:
    from xarray import DataArray, DataTree

    return DataTree.from_dict({
        f"scale{i}": DataArray(da.zeros((3, *size), chunks=64, dtype=np.uint8), dims=("c", "y", "x"), name="image").to_dataset()
        for i, size in enumerate(sizes)
    })  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (((101, 205), (50, 102), (25, 51)), (1.0, 2.0, 4.0)),
        (((101, 205), (51, 103)), (1.0, 2.0)),
        (((100, 150), (40, 60)), (1.0, 2.5)),
        (((100, 100), (100, 50), (50, 50)), (1.0, 2.0)),
        (((1000, 1000), (400, 380), (400, 398)), (1.0, 1000 / 398)),
    ],
    ids=["trimmed", "padded", "no whole factor", "one axis only", "stretched by 5 %, by 0.5 %"],
)
def test_downsampling_is_what_made_the_level(sizes: tuple, expected: tuple) -> None:
    assert image_of_element(tree(*sizes), "he").downsampling == expected


@pytest.mark.parametrize("sizes", [(128, 160), (127, 161), (103, 101), (126, 94)], ids=str)
@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "in zarr"])
def test_levels_begin_where_spatialdata_begins_them(sizes: tuple[int, int], stored: bool, tmp_path: Path) -> None:
    pixels = picture(*sizes)
    element = image(pixels, {"a": Identity()}, scale_factors=[2, 2, 2])
    if stored:
        SpatialData(images={"he": element}).write(tmp_path / "x.zarr")
        element = sd.read_zarr(tmp_path / "x.zarr")["he"]
    slide = image_of_element(element, "he")
    for i, level in enumerate(slide.levels):
        factor = int(slide.downsampling[i])
        left, top = (int(start) for start in slide.origin(i))
        height, width = level.shape[1:]
        blocks = pixels[top : top + factor * height, left : left + factor * width].astype(float)
        mean = blocks.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
        # every level is rounded down
        np.testing.assert_allclose(np.moveaxis(level.compute(), 0, -1), mean, atol=i)


def test_levels_of_a_file_begin_at_its_corner() -> None:
    element = tree((101, 205), (50, 102), (25, 51))
    element.attrs[OF_FILE] = True
    slide = image_of_element(element, "he")
    assert [slide.origin(level) for level in range(3)] == [(0.0, 0.0)] * 3


@pytest.mark.parametrize(
    ("sizes", "origin"),
    [
        (((101, 205), (50, 102)), (1.0, 1.0)), (((101, 204), (50, 102)), (0.0, 1.0)), (((101, 205), (51, 103)), (0.0, 0.0)),
        (((100, 150), (40, 60)), (0.0, 0.0)),
    ],
    ids=["trimmed", "one axis", "padded", "no whole factor"],
)  # fmt: skip
def test_what_a_level_leaves_out(sizes: tuple, origin: tuple[float, float]) -> None:
    assert image_of_element(tree(*sizes), "he").origin(1) == origin


def test_a_multiscale_image_lies_where_its_finest_level_lies() -> None:
    xy, shift = points(6), np.array([7.0, 3.0])
    to = {"a": Translation([7.0, 3.0], axes=AXES)}
    sdata = SpatialData(images={"he": image(PICTURE, to, scale_factors=[2])}, shapes={"s1": circles(xy + shift, to)})
    set_transformation(sdata["s1"], Identity(), "a")
    found = images_over(sdata["s1"], "s1", xy + shift, images=sdata.images)
    assert found is not None
    np.testing.assert_allclose(found.to_pixels(xy + shift), xy)


@pytest.mark.parametrize("colors_last", [True, False])
def test_many_channels_are_counted_and_not_listed(colors_last: bool) -> None:
    xy = points(20)
    stack = np.moveaxis(picture(channels=3 if colors_last else 128), -1, 0 if not colors_last else 2)
    wrong = image(np.moveaxis(stack, 0, -1), {"a": Identity()})
    told = why_no_image(circles(xy, {"a": Identity()}), xy, images={"he": wrong})
    assert told.startswith(f"'he' is not RGB ({96 if colors_last else 128} channels")
    assert ("parse it with `dims=('y', 'x', 'c')`" in told) == colors_last

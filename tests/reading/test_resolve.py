from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel, PointsModel
from spatialdata.transformations import Identity, Scale, Translation

import stcontrast as stc
from stcontrast._reading import Keys, Sections, require_images, resolve_all, resolve_slides, resolve_table, slide_names
from tests.synthetic import circles, hexagonal, image, picture, points, polygons, slide, square, table, visium_adata

if TYPE_CHECKING:
    from collections.abc import Callable

AXES = ("x", "y")
PICTURE = picture()


def two_slides(**attributes: Any) -> SpatialData:
    """Circles named by number in one coordinate system, squares named by letters in another; rows are mixed."""
    a = {"A": Translation([100.0, 50.0], axes=AXES)}
    sdata = SpatialData(
        images={"A_he": image(PICTURE, a), "B_he": image(picture(seed=1), {"B": Scale([0.5, 0.5], axes=AXES)})},
        shapes={
            "A": circles(points(6), a, radius=2.0, index=[10, 11, 12, 13, 14, 15]),
            "B": polygons(points(4, seed=1), {"B": Scale([0.5, 0.5], axes=AXES)}, side=8.0, index=list("wxyz")),
        },
    )
    rows = pd.DataFrame(
        {
            "region": pd.Categorical(["A", "B", "A", "B", "B", "A", "A"]),
            "spot_id": np.array([15, "z", 10, "w", "y", 12, 11], dtype=object),
        },
        index=[f"r{i}" for i in range(7)],
    )
    adata = ad.AnnData(np.ones((7, 2), dtype=np.float32), obs=rows)
    adata.uns["spatialdata_attrs"] = {"region": ["A", "B"], "region_key": "region", "instance_key": "spot_id"}
    adata.uns["stcontrast"] = {"um_per_px": {"A": 0.5, "B": 2.0}} | attributes
    # mixed names are valid in a table of two regions, though not in a store
    sdata.tables.data["table"] = adata
    return sdata


def test_rows_and_shapes_are_matched_by_name_slide_by_slide() -> None:
    sdata = two_slides()
    found = resolve_slides(sdata)
    assert found.table is sdata["table"]
    assert (found.region_key, found.instance_key) == ("region", "spot_id")
    a, b = found.slides
    assert (a.name, b.name) == ("A", "B")
    assert (a.coordinate_system, b.coordinate_system) == ("A", "B")
    np.testing.assert_array_equal(a.rows, [0, 2, 5, 6])
    np.testing.assert_array_equal(b.rows, [1, 3, 4])
    np.testing.assert_allclose(a.centers, points(6)[[5, 0, 2, 1]])
    np.testing.assert_allclose(b.centers, points(4, seed=1)[[3, 0, 2]])
    assert (a.diameter, b.diameter) == pytest.approx((4.0, 8.0))
    assert (a.um_per_px, b.um_per_px) == (0.5, 2.0)
    assert a.image is not None
    assert b.image is not None
    assert (a.image.name, b.image.name) == ("A_he", "B_he")


def test_order_of_rows_and_shapes_does_not_matter() -> None:
    sdata = slide(PICTURE, points(12))
    expected = resolve_slides(sdata).slides[0]
    rng = np.random.default_rng(0)
    order = rng.permutation(12)
    shuffled = SpatialData(
        images=dict(sdata.images),
        shapes={"s1": sdata["s1"].iloc[rng.permutation(12)]},
        tables={"table": sdata["table"][order].copy()},
    )
    found = resolve_slides(shuffled).slides[0]
    np.testing.assert_allclose(found.centers, expected.centers[order])
    np.testing.assert_array_equal(found.rows, np.arange(12))


def test_slides_come_in_order_of_appearance_and_only_those_with_rows() -> None:
    sdata = two_slides()
    sdata.tables.data["table"] = sdata["table"][[1, 0]].copy()
    assert [s.name for s in resolve_slides(sdata).slides] == ["B", "A"]
    sdata.tables.data["table"] = sdata["table"][[0]].copy()
    assert [s.name for s in resolve_slides(sdata).slides] == ["B"]


def test_diameter_is_in_pixels_of_the_image() -> None:
    xy = points(8)
    sdata = SpatialData(
        images={"he": image(PICTURE, {"um": Scale([0.25, 0.25], axes=AXES)})},
        shapes={"s1": circles(xy * 0.25, {"um": Identity()}, radius=1.0)},
        tables={"table": table({"s1": np.arange(8)}, um_per_px=None)},
    )
    found = resolve_slides(sdata, spot_diameter_um=2.0).slides[0]
    assert found.diameter == pytest.approx(8.0)
    assert found.um_per_px == pytest.approx(0.25)


def test_the_diameter_is_that_of_the_spots_in_the_table() -> None:
    sdata = slide(PICTURE, points(8))
    sdata["s1"]["radius"] = [2.0] * 3 + [9.0] * 5
    sdata.tables.data["table"] = sdata["table"][:3].copy()
    assert resolve_slides(sdata).slides[0].diameter == pytest.approx(4.0)


def test_a_slide_without_image_keeps_its_own_units() -> None:
    sdata = slide(PICTURE, points(8))
    del sdata.images["s1_he"]
    found = resolve_slides(sdata).slides[0]
    assert found.image is None
    assert (found.um_per_px, found.coordinate_system) == (1.0, "s1")
    np.testing.assert_allclose(found.centers, points(8))


# --- µm per pixel


def test_given_beats_diameter_beats_stored_beats_lattice() -> None:
    sdata = slide(picture(200, 200), 20 + hexagonal(8, 8, 20.0), um_per_px=3.0)
    sdata["s1"]["radius"] = 5.5
    resolve: Callable[..., float | None] = lambda **given: resolve_slides(sdata, **given).slides[0].um_per_px
    assert resolve(um_per_px=7.0, spot_diameter_um=66.0) == 7.0
    assert resolve(spot_diameter_um=66.0) == pytest.approx(6.0)
    assert resolve() == 3.0
    del sdata["table"].uns["stcontrast"]
    assert resolve() == pytest.approx(5.0)


def test_the_lattice_is_measured_in_pixels_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    grid = 30 + square(8, 8, 16.0)
    half = {"um": Scale([0.5, 0.5], axes=AXES)}
    sdata = SpatialData(
        images={"he": image(picture(200, 200), half)},
        shapes={"s1": circles(grid * 0.5, {"um": Identity()}, radius=2.0)},
        tables={"table": table({"s1": np.arange(64)}, um_per_px=None)},
    )
    with caplog.at_level(logging.INFO, logger="stcontrast"):
        assert resolve_slides(sdata).slides[0].um_per_px == pytest.approx(200 / 16)
    assert "s1: 12.5 µm per pixel, from a legacy ST lattice" in caplog.text


def test_every_slide_may_have_its_own_scale() -> None:
    def scales(given: Any) -> list[float | None]:
        return [s.um_per_px for s in resolve_slides(two_slides(), um_per_px=given).slides]

    assert scales(4.0) == [4.0, 4.0]
    assert scales({"A": 1.0, "B": 3.0}) == [1.0, 3.0]
    assert scales({"B": 3.0}) == [0.5, 3.0]


def test_one_number_may_be_stored_for_all_slides() -> None:
    found = resolve_slides(two_slides(um_per_px=np.float64(0.75)))
    assert [s.um_per_px for s in found.slides] == [0.75, 0.75]


@pytest.mark.situation(
    "µm per pixel", "A scale or a spot diameter is not a positive number", "error", "positive number"
)
@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf"), "half"])
def test_a_scale_must_be_a_positive_number(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"`um_per_px` of slide 's1' must be a positive number"):
        resolve_slides(slide(PICTURE, points(8)), um_per_px=bad)
    with pytest.raises(ValueError, match=r"`um_per_px` of slide 's1' must be a positive number"):
        resolve_slides(slide(PICTURE, points(8), um_per_px=bad))
    with pytest.raises(ValueError, match=r"`spot_diameter_um` must be a positive number"):
        resolve_slides(slide(PICTURE, points(8)), spot_diameter_um=bad)


@pytest.mark.situation("Tables, shapes and images", "A mapping names a slide that does not exist", "error")
@pytest.mark.parametrize("given", [{"um_per_px": {"C": 1.0}}, {"image_key": {"C": "A_he"}}])
def test_a_mapping_may_not_name_slides_that_are_absent(given: dict[str, Any]) -> None:
    with pytest.raises(KeyError, match=rf"`{next(iter(given))}` names .* absent: \['C'\]. Slides: \['A', 'B'\]"):
        resolve_slides(two_slides(), **given)


def test_an_unknown_scale_says_how_to_give_it() -> None:
    bins = slide(picture(200, 200), 20 + square(8, 8, 10.0), um_per_px=None)
    found = resolve_slides(bins)
    assert found.slides[0].um_per_px is None
    # bins that touch: Visium HD
    with pytest.raises(ValueError, match=r"unknown for \['s1'\].*Give `um_per_px`.*`spot_diameter_um`"):
        require_images(found, [20.0])


# --- which image


def test_images_may_be_named_for_some_slides_or_for_all() -> None:
    sdata = slide(PICTURE, points(8))
    sdata["low"] = image(PICTURE[::2, ::2], {"s1": Scale([2.0, 2.0], axes=AXES)})
    names = [
        [s.image.name for s in resolve_slides(sdata, image_key=key).slides if s.image is not None]
        for key in (None, "low", {"s1": "low"}, {})
    ]
    assert names == [["s1_he"], ["low"], ["low"], ["s1_he"]]


@pytest.mark.situation("Images", "Two slides lie on top of each other on one image", "warning", "on top of each other")
def test_slides_that_share_an_image_on_top_of_each_other_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    here = {"global": Identity()}
    make: Callable[[np.ndarray], Sections] = lambda of_b: resolve_slides(
        SpatialData(
            images={"A_he": image(PICTURE, here)},
            shapes={"A": circles(points(9) * [0.4, 1], here), "B": circles(of_b, here)},
            tables={"table": table({"A": np.arange(9), "B": np.arange(9)})},
        )
    )
    # two sections on one scan
    make(points(9) * [0.4, 1] + [70, 0])
    assert caplog.text == ""
    # B has no image, and was left at the origin
    make(points(9, seed=1) * [0.4, 1])
    assert "'A' and 'B' lie on top of each other on image 'A_he'" in caplog.text


# --- bad input


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({}, r"dict\. Several objects are given as a list\."),
        (None, r"NoneType\.$"),
        ("slide.zarr", r"str\. Read the file first: `anndata.read_h5ad\(path\)`"),
    ],
)
def test_other_objects_are_refused(bad: Any, told: str) -> None:
    with pytest.raises(TypeError, match=f"Expected a SpatialData or an AnnData object, found {told}"):
        resolve_table(bad)


def test_the_table_is_the_one_named_or_the_only_one_or_called_table() -> None:
    sdata = slide(PICTURE, points(8))
    first = sdata["table"]
    sdata["more"] = first.copy()
    assert resolve_table(sdata) is first
    assert resolve_table(sdata, table_key="more") is sdata["more"]
    del sdata.tables["table"]
    assert resolve_table(sdata) is sdata["more"]


def test_a_prediction_is_not_taken_for_the_measurement() -> None:
    sdata = slide(PICTURE, points(8))
    sdata["mine"] = sdata["table"].copy()
    del sdata.tables["table"]
    sdata["stc_pred"] = sdata["mine"].copy()
    sdata["stc_pred"].uns["stcontrast"] = {"prediction": {"unit": "x"}}
    assert resolve_table(sdata) is sdata["mine"]


def test_a_missing_table_lists_those_that_are_there() -> None:
    sdata = slide(PICTURE, points(8))
    with pytest.raises(KeyError, match=r"No table 'nope'.*\['table'\].*`table_key`"):
        resolve_slides(sdata, table_key="nope")
    sdata["b"], sdata["a"] = sdata["table"].copy(), sdata["table"].copy()
    del sdata.tables["table"]
    with pytest.raises(KeyError, match=r"\['a', 'b'\]"):
        resolve_slides(sdata)


@pytest.mark.situation("Tables, shapes and images", "The table annotates no shapes", "error")
def test_a_table_that_annotates_nothing_says_how_to_parse_it() -> None:
    sdata = slide(PICTURE, points(8))
    del sdata["table"].uns["spatialdata_attrs"]
    with pytest.raises(ValueError, match=r"annotates no shapes.*TableModel.parse"):
        resolve_slides(sdata)


@pytest.mark.situation("Tables, shapes and images", "The table has no spots", "error")
def test_an_empty_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="no spots"):
        resolve_slides(ad.AnnData(np.empty((0, 3))))


@pytest.mark.parametrize("column", ["region", "spot_id"])
def test_a_missing_column_lists_those_that_are_there(column: str) -> None:
    sdata = slide(PICTURE, points(8))
    other = ({"region", "spot_id"} - {column}).pop()
    del sdata["table"].obs[column]
    with pytest.raises(KeyError, match=rf"column '{column}'.*\['{other}'\]"):
        resolve_slides(sdata)


def test_missing_shapes_list_those_that_are_there() -> None:
    sdata = slide(PICTURE, points(8))
    sdata["s2"] = sdata["s1"]
    del sdata.shapes["s1"]
    with pytest.raises(KeyError, match=r"absent: \['s1'\].*\['s2'\]"):
        resolve_slides(sdata)


def test_a_missing_image_lists_those_that_are_there() -> None:
    with pytest.raises(KeyError, match=r"No image 'nope'.*\['s1_he'\]"):
        resolve_slides(slide(PICTURE, points(8)), image_key="nope")


def test_a_named_image_that_lies_elsewhere_is_an_error() -> None:
    sdata = slide(PICTURE, points(8))
    sdata["far"] = image(PICTURE, {"s1": Translation([5000.0, 0.0], axes=AXES)})
    sdata["other"] = image(PICTURE, {"s2": Identity()})
    sdata["if"] = image(picture(channels=5), {"s1": Identity()})
    for name in ("far", "other", "if"):
        with pytest.raises(ValueError, match=f"Image '{name}' does not lie under the spots of 's1'.*or is not RGB"):
            resolve_slides(sdata, image_key=name)


@pytest.mark.situation("Tables, shapes and images", "Rows of the table have no shape", "error")
def test_rows_without_shape_are_named() -> None:
    sdata = slide(PICTURE, points(8))
    sdata["table"].obs["spot_id"] = [0, 1, 2, 3, 4, 5, 98, 99]
    with pytest.raises(ValueError, match=r"2 rows of the table have no shape in 's1'.*\[98, 99\].*\[0, 1"):
        resolve_slides(sdata)


@pytest.mark.situation("Tables, shapes and images", "Shapes share a name", "error")
def test_shapes_of_one_name_are_an_error() -> None:
    sdata = slide(PICTURE, points(8))
    sdata["s1"].index = [0, 1, 2, 3, 4, 5, 6, 6]
    with pytest.raises(ValueError, match=r"more than once \(\['6'\]"):
        resolve_slides(sdata)


def test_spots_without_a_slide_image_are_named_before_any_work() -> None:
    sdata = two_slides()
    del sdata.images["B_he"]
    found = resolve_slides(sdata)
    with pytest.raises(ValueError, match=r"No image lies under the spots of \['B'\].*set_transformation.*image_key"):
        require_images(found, [20.0])


# --- AnnData


def test_scanpy_images_are_read_at_their_own_scale() -> None:
    centers = 4 * points(9)
    found = resolve_slides(visium_adata(PICTURE, centers), um_per_px=2.0)
    assert (found.region_key, found.instance_key) == (None, None)
    only = found.slides[0]
    assert only.name == "lib"
    assert only.image is not None
    assert only.image.name == "lib/hires"
    np.testing.assert_array_equal(np.moveaxis(only.image.levels[0].compute(), 0, -1), PICTURE)
    np.testing.assert_allclose(only.centers, points(9))
    assert only.diameter == 5.0


def test_lowres_where_there_is_nothing_better_or_where_it_is_asked_for() -> None:
    adata = visium_adata(PICTURE, 4 * points(9))
    asked = resolve_slides(adata, image_key="lowres").slides[0]
    del adata.uns["spatial"]["lib"]["images"]["hires"]
    for low in (asked, resolve_slides(adata).slides[0]):
        assert low.image is not None
        assert low.image.name == "lib/lowres"
        np.testing.assert_allclose(low.centers, points(9) / 2)
    with pytest.raises(KeyError, match=r"No image 'hires'.*\['lowres'\]"):
        resolve_slides(adata, image_key="hires")


@pytest.mark.parametrize(("name", "factor"), [("downscaled_fullres", 0.25), ("fullres", 1.0), ("mid", 0.3)])
def test_images_may_have_any_name_and_the_finest_is_taken(name: str, factor: float) -> None:
    adata = visium_adata(PICTURE, 4 * points(9))
    library = adata.uns["spatial"]["lib"]
    library["images"] = {"lowres": PICTURE[::2, ::2], name: picture(384, 512)}
    library["scalefactors"] |= {f"tissue_{name}_scalef": factor}
    (only,) = resolve_slides(adata, um_per_px=2.0).slides
    assert only.image is not None
    assert only.image.name == f"lib/{name}"
    np.testing.assert_allclose(only.centers, 4 * factor * points(9))


def test_visium_scale_is_that_of_the_image_that_is_read() -> None:
    adata = visium_adata(picture(200, 200), 80 + hexagonal(7, 7, 80.0))
    adata.uns["spatial"]["lib"]["scalefactors"]["spot_diameter_fullres"] = 0.65 * 80
    assert resolve_slides(adata).slides[0].um_per_px == pytest.approx(100 / 20)


def test_libraries_are_told_apart_by_a_column() -> None:
    adata = visium_adata(PICTURE, 4 * points(9))
    adata.uns["spatial"]["two"] = adata.uns["spatial"]["lib"]
    with pytest.raises(ValueError, match=r"\['lib', 'two'\]: give `library_key`"):
        resolve_slides(adata)
    adata.obs["who"] = pd.Categorical(["two", "lib", "lib"] * 3)
    with pytest.raises(KeyError, match=r"No column 'library'.*\['who'\]"):
        resolve_slides(adata, library_key="library")
    two, lib = resolve_slides(adata, library_key="who").slides
    assert (two.name, lib.name) == ("two", "lib")
    np.testing.assert_array_equal(two.rows, [0, 3, 6])
    np.testing.assert_allclose(lib.centers, points(9)[lib.rows])
    adata.obs["library_id"] = adata.obs["who"]
    assert [s.name for s in resolve_slides(adata).slides] == ["two", "lib"]


def test_anndata_without_images_is_one_slide_in_its_own_units() -> None:
    adata = visium_adata(PICTURE, 4 * points(9))
    del adata.uns["spatial"]
    only = resolve_slides(adata).slides[0]
    assert (only.name, only.image, only.um_per_px) == ("slide", None, None)
    np.testing.assert_allclose(only.centers, 4 * points(9))


def test_a_grey_image_is_no_stain() -> None:
    adata = visium_adata(PICTURE, 4 * points(9))
    adata.uns["spatial"]["lib"]["images"] = {"hires": PICTURE[..., 0], "lowres": picture(channels=5)}
    assert resolve_slides(adata).slides[0].image is None


@pytest.mark.situation("Tables, shapes and images", "Spots of an AnnData lie off their image", "error")
def test_positions_off_the_image_are_an_error() -> None:
    adata = visium_adata(PICTURE, 40 * points(9))
    with pytest.raises(ValueError, match=r"'hires' of 'lib' \(128 × 96 pixels\) does not lie under the spots: 11%"):
        resolve_slides(adata)


@pytest.mark.parametrize(("outside", "refused"), [(1, False), (2, True)])
def test_nearly_every_position_must_lie_on_the_image(outside: int, refused: bool) -> None:
    xy = 4 * points(20)
    xy[:outside] = -50
    adata = visium_adata(PICTURE, xy)
    if not refused:
        assert resolve_slides(adata).slides[0].image is not None
        return
    with pytest.raises(ValueError, match=r"of 'lib' .* the spots: 90%"):
        resolve_slides(adata)


def test_positions_must_be_there_and_finite() -> None:
    adata = visium_adata(PICTURE, 4 * points(9))
    adata.obsm["spatial"][2, 0] = np.nan
    with pytest.raises(ValueError, match="1 spots of 'lib' have no finite position"):
        resolve_slides(adata)
    adata.obsm["spatial"][[2, 5], 1] = np.inf
    with pytest.raises(ValueError, match="2 spots of 'lib' have no finite position"):
        resolve_slides(adata)
    adata.obsm["X_pca"] = adata.obsm.pop("spatial")
    with pytest.raises(KeyError, match=r"No `obsm\['spatial'\]`.*\['X_pca'\]"):
        resolve_slides(adata)


def test_slide_names_are_those_of_the_slides():
    sdata = stc.datasets.toy(n_donors=2, n_spots=12, n_genes=10)
    assert slide_names(sdata) == [slide.name for slide in resolve_slides(sdata).slides]
    adata = sdata["table"].copy()
    adata.obs["where"] = adata.obs["region"].astype(str)
    assert slide_names(adata, library_key="where") == ["donor1_a", "donor2_a"]


# --- a scale is checked


def on_lattice(xy: np.ndarray, width: float, *, um_per_px: float | None = None, name: str = "s1") -> SpatialData:
    """Spots of some width in pixels on an image that holds them."""
    high, wide = (xy.max(axis=0) + 40).astype(int)[::-1]
    sdata = slide(picture(high, wide), xy, name=name, um_per_px=um_per_px)
    sdata[name]["radius"] = width / 2
    return sdata


VISIUM = 40 + hexagonal(9, 9, 25.0)
BINS = 40 + square(12, 12, 10.0)


@pytest.mark.situation(
    "µm per pixel",
    "A given scale contradicts the lattice of the spots by more than 5 %",
    "warning",
    "but a Visium lattice",
)
@pytest.mark.parametrize(
    ("given", "scale", "said"),
    [
        ({}, 4.0, None),
        ({"um_per_px": 4.1}, 4.1, None),
        ({"um_per_px": 3.9}, 3.9, None),
        ({"um_per_px": 4.3}, 4.3, r"Slide 's1': 4.3 µm per pixel \(`um_per_px`\), but a Visium lattice.* gives 4"),
        ({"um_per_px": {"s1": 0.5}}, 0.5, r"0.5 µm per pixel .* gives 4"),
        ({"spot_diameter_um": 65.0}, 4.0, None),
        ({"spot_diameter_um": 55.0}, 3.3846, r"3.385 µm per pixel \(`spot_diameter_um=55`.* gives 4"),
    ],
    ids=["derived", "2 % more", "2 % less", "7 % more", "8 times less", "65 µm", "55 µm"],
)
def test_a_scale_that_contradicts_the_lattice_is_warned_of(
    given: dict[str, Any], scale: float, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    found = resolve_slides(on_lattice(VISIUM, 16.25), **given).slides[0]
    assert found.um_per_px == pytest.approx(scale, rel=1e-4)
    if said is None:
        assert caplog.text == ""
    else:
        assert re.search(said, caplog.text)


@pytest.mark.situation(
    "µm per pixel", "A scale that is stored in the object contradicts the lattice", "warning", "but a Visium lattice"
)
def test_a_stored_scale_is_checked_too(caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_slides(on_lattice(VISIUM, 16.25, um_per_px=1.0)).slides[0].um_per_px == 1.0
    assert "1 µm per pixel (`uns['stcontrast']['um_per_px']`), but a Visium lattice" in caplog.text


def named_bins(how: str) -> SpatialData:
    """Bins of 8 µm whose side stands in the name of the table, of the shapes or of the barcodes."""
    sdata = on_lattice(BINS, 10.0, name="S1_square_008um" if how == "shapes" else "s1")
    if how == "barcodes":
        sdata["table"].obs_names = [f"s_008um_{i:05}_00000-1" for i in range(len(BINS))]
    if how == "table":
        sdata["square_008um"] = sdata["table"]
        del sdata.tables["table"]
    return sdata


@pytest.mark.situation(
    "µm per pixel",
    "A given scale contradicts the side of Visium HD bins in the name of their table, shapes or barcodes",
    "warning",
    "but bins of 8 µm",
)
@pytest.mark.parametrize("how", ["table", "shapes", "barcodes"])
def test_bins_of_visium_hd_say_their_side(how: str, caplog: pytest.LogCaptureFixture) -> None:
    sdata = named_bins(how)
    require_images(found := resolve_slides(sdata), [100.0])
    assert found.slides[0].um_per_px == pytest.approx(0.8)
    assert caplog.text == ""
    assert resolve_slides(sdata, um_per_px=0.27).slides[0].um_per_px == 0.27
    assert "0.27 µm per pixel (`um_per_px`), but bins of 8 µm" in caplog.text
    assert "gives 0.8" in caplog.text


def test_bins_that_are_squares_and_some_missing() -> None:
    xy = BINS[np.random.default_rng(0).random(len(BINS)) < 0.5]
    sdata = slide(picture(200, 200), xy, name="S1_square_016um", um_per_px=None)
    sdata.shapes["S1_square_016um"] = polygons(xy, {"S1_square_016um": Identity()}, side=10.0)
    assert resolve_slides(sdata).slides[0].um_per_px == pytest.approx(1.6)


@pytest.mark.situation(
    "µm per pixel",
    "A given scale contradicts `microns_per_pixel` of Space Ranger",
    "warning",
    "but `microns_per_pixel` of Space Ranger gives 2",
)
def test_space_ranger_says_the_scale_of_an_anndata(caplog: pytest.LogCaptureFixture) -> None:
    adata = visium_adata(PICTURE, 4 * points(9))
    factors = adata.uns["spatial"]["lib"]["scalefactors"]
    factors["microns_per_pixel"] = 0.5
    assert resolve_slides(adata).slides[0].um_per_px == pytest.approx(2.0)
    assert resolve_slides(adata, image_key="lowres").slides[0].um_per_px == pytest.approx(4.0)
    caplog.clear()
    # the scale of the full resolution for an image four times smaller
    assert resolve_slides(adata, um_per_px=0.5).slides[0].um_per_px == 0.5
    assert "0.5 µm per pixel (`um_per_px`), but `microns_per_pixel` of Space Ranger gives 2" in caplog.text


@pytest.mark.situation(
    "µm per pixel",
    "The spots look like legacy ST, as other square arrays may",
    "warning",
    "This is assumed: other arrays may look alike",
)
def test_a_legacy_lattice_is_an_assumption(caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_slides(on_lattice(40 + square(9, 9, 20.0), 10.0)).slides[0].um_per_px == pytest.approx(10.0)
    assert "This is assumed: other arrays may look alike" in caplog.text


@pytest.mark.situation(
    "µm per pixel", "The spots are cells of many sizes, and no scale is given", "error", "different sizes, as cells do"
)
def test_cells_of_many_sizes_are_asked_for() -> None:
    sdata = on_lattice(VISIUM, 16.25)
    sdata["s1"]["radius"] = 8.0 + np.random.default_rng(0).uniform(-2, 2, len(VISIUM))
    with pytest.raises(ValueError, match="different sizes, as cells do"):
        require_images(resolve_slides(sdata), [100.0])


@pytest.mark.situation(
    "µm per pixel",
    "One slide of several has another distance between spots, in µm",
    "warning",
    "neighbouring spots are",
)
@pytest.mark.parametrize(("other", "said"), [(3.0, False), (3.1, False), (4.0, True), (0.3, True)])
def test_slides_of_one_kind_have_one_pitch(other: float, said: bool, caplog: pytest.LogCaptureFixture) -> None:
    # no known platform: 150 µm between the spots of a square array
    array = 40 + square(9, 9, 50.0)
    objects = [on_lattice(array, 33.0, name=name) for name in ("s1", "s2", "s3")]
    scales = {"s1": 3.0, "s2": other, "s3": 3.0}
    resolve_all(objects, Keys(um_per_px=scales))
    assert ("neighbouring spots are" in caplog.text) is said
    if said:
        assert "['s2'] and 150 µm on the others" in caplog.text


def test_bins_of_two_sizes_do_not_contradict_each_other(caplog: pytest.LogCaptureFixture) -> None:
    objects = [on_lattice(BINS, 10.0, name=name, um_per_px=scale) for name, scale in (("a", 0.8), ("b", 1.6))]
    resolve_all(objects, Keys())
    assert caplog.text == ""


@pytest.mark.situation(
    "µm per pixel",
    "A field of view has less than 2 pixels, or is more than twice as wide as the image",
    "error",
    "pixels wide, more than 2 times",
)
@pytest.mark.parametrize(
    ("um_per_px", "field", "wrong"),
    [
        (1e-4, 100.0, r"1e\+06 pixels wide, more than 2 times as wide as the image.*'s1_he' has 128 × 96 pixels"),
        (0.5, 200.0, "400 pixels wide, more than 2 times"), (1e4, 100.0, "0.01 pixels wide, less than 2"),
        (60.0, 100.0, "less than 2"), (0.5, 100.0, None), (50.0, 100.0, None), (1.0, 200.0, None),
    ],
)  # fmt: skip
def test_absurd_fields_are_refused(um_per_px: float, field: float, wrong: str | None) -> None:
    found = resolve_slides(slide(PICTURE, points(8)), um_per_px=um_per_px)
    if wrong is None:
        require_images(found, [20.0 * um_per_px, field])
        return
    with pytest.raises(ValueError, match=rf"Slide 's1'.*{wrong}"):
        require_images(found, [20.0 * um_per_px, field])


# --- tables that annotate labels


def labelled(
    shapes: dict[str, Any], *, column: str = "spot_id", ids: Any = None, region: str = "cell_labels"
) -> SpatialData:
    """A table that annotates a labels element, and shapes in its coordinate system."""
    here = {"s1": Identity()}
    ids = [f"cell-{i}" for i in range(12)] if ids is None else ids
    sdata = SpatialData(
        images={"he": image(PICTURE, here)},
        labels={region: Labels2DModel.parse(np.zeros((96, 128), np.int32), dims=("y", "x"), transformations=here)},
        shapes=shapes, tables={"table": table({region: np.arange(1, 13)})},
    )  # fmt: skip
    sdata["table"].obs[column] = ids
    sdata["table"].uns["spatialdata_attrs"]["region"] = region
    return sdata


CELL_IDS = [f"cell-{i}" for i in range(12)]
HERE = {"s1": Identity()}


@pytest.mark.parametrize("column", ["spot_id", "cell_id"], ids=["the instance key", "cell_id beside numbers"])
@pytest.mark.parametrize(
    "make", [lambda xy, ids: circles(xy, HERE, index=ids), lambda xy, ids: polygons(xy, HERE, index=ids)],
    ids=["circles", "polygons"],
)  # fmt: skip
def test_labels_are_read_by_shapes_of_the_same_ids(make: Any, column: str) -> None:
    # scverse/spatialdata-io#123, #179
    order = np.random.default_rng(0).permutation(12)
    sdata = labelled({"cells": make(points(12)[order], [CELL_IDS[i] for i in order])}, column=column)
    (found,) = resolve_slides(sdata).slides
    assert found.name == "cell_labels"
    np.testing.assert_allclose(found.centers, points(12))
    assert found.image is not None


def test_of_several_shapes_those_of_the_cells_are_taken() -> None:
    other = points(12, seed=1)
    sdata = labelled({
        "nucleus_boundaries": polygons(other, HERE, index=CELL_IDS),
        "cell_boundaries": polygons(points(12), HERE, index=CELL_IDS),
        "zz": circles(other, HERE, index=CELL_IDS),
    })  # fmt: skip
    np.testing.assert_allclose(resolve_slides(sdata).slides[0].centers, points(12))


def test_bins_that_were_numbered_anew_keep_their_places() -> None:
    # what `spatialdata.rasterize_bins_link_table_to_labels` leaves: new numbers from 1, and the old from 0
    xy = points(13)
    sdata = labelled({"S1_square_008um": circles(xy, HERE)}, region="S1_square_008um_labels", ids=np.arange(1, 13))
    bins = sdata["table"]
    bins.obs = bins.obs.rename(columns={"spot_id": "relabeled_location_id"}).assign(location_id=np.arange(12))
    bins.uns["spatialdata_attrs"]["instance_key"] = "relabeled_location_id"
    np.testing.assert_allclose(resolve_slides(sdata).slides[0].centers, xy[:12])


@pytest.mark.situation(
    "Tables, shapes and images",
    "The table annotates labels, and no shapes have the same ids",
    "error",
    "which is a labels element",
)
@pytest.mark.parametrize(
    "shapes",
    [
        {}, {"cells": circles(points(12), HERE)}, {"cells": circles(points(11), HERE, index=CELL_IDS[:11])},
        {"cells": circles(points(12), {"elsewhere": Identity()}, index=CELL_IDS)},
    ],
    ids=["no shapes", "other ids", "a cell is missing", "another coordinate system"],
)  # fmt: skip
def test_labels_alone_say_what_helps(shapes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'cell_labels', which is a labels element.*`cells_as_circles=True`") as error:
        resolve_slides(labelled(shapes))
    assert "annotate_table_by_labels=False" in str(error.value)
    assert "set_table_annotates_spatialelement" in str(error.value)


# --- which part of the slide is there


@pytest.mark.situation(
    "Tables, shapes and images", "Some spots lie beyond their image", "warning", "lie beyond its image"
)
def test_spots_beyond_the_image_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    xy = points(40)
    resolve_slides(slide(PICTURE, xy))
    assert caplog.text == ""
    xy[3] = [-5, 20]
    resolve_slides(slide(PICTURE, xy))
    assert r"Slide 's1': 1 of 40 spots (2.5 %) lie beyond its image 's1_he' (128 × 96 pixels)" in caplog.text
    caplog.clear()
    resolve_slides(visium_adata(PICTURE, 4 * xy), um_per_px=1.0)
    assert "Slide 'lib': 1 of 40 spots (2.5 %) lie beyond its image 'lib/hires'" in caplog.text


@pytest.mark.situation(
    "Tables, shapes and images", "Many spots lie beyond every image", "error", "No image lies under the spots of"
)
def test_spots_that_are_mostly_beyond_say_how_many(caplog: pytest.LogCaptureFixture) -> None:
    found = resolve_slides(slide(PICTURE, points(20) * [2.0, 1.0]))
    with pytest.raises(
        ValueError, match=r"No image lies under the spots of \['s1'\].*\d\d% of the spots lie on 's1_he'"
    ):
        require_images(found, [20.0])


@pytest.mark.situation("Images", "Only the hires or lowres image is there", "warning", "only the hires image")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: visium_adata(PICTURE, 4 * points(9)), "only the hires image 'lib/hires' is there, 4 µm per pixel: a field of 100 µm is 25"),
        (lambda: renamed("S1_hires_image"), "only the hires image 'S1_hires_image' is there, 4 µm"),
        (lambda: renamed("S1_lowres_image"), "only the lowres image"), (lambda: renamed("S1_full_image"), None),
    ],
    ids=["AnnData", "SpatialData", "lowres", "full resolution"],
)  # fmt: skip
def test_where_only_a_small_copy_is_there_it_is_said(
    make: Any, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    resolve_slides(make(), um_per_px=4.0)
    assert (said or "") in caplog.text
    assert bool(caplog.text) is (said is not None)


def test_a_small_copy_that_was_asked_for_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    resolve_slides(visium_adata(PICTURE, 4 * points(9)), um_per_px=4.0, image_key="hires")
    assert caplog.text == ""


def renamed(name: str) -> SpatialData:
    sdata = slide(PICTURE, points(9))
    sdata[name] = sdata["s1_he"]
    del sdata.images["s1_he"]
    return sdata


# --- positions that cannot be meant


def narrow(xy: np.ndarray, factor: float) -> ad.AnnData:
    """Visium spots of which the positions are too small by a factor."""
    high, wide = (xy.max(axis=0) + 40).astype(int)[::-1]
    adata = visium_adata(picture(high, wide), xy * factor, factor=1.0)
    adata.uns["spatial"]["lib"]["scalefactors"]["spot_diameter_fullres"] = 25.0 * 0.65
    return adata


@pytest.mark.situation(
    "Tables, shapes and images",
    "Positions are those of the array, or in pixels of another image",
    "warning",
    "lie on top of each other",
)
@pytest.mark.parametrize(
    ("factor", "apart"),
    [(1 / 25, "1"), (0.2, "5"), (0.08, "2"), (0.5, None), (1.0, None)],
    ids=["array", "hires", "lowres", "half", "right"],
)
def test_spots_that_overlap_are_in_other_units(
    factor: float, apart: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    resolve_slides(narrow(VISIUM, factor), um_per_px=4.0)
    assert (f"spots are 16.2 pixels wide, and only {apart} pixels apart: they lie on top" in caplog.text) == bool(apart)


def test_cells_that_touch_do_not_overlap(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    xy = 40 + square(12, 12, 10.0) + rng.uniform(-4, 4, (144, 2))
    sdata = on_lattice(xy, 10.0, um_per_px=1.0)
    sdata["s1"]["radius"] = rng.uniform(4, 9, 144)
    resolve_slides(sdata)
    assert "on top of each other" not in caplog.text


@pytest.mark.situation(
    "Tables, shapes and images",
    "Spots share their places, as those of two sections",
    "warning",
    "exactly on another one",
)
@pytest.mark.parametrize(
    ("twice", "said"), [(81, True), (9, True), (2, False)], ids=["two sections", "a part", "two spots"]
)
def test_spots_at_one_place(twice: int, said: bool, caplog: pytest.LogCaptureFixture) -> None:
    resolve_slides(narrow(np.concatenate([VISIUM, VISIUM[:twice]]), 1.0))
    assert (f"'lib': {twice} of {81 + twice} spots lie exactly on another one" in caplog.text) == said


@pytest.mark.situation("Images", "An AnnData object has no usable image of a slide", "error", "that is H&E")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda library: library["images"].clear(), r"`uns\['spatial'\]\['lib'\]` has no images"),
        (lambda library: library["scalefactors"].clear(), r"'hires' has no scale factor `tissue_hires_scalef`"),
        (
            lambda library: library["scalefactors"].update(
                tissue_x_scalef=library["scalefactors"].pop("tissue_hires_scalef")
            ),
            r"'hires' has no scale factor `tissue_hires_scalef` \(there are .*'tissue_x_scalef'",
        ),
        (lambda library: library["images"].update(hires=PICTURE[..., 0]), r"'hires' is not RGB \(shape \(96, 128\)\)"),
        (lambda library: library["images"].update(hires=PICTURE[0]), r"'hires' is not RGB \(shape \(128, 3\)\)"),
    ],
    ids=["no images", "no scale factors", "another scale factor", "grey", "a row of pixels"],
)
def test_why_an_anndata_has_no_image(change: Any, told: str) -> None:
    adata = visium_adata(PICTURE, 4 * points(9))
    del adata.uns["spatial"]["lib"]["images"]["lowres"]
    change(adata.uns["spatial"]["lib"])
    with pytest.raises(ValueError, match=rf"\['lib'\] that is H&E \('lib': {told}"):
        require_images(resolve_slides(adata), [20.0])


@pytest.mark.situation(
    "Donors, slides, labels", "The column of slides and `uns['spatial']` have different names", "error", "its keys are"
)
def test_a_slide_that_uns_does_not_name() -> None:
    adata = visium_adata(PICTURE, 4 * points(9))
    adata.obs["library_id"] = "sample 1"
    with pytest.raises(ValueError, match=r"`uns\['spatial'\]` has no 'sample 1'; its keys are \['lib'\]"):
        require_images(resolve_slides(adata), [20.0])


@pytest.mark.parametrize("names", [("x", "y"), ("Y", "X"), ("y", "z", "x"), ("row", "col")])
def test_positions_of_a_data_frame_have_the_names_of_its_columns(names: tuple[str, ...]) -> None:
    xy = 4 * points(9)
    by_name = {"x": xy[:, 0], "y": xy[:, 1], "z": np.zeros(9), "row": xy[:, 0], "col": xy[:, 1]}
    adata = visium_adata(PICTURE, xy)
    adata.obsm["spatial"] = pd.DataFrame({name: by_name[name.lower()] for name in names}, index=adata.obs_names)
    np.testing.assert_allclose(resolve_slides(adata).slides[0].centers, points(9))


def test_positions_need_two_columns() -> None:
    adata = visium_adata(PICTURE, 4 * points(9))
    adata.obsm["spatial"] = adata.obsm["spatial"][:, :1]
    with pytest.raises(ValueError, match=r"two columns, x and y of every spot, found shape \(9, 1\)"):
        resolve_slides(adata)


def test_a_region_of_points_says_how_to_make_circles() -> None:
    sdata = slide(PICTURE, points(8))
    del sdata.shapes["s1"]
    sdata["s1"] = PointsModel.parse(points(8), transformations={"s1": Identity()})
    with pytest.raises(KeyError, match=r"\['s1'\] are points: make circles of them"):
        resolve_slides(sdata)


@pytest.mark.situation(
    "µm per pixel",
    "Cells are far wider or narrower than cells are, at a given scale",
    "warning",
    "as cells do, and are",
)
@pytest.mark.parametrize(
    ("um_per_px", "warned"), [(0.5, False), (2.0, False), (8.0, True), (0.1, True)], ids=["half", "two", "8", "0.1"]
)
def test_cells_have_the_width_of_cells(um_per_px: float, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    sdata = on_lattice(40 + square(12, 12, 16.0) + rng.uniform(-4, 4, (144, 2)), 10.0)
    sdata["s1"]["radius"] = rng.uniform(4, 9, 144)
    resolve_slides(sdata, um_per_px=um_per_px)
    width = 2 * np.median(sdata["s1"]["radius"]) * um_per_px
    assert (f"as cells do, and are {width:.3g} µm wide at {um_per_px:g} µm per pixel" in caplog.text) == warned

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import squidpy as sq
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Point
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Labels2DModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation

import stcontrast as stc
from stcontrast._reading import resolve_slides
from stcontrast.pp._crops import tiles as _tiles
from tests.synthetic import image, picture

if TYPE_CHECKING:
    from pathlib import Path

TISSUE, GLASS = (190, 110, 170), (238, 236, 240)


def disc(size: int = 240, *, radius: float = 80.0, corner: tuple[int, int, int] = GLASS) -> np.ndarray:
    """A round piece of tissue in the middle of glass."""
    y, x = np.mgrid[:size, :size] + 0.5
    pixels = np.broadcast_to(np.array(GLASS, dtype=np.uint8), (size, size, 3)).copy()
    pixels[np.hypot(x - size / 2, y - size / 2) < radius] = TISSUE
    pixels[: size // 5, : size // 5] = corner
    return pixels


def slide(pixels: np.ndarray | None = None, to: Any = None, **kwargs: Any) -> SpatialData:
    return SpatialData(images={"he": image(disc() if pixels is None else pixels, to or {"here": Identity()}, **kwargs)})


def test_spots_are_those_that_lie_on_the_disc_by_half() -> None:
    sdata = slide()
    before = sdata.images["he"]
    stc.pp.tissue_grid(sdata, um_per_px=5.0)
    table, circles = sdata["table"], sdata["he_spots"]
    centers = np.column_stack([circles.geometry.x, circles.geometry.y])
    np.testing.assert_array_equal(table.obsm["spatial"], centers)
    distance = np.hypot(*(centers - 120).T)
    # a disc of 11 px lies on it by half where its centre is at the edge, and a little further in for the curvature
    assert distance.max() < 81
    assert len(centers) == pytest.approx(np.pi * 80**2 / (20**2 * np.sqrt(0.75)), rel=0.1)
    assert set(circles["radius"]) == {5.5}
    assert table.shape == (len(centers), 0)
    inside = distance < 80 - 7
    assert (table.obs["tissue_fraction"][inside] == 1).all()
    assert table.obs["tissue_fraction"].min() >= 0.5
    assert sdata.images["he"] is before
    assert sorted(name for _, name, _ in sdata.gen_elements()) == ["he", "he_spots", "table"]


def test_array_columns_are_counted_as_visium_counts_them() -> None:
    sdata = slide()
    stc.pp.tissue_grid(sdata, um_per_px=5.0, tissue=None)
    obs, xy = sdata["table"].obs, sdata["table"].obsm["spatial"]
    x = xy[:, 0] - obs["array_col"] * 10
    y = xy[:, 1] - obs["array_row"] * 20 * np.sqrt(0.75)
    assert np.ptp(x) < 1e-9
    assert np.ptp(y) < 1e-9


def test_a_measured_lattice_and_a_grid_have_the_same_neighbours() -> None:
    sdata = slide()
    stc.pp.tissue_grid(sdata, um_per_px=5.0)
    table = sdata["table"].copy()
    inside = np.hypot(*(table.obsm["spatial"] - 120).T) < 80 - 25
    sq.gr.spatial_neighbors_grid(table, n_neighs=6)
    degree = np.asarray(table.obsp["spatial_connectivities"].sum(axis=1)).ravel()
    assert (degree[inside] == 6).all()
    sq.gr.spatial_neighbors_radius(table, radius=20.5)
    degree = np.asarray((table.obsp["spatial_distances"] > 0).sum(axis=1)).ravel()
    assert (degree[inside] == 6).all()


def test_square_bins_touch() -> None:
    sdata = slide()
    stc.pp.tissue_grid(sdata, um_per_px=2.0, geometry="square", pitch_um=16, spot_diameter_um=16)
    squares = sdata["he_spots"].geometry
    np.testing.assert_allclose(squares.area, 64.0)
    inside = squares[squares.centroid.distance(Point(120, 120)) < 60]
    # nothing left between them
    assert inside.union_all().buffer(1e-6).area == pytest.approx(len(inside) * 64, rel=1e-3)
    assert squares.union_all().area == pytest.approx(np.pi * 80**2, rel=0.05)


@settings(max_examples=12)
@given(
    angle=st.floats(-3.1, 3.1), factor=st.floats(0.01, 50), shift=st.tuples(*[st.floats(-1e4, 1e4)] * 2),
    flip=st.booleans(), pyramid=st.booleans(),
)  # fmt: skip
def test_wherever_the_image_lies_spots_lie_on_its_tissue(
    angle: float, factor: float, shift: tuple[float, float], *, flip: bool, pyramid: bool
) -> None:
    cos, sin = factor * np.cos(angle), factor * np.sin(angle)
    matrix = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]], [0, 0, 1]]) @ np.diag([-1 if flip else 1, 1, 1])
    to = {"um": Affine(matrix, ("x", "y"), ("x", "y")), "other": Identity()}
    sdata = slide(to=to, scale_factors=[2, 2] if pyramid else None)
    stc.pp.tissue_grid(sdata, um_per_px=5.0, coordinate_system="um")
    assert set(get_transformation(sdata["he_spots"], get_all=True)) == {"um", "other"}
    (found,) = resolve_slides(sdata).slides
    np.testing.assert_allclose(found.centers, sdata["table"].obsm["spatial"], atol=1e-4 * (1 + max(map(abs, shift))))
    assert found.um_per_px == 5.0
    assert found.diameter == pytest.approx(11.0, rel=1e-6)
    assert found.image is not None
    assert found.image.name == "he"


def test_black_corners_shadows_and_dust_are_no_tissue() -> None:
    plain = slide()
    stc.pp.tissue_grid(plain, um_per_px=5.0)
    pixels = disc(corner=(0, 0, 0))
    pixels[-40:, -40:] = (150, 149, 151)
    pixels[10:20, 200:210] = TISSUE
    sdata = slide(pixels)
    stc.pp.tissue_grid(sdata, um_per_px=5.0)
    np.testing.assert_array_equal(sdata["table"].obsm["spatial"], plain["table"].obsm["spatial"])


def test_two_equal_pieces_are_both_covered() -> None:
    pixels = np.concatenate([disc(), disc()], axis=1)
    sdata = slide(pixels)
    stc.pp.tissue_grid(sdata, um_per_px=5.0)
    left = sdata["table"].obsm["spatial"][:, 0] < 240
    assert left.mean() == pytest.approx(0.5, abs=0.05)


def test_each_image_is_a_slide_of_its_own_even_at_one_place() -> None:
    here = {"global": Identity()}
    sdata = SpatialData(
        images={
            "A": image(disc(), here),
            "B": image(disc(200, radius=50), here),
            "dapi": image(disc()[..., :1], here),
        }
    )
    stc.pp.tissue_grid(sdata, um_per_px={"A": 5.0, "B": 4.0})
    table = sdata["table"]
    assert table.obs["region"].value_counts(sort=False).index.tolist() == ["A_spots", "B_spots"]
    found = resolve_slides(sdata)
    assert {s.name: (s.image.name, s.um_per_px) for s in found.slides if s.image} == {
        "A_spots": ("A", 5.0),
        "B_spots": ("B", 4.0),
    }
    stc.pp.image_features(sdata, encoder="color", field_um=100)
    assert np.isfinite(table.obsm["X_image"]).all()


@pytest.mark.parametrize("kind", ["shapes", "labels"])
def test_tissue_of_ones_own(kind: str) -> None:
    to_um = {"um": Scale([5.0, 5.0], axes=("x", "y"))}
    sdata = slide(to=to_um)
    if kind == "shapes":
        # in µm already: the upper left of the tissue
        sdata["mine"] = ShapesModel.parse(
            np.array([[400.0, 500.0]]), geometry=0, radius=200.0, transformations={"um": Identity()}
        )
    else:
        y, x = np.mgrid[:60, :60] + 0.5
        labels = (np.hypot(x * 20 - 400, y * 20 - 500) < 200).astype(np.uint8)
        sdata["mine"] = Labels2DModel.parse(
            labels, dims=("y", "x"), transformations={"um": Scale([20.0, 20.0], axes=("x", "y"))}
        )
    before = get_transformation(sdata["mine"], get_all=True)
    stc.pp.tissue_grid(sdata, um_per_px=5.0, tissue="mine", pitch_um=20.0, spot_diameter_um=20.0)
    um = sdata["table"].obsm["spatial"] * 5
    assert np.hypot(*(um - (400, 500)).T).max() < 210
    assert len(um) == pytest.approx(np.pi * 200**2 / (20**2 * np.sqrt(0.75)), rel=0.05)
    assert get_transformation(sdata["mine"], get_all=True) == before
    np.testing.assert_allclose(um.mean(axis=0), (400, 500), atol=5)


def test_a_whole_slide_is_read_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    whole = _tiles.Tiles.window

    def counted(self: Any, y: slice, x: slice) -> np.ndarray:
        reads.append((y.stop - y.start) * (x.stop - x.start))
        return whole(self, y, x)

    monkeypatch.setattr(_tiles.Tiles, "window", counted)
    pixels = np.kron(disc(1500, radius=500.0), np.ones((4, 4, 1), dtype=np.uint8))
    sdata = slide(pixels)
    stc.pp.tissue_grid(sdata, um_per_px=0.5)
    assert max(reads) <= 1024**2 < pixels.size / 30
    assert sdata["table"].n_obs == pytest.approx(np.pi * 2000**2 / (200**2 * np.sqrt(0.75)), rel=0.1)


@pytest.mark.slow
def test_from_h_and_e_to_a_written_prediction(tmp_path: Path) -> None:
    train = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=20)
    model = stc.tl.fit(train, batch_key="donor", method="ridge", encoder="color", field_um=100)
    new = stc.datasets.toy(n_donors=1, n_spots=60, n_genes=20, seed=1)
    sdata = SpatialData(images=dict(new.images))
    stc.pp.tissue_grid(sdata, um_per_px=1.0)
    stc.tl.predict_expression(sdata, model)
    assert sdata["stc_pred"].n_obs == sdata["table"].n_obs
    # toy draws its own spots over the whole tissue, glass in fat included
    assert sdata["table"].n_obs == pytest.approx(60, rel=0.25)
    sdata.write(tmp_path / "new.zarr")
    again = read_zarr(tmp_path / "new.zarr")
    assert resolve_slides(again, table_key="table").slides[0].um_per_px == 1.0
    stc.pp.tissue_grid(again, um_per_px=1.0)
    np.testing.assert_array_equal(again["table"].obsm["spatial"], sdata["table"].obsm["spatial"])


def test_an_earlier_grid_is_renewed_and_anything_else_only_with_overwrite() -> None:
    sdata = slide()
    stc.pp.tissue_grid(sdata, um_per_px=5.0)
    first = sdata["table"]
    stc.pp.tissue_grid(sdata, um_per_px=5.0, pitch_um=200)
    grid = sdata["table"]
    assert grid.n_obs == len(sdata["he_spots"]) < first.n_obs / 3
    del grid.uns["stcontrast"]["tissue_grid"]
    with pytest.raises(ValueError, match=r"\['he_spots', 'table'\] are used.*`overwrite=True`"):
        stc.pp.tissue_grid(sdata, um_per_px=5.0)
    assert sdata["table"] is grid
    stc.pp.tissue_grid(sdata, um_per_px=5.0, overwrite=True)
    assert sdata["table"].n_obs == len(sdata["he_spots"]) == first.n_obs


def test_an_image_is_never_replaced_by_a_grid() -> None:
    sdata = slide()
    with pytest.raises(ValueError, match=r"\['he'\] are used by elements that are not a grid"):
        stc.pp.tissue_grid(sdata, um_per_px=5.0, shapes_key="he", overwrite=True)


def test_what_cannot_be_done_is_said_before_anything_is_written() -> None:
    def refuse(error: type[Exception], match: str, sdata: Any = None, **kwargs: Any) -> None:
        sdata = slide() if sdata is None else sdata
        names = [name for _, name, _ in sdata.gen_elements()] if isinstance(sdata, SpatialData) else []
        with pytest.raises(error, match=match):
            stc.pp.tissue_grid(sdata, **{"um_per_px": 5.0, **kwargs})
        assert not names or names == [name for _, name, _ in sdata.gen_elements()]

    refuse(TypeError, "Expected a SpatialData", disc())
    refuse(KeyError, r"No image \['she'\].*\['he'\]", image_key="she")
    refuse(ValueError, "No image is RGB", slide(disc()[..., :1]))
    refuse(ValueError, r"Images \['he'\] are not RGB", slide(disc()[..., :1]), image_key="he")
    refuse(ValueError, "in coordinate system 'there'", coordinate_system="there")
    refuse(ValueError, "stretches its pixels", slide(to={"a": Scale([1.0, 2.0], axes=("x", "y"))}))
    refuse(
        ValueError, "`um_per_px` must be a positive number, or a mapping from slide to number, found -1", um_per_px=-1
    )
    refuse(KeyError, r"`um_per_px` must name each image once.*\['other'\]", um_per_px={"other": 1.0})
    refuse(ValueError, "`pitch_um` must be a finite number above 0", pitch_um=0)
    refuse(ValueError, "`min_tissue` must be a finite number above 0 and of at most 1", min_tissue=50)
    refuse(ValueError, '"visium" or "square"', geometry="hex")
    refuse(ValueError, "need different names", shapes_key="table")
    refuse(KeyError, '"detect", None or the name', tissue="mine")
    refuse(ValueError, "No spot of 55 µm lies on tissue.*2400 × 2400 µm", tissue=None, um_per_px=10, pitch_um=5000)
    blank = np.broadcast_to(np.array(GLASS, dtype=np.uint8), (240, 240, 3)).copy()
    refuse(ValueError, "No tissue stands out from the glass in image 'he'.*`tissue=None`", slide(blank))
    apart = slide()
    apart["mine"] = ShapesModel.parse(
        np.array([[1.0, 1.0]]), geometry=0, radius=1.0, transformations={"away": Identity()}
    )
    refuse(ValueError, "share no coordinate system", apart, tissue="mine")


def test_a_pitch_of_less_than_two_pixels_is_refused() -> None:
    sdata = SpatialData(images={"he": image(picture(), {"a": Identity()})})
    with pytest.raises(ValueError, match=r"'he': at 1e\+04 µm per pixel `pitch_um=100` is 0.01 pixels, less than 2"):
        stc.pp.tissue_grid(sdata, um_per_px=1e4, tissue=None)
    assert not sdata.shapes

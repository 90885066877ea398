"""Features are made again for slides that have changed, and for no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import spatialdata

import stcontrast as stc
from stcontrast.pp._features import slides as _slides
from tests.synthetic import image


@pytest.fixture
def sdata():
    made = stc.datasets.toy(n_donors=2, n_spots=20, n_genes=10)
    stc.pp.image_features(made, field_um=50)
    return made


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    names: list[str] = []
    encode = _slides.encode_slides

    def counted(slides: Any, recipe: Any) -> Any:
        names.extend(slide.name for slide in slides)
        return encode(slides, recipe)

    monkeypatch.setattr(_slides, "encode_slides", counted)
    return names


BOTH = ["donor1_a", "donor2_a"]


def test_nothing_has_changed(sdata, encoded, tmp_path):
    before = sdata["table"].obsm["X_image"].copy()
    stc.pp.image_features(sdata, field_um=50)
    sdata.write(tmp_path / "toy.zarr")
    stored = spatialdata.read_zarr(tmp_path / "toy.zarr")
    stc.pp.image_features(stored, field_um=50)
    assert encoded == []
    for one in (sdata, stored):
        np.testing.assert_array_equal(one["table"].obsm["X_image"], before)


@pytest.mark.parametrize(
    "changed",
    [
        {"field_um": 51},
        {"encoder": "color"},
        {"size_px": 32},
        {"stain": "macenko"},
        {"um_per_px": 1.1},
    ],
    ids=lambda given: next(iter(given)),
)
def test_another_recipe(sdata, encoded, changed):
    stc.pp.image_features(sdata, **{"field_um": 50} | changed)
    assert encoded == BOTH


def test_a_spot_that_moved(sdata, encoded):
    shapes = sdata.shapes["donor2_a"]
    sdata.shapes["donor2_a"] = shapes.set_geometry(shapes.geometry.translate(0.5))
    stc.pp.image_features(sdata, field_um=50)
    assert encoded == ["donor2_a"]


def test_spots_in_another_order(sdata, encoded):
    before = sdata["table"].obsm["X_image"].copy()
    order = np.arange(sdata["table"].n_obs)[::-1]
    sdata.tables.data["table"] = sdata["table"][order].copy()
    stc.pp.image_features(sdata, field_um=50)
    assert encoded == []
    np.testing.assert_array_equal(sdata["table"].obsm["X_image"], before[order])


def test_spots_that_were_taken_away(sdata, encoded):
    before, kept = sdata["table"].obsm["X_image"].copy(), np.arange(3, 17)
    sdata.tables.data["table"] = sdata["table"][kept].copy()
    stc.pp.image_features(sdata, field_um=50)
    assert encoded == []
    np.testing.assert_array_equal(sdata["table"].obsm["X_image"], before[kept])


def test_spots_whose_features_were_swapped(sdata, encoded):
    """The features are those that were written, and belong to other spots."""
    before = sdata["table"].obsm["X_image"].copy()
    swapped = before.copy()
    swapped[:2] = before[1::-1]
    sdata["table"].obsm["X_image"] = swapped
    stc.pp.image_features(sdata, field_um=50)
    assert encoded == ["donor1_a"]
    np.testing.assert_array_equal(sdata["table"].obsm["X_image"], before)


def test_another_image(sdata, encoded):
    old = sdata.images["donor1_a_he"]["scale0"]["image"].to_numpy()
    del sdata.images["donor1_a_he"]
    sdata.images["donor1_a_he"] = image(
        255 - np.moveaxis(old, 0, -1), {"donor1_a": spatialdata.transformations.Identity()}
    )
    stc.pp.image_features(sdata, field_um=50)
    assert encoded == ["donor1_a"]


def test_a_callable_may_have_changed(sdata, encoded):
    for _ in range(2):
        stc.pp.image_features(sdata, encoder=lambda crops: crops.mean(axis=(1, 2)), field_um=50, size_px=8)
    assert encoded == BOTH + BOTH


def test_features_of_the_user_are_replaced_only_with_overwrite(sdata, encoded):
    table = sdata["table"]
    table.obsm["X_own"] = own = np.ones((table.n_obs, 2))
    with pytest.raises(ValueError, match=r"`obsm\['X_own'\]` holds something.*`overwrite=True`"):
        stc.pp.image_features(sdata, field_um=50, key_added="X_own")
    assert table.obsm["X_own"] is own
    assert encoded == []
    stc.pp.image_features(sdata, field_um=50, key_added="X_own", overwrite=True)
    np.testing.assert_array_equal(table.obsm["X_own"], table.obsm["X_image"])


def test_only_the_new_encoder_of_a_list_is_run(sdata, encoded, tmp_path):
    texture = sdata["table"].obsm["X_image"].copy()
    both = ["color", "texture"]
    stc.pp.image_features(sdata, encoder=both, field_um=50)
    assert encoded == BOTH
    found = sdata["table"].obsm["X_image"]
    np.testing.assert_array_equal(found[:, 35:], texture)
    sdata.write(tmp_path / "toy.zarr")
    stored = spatialdata.read_zarr(tmp_path / "toy.zarr")
    stc.pp.image_features(stored, encoder=both, field_um=50)
    np.testing.assert_array_equal(stored["table"].obsm["X_image"], found)
    stc.pp.image_features(stored, encoder=both[::-1], field_um=50)
    np.testing.assert_array_equal(stored["table"].obsm["X_image"], np.roll(found, 63, axis=1))
    stc.pp.image_features(stored, encoder="color", field_um=50)
    np.testing.assert_array_equal(stored["table"].obsm["X_image"], found[:, :35])
    assert encoded == BOTH
    # a slide that has changed is encoded by all
    sdata.shapes["donor2_a"] = sdata.shapes["donor2_a"].set_geometry(sdata.shapes["donor2_a"].geometry.translate(0.5))
    stc.pp.image_features(sdata, encoder=both, field_um=50)
    assert encoded == [*BOTH, "donor2_a", "donor2_a"]


def test_features_that_were_cut_are_made_again(sdata, encoded):
    stc.pp.image_features(sdata, encoder=["color", "texture"], field_um=50)
    whole = sdata["table"].obsm["X_image"]
    encoded.clear()
    sdata["table"].obsm["X_image"] = whole[:, 3:]
    with pytest.raises(ValueError, match=r"`obsm\['X_image'\]` holds something.*was changed since.*`overwrite=True`"):
        stc.pp.image_features(sdata, encoder=["color", "texture"], field_um=50)
    assert encoded == []
    stc.pp.image_features(sdata, encoder=["color", "texture"], field_um=50, overwrite=True)
    np.testing.assert_array_equal(sdata["table"].obsm["X_image"], whole)
    assert encoded == BOTH + BOTH


def test_a_second_slot_is_its_own(sdata, encoded):
    stc.pp.image_features(sdata, field_um=50, key_added="X_other")
    stc.pp.image_features(sdata, field_um=50, key_added="X_other")
    assert encoded == BOTH

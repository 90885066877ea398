"""Colour for the colour baseline, out of features of texture."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata import SpatialData

import stcontrast as stc
from stcontrast.tl._features import color_features
from tests.tl.conftest import copied

FIELDS = (60, 150.5)


@pytest.fixture(scope="module", params=[64, 32])
def textured(request: pytest.FixtureRequest, toy: SpatialData) -> SpatialData:
    """The toy slides with the features of texture, and those of colour beside them."""
    sdata = copied(toy)
    stc.pp.image_features(sdata, field_um=FIELDS, size_px=request.param)
    stc.pp.image_features(sdata, encoder="color", field_um=FIELDS, size_px=request.param, key_added="X_color")
    return sdata


def test_the_colour_in_texture_is_that_of_the_encoder(textured):
    table = textured["table"]
    before = table.obsm["X_image"].copy()
    # no source: no image can be looked at
    found, [record] = color_features([], table.obsm["X_image"], [table.uns["stcontrast"]["image_features"]])
    assert found.shape == (table.n_obs, 70)
    np.testing.assert_array_equal(found, table.obsm["X_color"])
    made = table.uns["stcontrast"]["image_features_X_color"]
    assert (record["encoder"], record["field_um"]) == (made["encoder"], made["field_um"])
    np.testing.assert_array_equal(table.obsm["X_image"], before)


def test_features_of_colour_are_taken_as_they_are(textured):
    table = textured["table"]
    record = table.uns["stcontrast"]["image_features_X_color"]
    found, [same] = color_features([], table.obsm["X_color"], [record])
    np.testing.assert_array_equal(found, table.obsm["X_color"])
    assert same is record


def test_the_colour_baseline_is_the_same_and_wants_no_image(textured):
    without = SpatialData(shapes=dict(textured.shapes), tables=dict(copied(textured).tables))
    model = stc.tl.fit(without, batch_key="donor", method="color")
    of_color = copied(textured)
    table = of_color["table"]
    table.obsm["X_image"] = table.obsm.pop("X_color")
    table.uns["stcontrast"]["image_features"] = table.uns["stcontrast"].pop("image_features_X_color")
    expected = stc.tl.fit(of_color, batch_key="donor", method="color")
    assert model.spec["image_features"][0]["encoder"] == expected.spec["image_features"][0]["encoder"]
    # the slot that holds texture is of no use to the first: it makes its colours again
    again = copied(textured)
    stc.tl.predict_expression(again, model)
    stc.tl.predict_expression(of_color, expected)
    np.testing.assert_array_equal(again["stc_pred"].X, of_color["stc_pred"].X)


def test_a_color_model_predicts_from_features_that_hold_colour(toy):
    """No image is needed where colour is part of what is there."""
    sdata = copied(toy)
    stc.pp.image_features(sdata, field_um=(100, 200))
    table = sdata["table"].copy()
    shapes = [sdata.shapes[region] for region in table.obs["region"].unique()]
    table.obsm["spatial"] = np.concatenate([np.column_stack([part.geometry.x, part.geometry.y]) for part in shapes])
    table.obs["library_id"] = table.obs["region"].astype(str)
    del table.uns["spatialdata_attrs"]
    donors = table.obs["donor"].astype(str)
    train, test = table[donors != donors.iloc[0]].copy(), table[donors == donors.iloc[0]].copy()
    model = stc.tl.fit(train, batch_key="donor", method="color")
    assert model.spec["image_features"][0]["encoder"]["kind"] == "color"
    predicted = stc.tl.predict_expression(test, model)
    assert predicted.n_obs == test.n_obs
    assert test.obsm["X_image"].shape == (test.n_obs, 126)

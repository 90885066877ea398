"""Features of several encoders and slots; colour for the colour baseline, out of features of texture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from spatialdata import SpatialData

import stcontrast as stc
from stcontrast.tl import _predict_to_store
from stcontrast.tl._features import color_features
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, as_anndata, bare, parts_of

if TYPE_CHECKING:
    from stcontrast.fitted import Predictor

FIELDS = (60, 150.5)
SLOTS = ["X_own", "X_image", "X_two"]
WIDTHS = [3, 252, 35, 96]


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


# --- several encoders and slots


def network() -> stc.pp.TimmEncoder:
    return stc.pp.TimmEncoder("test_resnet", pretrained=False, size_px=16, device="cpu")


def means(crops: np.ndarray) -> np.ndarray:
    return crops.mean(axis=(1, 2))


def add_own(sdata: SpatialData) -> SpatialData:
    """Features of the user's own in a slot: what a spot's name says."""
    table = sdata["table"]
    number = table.obs["spot_id"].to_numpy(dtype=np.float64)
    table.obsm["X_own"] = np.column_stack([number, number**2, np.sin(number)])
    return sdata


@pytest.fixture(scope="module")
def blocks(toy: SpatialData) -> SpatialData:
    """The toy slides with features of texture, with those of two encoders, and with custom features."""
    sdata = add_own(copied(toy))
    stc.pp.image_features(sdata, encoder=["color", network()], field_um=100, key_added="X_two")
    return sdata


@pytest.fixture(scope="module")
def of_blocks(blocks: SpatialData) -> Predictor:
    train = parts_of(copied(blocks), "donor1", "donor2")
    return stc.tl.fit(train, batch_key="donor", label_key=LABELS, method="ridge", use_rep=SLOTS)


def test_slots_are_stacked_as_blocks(of_blocks, blocks):
    assert of_blocks.spec["blocks"] == WIDTHS
    made_by = of_blocks.spec["image_features"]
    assert [block["slot"] for block in made_by] == ["X_own", "X_image", "X_two", "X_two"]
    assert [block["encoder"]["name"] for block in made_by] == ["X_own", "texture", "color", "test_resnet"]
    assert [block["n_features"] for block in made_by] == WIDTHS
    assert [block["field_um"] for block in made_by] == [[], [100, 200, 400, 800], [100], [100]]
    table = blocks["table"]
    features = np.concatenate([table.obsm[slot] for slot in SLOTS], axis=1)
    places = {"slide": table.obs["region"].cat.codes.to_numpy(np.int64), "xy": np.asarray(table.obsm["spatial"])}
    spots = of_blocks.unseen_spots(features, **places)
    assert list(spots.blocks) == WIDTHS
    squares = spots.column_weights.astype(np.float64) ** 2
    assert len(squares) == 4 * sum(WIDTHS)
    np.testing.assert_allclose(np.unique(squares), np.unique(sum(WIDTHS) / 4 / np.array(WIDTHS)), rtol=1e-5)


def test_a_new_object_gets_what_can_be_made(of_blocks, blocks, tmp_path):
    there = parts_of(copied(blocks), "donor3")
    stc.tl.predict_expression(there, of_blocks)
    of_blocks.save(tmp_path / "model")
    new = add_own(bare(there))
    before = new["table"].obsm["X_own"].copy()
    stc.tl.predict_expression(new, tmp_path / "model")
    stc.tl.classify(new, stc.models.load(tmp_path / "model"))
    np.testing.assert_allclose(new["stc_pred"].X, there["stc_pred"].X, atol=1e-4)
    table = new["table"]
    assert set(table.obsm) == {"X_own", "X_image", "X_two", "stc_class_proba"}
    np.testing.assert_array_equal(table.obsm["X_own"], before)
    # what was made is what `image_features` makes
    np.testing.assert_allclose(table.obsm["X_two"], there["table"].obsm["X_two"], atol=1e-5)
    for key in ("image_features", "image_features_X_two"):
        made, expected = (item["table"].uns["stcontrast"][key] for item in (new, there))
        assert set(made) == set(expected)
        assert made.get("blocks", {}).keys() == expected.get("blocks", {}).keys()
    assert new["stc_pred"].uns["stcontrast"]["prediction"]["encoder"] == "X_own and texture and color and test_resnet"
    # training slides are recognised by the features of all slots
    train = add_own(bare(parts_of(copied(blocks), "donor1")))
    stc.tl.predict_expression(train, of_blocks)
    assert set(train["stc_pred"].uns["stcontrast"]["prediction"]["provenance"].values()) == {"in-sample"}


def test_the_prediction_in_a_store_is_that_in_memory(of_blocks, blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(_predict_to_store, "CHUNK", 16)
    # one slot is there, one block is held by another slot's features, the others are made
    sdata = parts_of(copied(blocks), "donor2", "donor3")
    del sdata["table"].obsm["X_two"], sdata["table"].uns["stcontrast"]["image_features_X_two"]
    order = np.random.default_rng(0).permutation(sdata["table"].n_obs)
    sdata.tables.data["table"] = sdata["table"][order].copy()
    expected = copied(sdata)
    stc.tl.predict_expression(expected, of_blocks)
    stc.tl.predict_expression(sdata, of_blocks, store=tmp_path / "pred.zarr")
    np.testing.assert_allclose(np.asarray(sdata["stc_pred"].X), expected["stc_pred"].X, atol=2e-4)
    assert sdata["stc_pred"].uns["stcontrast"] == expected["stc_pred"].uns["stcontrast"]
    assert list(sdata["stc_pred"].obs["stc_in_distribution"]) == list(expected["stc_pred"].obs["stc_in_distribution"])
    assert "X_two" not in sdata["table"].obsm


@pytest.mark.parametrize("method", ["stcontrast", "ridge"])
def test_wide_blocks_have_no_extremes_in_memory_or_in_a_store(toy, tmp_path, monkeypatch, method):
    """A narrow block has them although a wide one is beside it."""
    monkeypatch.setattr("stcontrast._data.design.MAX_RANGED", 100)
    monkeypatch.setattr(_predict_to_store, "CHUNK", 16)
    sdata = add_own(copied(toy))
    train, test = parts_of(sdata, "donor1", "donor2"), parts_of(sdata, "donor3")
    few = {"max_epochs": 2, "n_coordinates": 4} if method == "stcontrast" else {}
    model = stc.tl.fit(train, batch_key="donor", method=method, use_rep=["X_image", "X_own"], options=few)
    spots = model.unseen_spots(
        np.zeros((5, 255), dtype=np.float32), slide=np.zeros(5, dtype=np.int64), xy=np.arange(10.0).reshape(5, 2)
    )
    assert spots.design.shape == (5, 2 * 252 + 4 * 3)
    again = copied(test)
    stc.tl.predict_expression(test, model)
    stc.tl.predict_expression(again, model, store=tmp_path / "pred.zarr")
    np.testing.assert_allclose(np.asarray(again["stc_pred"].X), test["stc_pred"].X, atol=2e-4)


def test_a_slot_of_one_encoder_is_that_encoder(blocks):
    """Whatever the name of the slot: one block, as in the default slot."""
    sdata = copied(blocks)
    table = sdata["table"]
    table.obsm["X_texture"] = table.obsm.pop("X_image")
    table.uns["stcontrast"]["image_features_X_texture"] = table.uns["stcontrast"].pop("image_features")
    model = stc.tl.fit(parts_of(sdata, "donor1", "donor2"), batch_key="donor", method="ridge", use_rep="X_texture")
    default = stc.tl.fit(parts_of(copied(blocks), "donor1", "donor2"), batch_key="donor", method="ridge")
    assert (model.spec["blocks"], default.spec["blocks"]) == ([252], [252])
    one, other = bare(parts_of(sdata, "donor3")), bare(parts_of(sdata, "donor3"))
    stc.tl.predict_expression(one, model)
    stc.tl.predict_expression(other, default)
    np.testing.assert_array_equal(one["stc_pred"].X, other["stc_pred"].X)
    assert set(one["table"].obsm) == {"X_texture"}


def test_encoders_in_a_list_are_made_and_predicted_with(raw):
    train, test = parts_of(raw, "donor1", "donor2"), parts_of(raw, "donor3")
    model = stc.tl.fit(train, batch_key="donor", method="ridge", encoder=["color", means], field_um=[50, 100])
    assert model.spec["blocks"] == [70, 6]
    assert set(train["table"].uns["stcontrast"]["image_features"]["blocks"]) == {"0", "1"}
    with pytest.raises(ValueError, match=r"trained with the callable 'means', .*: give `encoder`"):
        stc.tl.predict_expression(test, model)
    with pytest.raises(ValueError, match=r"2 blocks of features that an encoder makes, \['color', 'means'\], found 1"):
        stc.tl.predict_expression(test, model, encoder=means)
    stc.tl.predict_expression(test, model, encoder=["color", means])
    # one block of what is there is enough for a model of that block
    color = stc.tl.fit(train, batch_key="donor", method="color")
    assert color.spec["image_features"][0]["encoder"]["kind"] == "color"
    np.testing.assert_array_equal(color.spec["blocks"], [70])
    without = SpatialData(shapes=dict(test.shapes), tables={"table": test["table"].copy()})
    stc.tl.predict_expression(without, color)
    assert without["stc_pred"].shape == test["stc_pred"].shape
    # other encoders than those that are there
    with pytest.raises(ValueError, match=r"holds color and means at .*, but means and color at"):
        stc.tl.fit(train, batch_key="donor", method="ridge", encoder=[means, "color"])


def test_cross_validation_of_slots(blocks, tmp_path):
    sdata = copied(blocks)
    given: dict[str, Any] = {"donor_key": "donor", "methods": ["ridge", "color"], "n_jobs": 1}
    one = stc.tl.cross_validate(sdata, use_rep=["X_own", "X_image"], directory=tmp_path, **given)
    assert list(one.summary().index)[:2] == ["ridge", "color"]
    # the fits of the blocks are not those of the same numbers in one block
    table = sdata["table"]
    table.obsm["X_both"] = np.concatenate([np.float32(table.obsm["X_own"]), table.obsm["X_image"]], axis=1)
    before = set(tmp_path.iterdir())
    stc.tl.cross_validate(sdata, use_rep="X_both", directory=tmp_path, **given | {"methods": ["ridge"]})
    assert len(set(tmp_path.iterdir()) - before) == 3


def test_own_features_that_are_absent_or_of_another_width(of_blocks, blocks):
    new = bare(parts_of(copied(blocks), "donor3"))
    with pytest.raises(
        ValueError, match=r"custom features in `obsm\['X_own'\]` \(3 a spot\), found none. Put features made the same"
    ):
        stc.tl.predict_expression(new, of_blocks)
    add_own(new)["table"].obsm["X_own"] = np.ones((new["table"].n_obs, 2))
    for predict in (stc.tl.predict_expression, stc.tl.classify):
        with pytest.raises(
            ValueError, match=r"custom features in `obsm\['X_own'\]` \(3 a spot\), found X_own \(2 a spot\)"
        ):
            predict(new, of_blocks)
    assert set(new["table"].obsm) == {"X_own"}


@pytest.mark.situation(
    "Image features",
    "Features to learn from are those of the counts, or positions, by their name",
    "warning",
    "by its name",
)
@pytest.mark.parametrize("slot", ["X_pca", "X_pca_harmony", "X_scVI", "X_umap", "spatial"])
@pytest.mark.parametrize("learn", [stc.tl.fit, stc.tl.cross_validate], ids=["fit", "cross_validate"])
def test_slots_that_are_named_as_if_made_of_genes(blocks, learn, slot, caplog):
    sdata = copied(blocks)
    sdata["table"].obsm[slot] = sdata["table"].obsm["X_own"]
    method = {"method": "ridge"} if learn is stc.tl.fit else {"methods": ["ridge"], "n_jobs": 1}
    learn(sdata, donor_key="donor", use_rep=slot, **method)
    assert (
        f"by its name `obsm[{slot!r}]` holds {'positions' if slot == 'spatial' else 'a representation'}" in caplog.text
    )
    caplog.clear()
    learn(sdata, donor_key="donor", use_rep="X_own", **method)
    assert "by its name" not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"use_rep": "X_imgae"}, KeyError, r"no slot 'X_imgae' in `obsm` .* 'X_image', .*key_added='X_imgae'"),
        ({"use_rep": ["X_image", "X_none"]}, KeyError, "no slot 'X_none'"),
        ({"use_rep": []}, ValueError, "must name one slot of `obsm` or several"),
        ({"use_rep": ["X_own", "X_own"]}, ValueError, "each once"),
        ({"use_rep": 3}, TypeError, "must be the name of a slot"),
        ({"use_rep": ["X_own", 3]}, TypeError, "must be the name of a slot"),
        ({"use_rep": "X_own", "encoder": "texture"}, ValueError, "`use_rep` is 'X_own': leave out one of them"),
        ({"use_rep": ["X_image", "X_own"], "field_um": 100}, ValueError, "leave out one of them"),
        ({"use_rep": "X_empty"}, ValueError, r"must be an array of numbers .* found shape \(120, 0\)"),
        ({"use_rep": "X_cut"}, ValueError, "it was changed after"),
        ({"use_rep": "X_nan"}, ValueError, r"in `obsm\['X_nan'\]` hold values that are not finite"),
        (
            {"use_rep": "X_image", "image_tower": "finetune", "encoder": "test_resnet"},
            ValueError,
            "`use_rep` is 'X_image', and `image_tower='finetune'` learns from the images",
        ),
        ({"use_rep": "X_tuned"}, ValueError, "fine-tuned on the expression of other spots"),
        (
            {"use_rep": "X_pca"},
            ValueError,
            "made by `scanpy.pp.pca`, of the counts. Expression would be predicted from itself",
        ),
        ({"use_rep": ["X_own", "X_stc_vae"]}, ValueError, r"`obsm\['X_stc_vae'\]` was made by `stc.tl.embed_genes` or"),
        ({"use_rep": "mine"}, ValueError, "`stc.tl.embed_genes` or `stc.tl.fit`, of the counts"),
        ({"use_rep": "X_stc_gene"}, ValueError, "a model that has learnt from counts, perhaps from these"),
        ({"use_rep": "other_image"}, ValueError, "a model that has learnt from counts, perhaps from these"),
    ],
)
@pytest.mark.parametrize("learn", [stc.tl.fit, stc.tl.cross_validate])
def test_wrong_slots(blocks, learn, arguments, error, message):
    sdata = copied(blocks)
    table = sdata["table"]
    table.obsm["X_empty"], table.obsm["X_nan"] = np.ones((120, 0)), np.full((120, 2), np.nan)
    table.obsm["X_cut"] = table.obsm["X_two"][:, :30]
    ours = table.uns["stcontrast"]
    ours["image_features_X_cut"] = ours["image_features_X_two"]
    table.obsm["X_tuned"] = table.obsm["X_own"]
    ours["image_features_X_tuned"] = {"encoder": {"kind": "tuned", "name": "x"}, "field_um": [100.0], "n_features": 3}
    for slot in ("X_pca", "X_stc_vae", "mine", "X_stc_gene", "other_image"):
        table.obsm[slot] = table.obsm["X_own"]
    table.varm["PCs"] = np.ones((table.n_vars, 3))
    ours |= {record: {"model": "x"} for record in ("embed_genes", "embed_genes_mine", "embedding", "embedding_other")}
    before = set(table.obsm)
    with pytest.raises(error, match=message):
        learn(sdata, donor_key="donor", **arguments)
    assert set(table.obsm) == before


def test_several_encoders_are_not_fine_tuned(raw):
    with pytest.raises(ValueError, match="trains one encoder, found 2"):
        stc.tl.fit(raw, batch_key="donor", encoder=["resnet18", "resnet34"], image_tower="finetune")


def test_own_features_of_different_widths_between_objects(toy):
    parts = [as_anndata(parts_of(copied(toy), f"donor{i}")) for i in (1, 2)]
    for i, part in enumerate(parts):
        part.obsm["X_own"] = np.ones((part.n_obs, 2 + i))
    with pytest.raises(
        ValueError, match=r"features in `obsm\['X_own'\]` were made, or would be made, in different ways"
    ):
        stc.tl.fit(parts, batch_key="donor", method="mean", use_rep=["X_image", "X_own"])

from __future__ import annotations

import logging
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import spatialdata as sd
from geopandas.testing import assert_geodataframe_equal
from pandas.testing import assert_frame_equal
from spatialdata import SpatialData
from spatialdata.transformations import Identity, get_transformation

import stcontrast as stc
from stcontrast.pp import TextureEncoder, TimmEncoder
from stcontrast.pp._features import encoding as _encoding
from stcontrast.pp._features import join_records, parse_fields, split_blocks
from tests.real_data import require
from tests.slides import olfactory_bulb
from tests.synthetic import circles, image, picture, points, slide, table, visium_adata

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def two_slides() -> SpatialData:
    here = {name: {name: Identity()} for name in "AB"}
    return SpatialData(
        images={f"{name}_he": image(picture(seed=i), here[name], scale_factors=[2]) for i, name in enumerate("AB")},
        shapes={name: circles(points(7 + i, seed=i), here[name]) for i, name in enumerate("AB")},
        tables={
            "table": table({"A": np.arange(7), "B": np.arange(8)})[np.random.default_rng(0).permutation(15)].copy()
        },
    )


def mean_and_size(seen: list[tuple[int, ...]]) -> Callable[[np.ndarray], np.ndarray]:
    def means(crops: np.ndarray) -> np.ndarray:
        seen.append(crops.shape)
        return crops.mean(axis=(1, 2))

    return means


def test_features_are_the_encoder_on_the_crops_of_each_field() -> None:
    sdata = two_slides()
    stc.pp.image_features(sdata, field_um=(20, 40.5), size_px=16)
    found = sdata["table"].obsm["X_image"]
    assert found.dtype == np.float32
    expected = [TextureEncoder(16)(stc.pp.crops(sdata, field_um=um, size_px=16)) for um in (20, 40.5)]
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-6)


def test_a_timm_model_gets_the_field_as_it_was_cut() -> None:
    sdata = two_slides()
    encoder = TimmEncoder("test_resnet", pretrained=False, size_px=40, device="cpu")
    stc.pp.image_features(sdata, encoder=encoder, field_um=40)
    expected = encoder(stc.pp.crops(sdata, field_um=40, size_px=40))
    np.testing.assert_allclose(sdata["table"].obsm["X_image"], expected, atol=1e-5)
    by_name = two_slides()
    stc.pp.image_features(by_name, encoder="test_resnet", pretrained=False, size_px=40, field_um=40)
    np.testing.assert_allclose(by_name["table"].obsm["X_image"], expected, atol=1e-4)


def test_a_function_sees_batches_of_uint8_crops() -> None:
    sdata = two_slides()
    seen: list[tuple[int, ...]] = []
    stc.pp.image_features(sdata, encoder=mean_and_size(seen), field_um=(20, 30), size_px=24)
    assert sum(shape[0] for shape in seen) == 2 * 15
    assert {shape[1:] for shape in seen} == {(24, 24, 3)}
    assert sdata["table"].obsm["X_image"].shape == (15, 6)
    assert "means" in sdata["table"].uns["stcontrast"]["image_features"]["encoder"]["name"]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_size_of_batches_changes_nothing(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, sdata = two_slides(), two_slides()
    stc.pp.image_features(expected, field_um=20)
    monkeypatch.setattr(_encoding, "BATCH", batch)
    seen: list[tuple[int, ...]] = []
    stc.pp.image_features(sdata, encoder=mean_and_size(seen), field_um=20)
    assert max(shape[0] for shape in seen) == batch
    stc.pp.image_features(sdata, field_um=20)
    np.testing.assert_allclose(sdata["table"].obsm["X_image"], expected["table"].obsm["X_image"], rtol=1e-5, atol=1e-6)


def test_a_spots_features_depend_on_its_own_crop_alone() -> None:
    sdata = two_slides()
    stc.pp.image_features(sdata, field_um=20)
    rows = [4, 0, 9]
    few = SpatialData(
        images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": sdata["table"][rows].copy()}
    )
    del few["table"].obsm["X_image"]
    stc.pp.image_features(few, field_um=20)
    np.testing.assert_allclose(few["table"].obsm["X_image"], sdata["table"].obsm["X_image"][rows], atol=1e-6)


def test_the_record_says_how_they_were_made_and_survives_a_store(tmp_path: Path) -> None:
    sdata = slide(picture(), points(6))
    stc.pp.image_features(sdata, field_um=(20, 40), um_per_px={"s1": 0.5})
    record = sdata["table"].uns["stcontrast"]["image_features"]
    assert len(record.pop("fingerprint")["s1"]) == 32
    assert record.pop("windows")["s1"].shape == record.pop("spots")["s1"].shape == (6, 2)
    assert record == {
        "encoder": {"kind": "texture", "name": "texture", "size_px": 64},
        "field_um": [20.0, 40.0],
        "n_features": 126,
        "um_per_px": {"s1": 0.5},
        "version": stc.__version__,
    }
    stc.pp.image_features(sdata, encoder="test_resnet", pretrained=False, size_px=32, field_um=20, key_added="X_timm")
    sdata.write(tmp_path / "x.zarr")
    again = sd.read_zarr(tmp_path / "x.zarr")["table"]
    for key in ("X_image", "X_timm"):
        np.testing.assert_array_equal(again.obsm[key], sdata["table"].obsm[key])
    np.testing.assert_equal(again.uns["stcontrast"], sdata["table"].uns["stcontrast"])


def means(crops: np.ndarray) -> np.ndarray:
    return crops.mean(axis=(1, 2))


def test_several_encoders_are_blocks_of_one_slot(tmp_path: Path) -> None:
    sdata = two_slides()
    network = TimmEncoder("test_resnet", pretrained=False, size_px=32)
    encoders: dict[str, Any] = {"texture": "texture", "network": network, "means": means}
    for key, encoder in encoders.items():
        stc.pp.image_features(sdata, encoder=encoder, field_um=(20, 40), key_added=key)
    stc.pp.image_features(sdata, encoder=list(encoders.values()), field_um=(20, 40))
    table = sdata["table"]
    expected = np.concatenate([table.obsm[key] for key in encoders], axis=1)
    assert table.obsm["X_image"].dtype == np.float32
    np.testing.assert_array_equal(table.obsm["X_image"], expected)
    record = table.uns["stcontrast"]["image_features"]
    assert set(record) == {"blocks", "field_um", "um_per_px", "version"}
    for i, key in enumerate(encoders):
        alone = table.uns["stcontrast"][f"image_features_{key}"]
        of_block = ("encoder", "n_features", "fingerprint", "windows", "spots")
        np.testing.assert_equal(record["blocks"][str(i)], {name: alone[name] for name in of_block})
        assert record["blocks"][str(i)]["n_features"] == table.obsm[key].shape[1]
    sdata.write(tmp_path / "x.zarr")
    again = sd.read_zarr(tmp_path / "x.zarr")["table"]
    np.testing.assert_array_equal(again.obsm["X_image"], expected)
    np.testing.assert_equal(again.uns["stcontrast"], table.uns["stcontrast"])


@pytest.mark.parametrize("arguments", [{}, {"size_px": 32}])
def test_a_list_of_one_encoder_is_that_encoder(arguments: dict[str, Any]) -> None:
    sdata = slide(picture(), points(6))
    stc.pp.image_features(sdata, encoder="texture", field_um=20, **arguments)
    stc.pp.image_features(sdata, encoder=["texture"], field_um=20, key_added="X_list", **arguments)
    table = sdata["table"]
    np.testing.assert_array_equal(table.obsm["X_list"], table.obsm["X_image"])
    np.testing.assert_equal(table.uns["stcontrast"]["image_features_X_list"], table.uns["stcontrast"]["image_features"])


def test_blocks_are_in_order_after_a_store_has_sorted_their_keys() -> None:
    records = [{"encoder": {"name": f"e{i}"}, "n_features": i + 1, "fingerprint": {}} for i in range(12)]
    joined = join_records(records)
    joined["blocks"] = dict(sorted(joined["blocks"].items()))
    features = np.concatenate([np.full((2, i + 1), i) for i in range(12)], axis=1)
    for i, (part, record) in enumerate(split_blocks(features, joined)):
        assert record == records[i]
        np.testing.assert_array_equal(part, np.full((2, i + 1), i))
    assert split_blocks(features[:, 1:], joined) == []


def test_a_second_set_of_features_does_not_pass_for_the_first() -> None:
    sdata = slide(picture(), points(6))
    stc.pp.image_features(sdata, field_um=20)
    record, features = (
        deepcopy(x) for x in (sdata["table"].uns["stcontrast"]["image_features"], sdata["table"].obsm["X_image"])
    )
    stc.pp.image_features(sdata, field_um=40, key_added="X_wide")
    np.testing.assert_equal(sdata["table"].uns["stcontrast"]["image_features"], record)
    assert sdata["table"].uns["stcontrast"]["image_features_X_wide"]["field_um"] == [40.0]
    np.testing.assert_array_equal(sdata["table"].obsm["X_image"], features)
    # made again, they are replaced
    stc.pp.image_features(sdata, field_um=40)
    assert sdata["table"].uns["stcontrast"]["image_features"]["field_um"] == [40.0]
    np.testing.assert_array_equal(sdata["table"].obsm["X_image"], sdata["table"].obsm["X_wide"])


def test_nothing_else_of_the_users_changes() -> None:
    sdata = two_slides()
    before = sd.deepcopy(sdata)
    stc.pp.image_features(sdata, field_um=(20, 40))
    stc.pp.crops(sdata, field_um=20, size_px=8)
    assert [name for _, name, _ in sdata.gen_elements()] == [name for _, name, _ in before.gen_elements()]
    for name in before.shapes:
        assert_geodataframe_equal(sdata[name], before[name])
    for name in before.images:
        assert sdata[name].identical(before[name])
    for name in (*before.images, *before.shapes):
        assert get_transformation(sdata[name], get_all=True) == get_transformation(before[name], get_all=True)
    after, table_before = sdata["table"], before["table"]
    del after.obsm["X_image"], after.uns["stcontrast"]["image_features"]
    assert_frame_equal(after.obs, table_before.obs)
    assert_frame_equal(after.var, table_before.var)
    np.testing.assert_array_equal(after.X.toarray(), table_before.X.toarray())
    np.testing.assert_equal(dict(after.uns), dict(table_before.uns))
    assert [len(getattr(after, slot)) for slot in ("obsm", "varm", "obsp", "varp")] == [0, 0, 0, 0]


def test_scanpy_visium_gets_features_too() -> None:
    adata = visium_adata(picture(), 4 * points(9))
    stc.pp.image_features(adata, field_um=20, um_per_px=1.0)
    expected = TextureEncoder()(stc.pp.crops(adata, field_um=20, size_px=64, um_per_px=1.0))
    np.testing.assert_allclose(adata.obsm["X_image"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"um_per_px": -1}, ValueError, "must be a positive number"),
        ({"table_key": "nope"}, KeyError, "No table 'nope'"),
        ({"image_key": "nope"}, KeyError, "No image 'nope'"),
        ({"field_um": ()}, ValueError, "`field_um` must be one or several positive numbers"),
        ({"encoder": "no_such_model"}, ValueError, "cannot make 'no_such_model'"),
        ({"encoder": 5}, TypeError, "`encoder` must be"),
        ({"encoder": []}, ValueError, "`encoder` is an empty list"),
        ({"encoder": ["texture", 5]}, TypeError, "`encoder` must be"),
        ({"encoder": ["texture", "color", TextureEncoder(64)]}, ValueError, r"`encoder` has \['texture'\] twice"),
        ({"encoder": [lambda x: x, lambda x: x]}, ValueError, "<lambda>'] twice.* distinguished only by their names"),
        ({"encoder": ["texture", "color"], "size_px": 32}, ValueError, "`size_px` cannot be given for 2 encoders"),
        (
            {"encoder": ["texture", "resnet18"], "pretrained": False, "weights": "w.pth"},
            ValueError,
            r"`weights` and `pretrained` cannot be given for 2 encoders.*make the encoders",
        ),
    ],
)
def test_errors_come_before_any_work(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    sdata = slide(picture(), points(6), um_per_px=4.0)
    uns = deepcopy(sdata["table"].uns["stcontrast"])
    with pytest.raises(error, match=message):
        stc.pp.image_features(sdata, **arguments)
    assert "X_image" not in sdata["table"].obsm
    assert sdata["table"].uns["stcontrast"] == uns


def test_one_slide_without_image_stops_all_before_encoding() -> None:
    sdata = two_slides()
    seen: list[tuple[int, ...]] = []
    del sdata.images["B_he"]
    with pytest.raises(ValueError, match=r"No image lies under the spots of \['B'\]"):
        stc.pp.image_features(sdata, encoder=mean_and_size(seen))
    assert seen == []
    assert "X_image" not in sdata["table"].obsm


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda crops: np.full((len(crops), 2), np.nan), "not finite"),
        (lambda crops: np.zeros((len(crops) + 1, 2)), "must return an array"),
        (lambda crops: np.zeros((len(crops), len(crops))), r"returned 8 features for slide 'B', 7 before"),
    ],
    ids=["nan", "rows", "columns"],
)
def test_an_encoder_that_returns_nonsense_writes_nothing(encoder: Any, message: str) -> None:
    sdata = two_slides()
    sdata.tables.data["table"] = sdata["table"][np.argsort(sdata["table"].obs["region"], kind="stable")].copy()
    with pytest.raises(ValueError, match=message):
        stc.pp.image_features(sdata, encoder=encoder, field_um=20, size_px=8)
    assert "X_image" not in sdata["table"].obsm


def test_a_field_that_must_be_enlarged_much_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    stc.pp.image_features(slide(picture(), points(6)), field_um=16)
    assert caplog.text == ""
    stc.pp.image_features(slide(picture(), points(6)), field_um=15)
    assert "Slide s1: a field of 15 µm is only 15 pixels wide, enlarged to 64." in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize("given", [100, 100.0, (100,), [100.0], np.array([100]), np.float32(100)])
def test_fields_are_one_or_several(given: Any) -> None:
    assert parse_fields(given) == (100.0,)
    assert parse_fields((50, 100)) == (50.0, 100.0)


@pytest.mark.parametrize("given", [0, -1, (), (100, 0), float("nan"), (100, float("inf"))])
def test_fields_must_be_positive(given: Any) -> None:
    with pytest.raises(ValueError, match="positive numbers"):
        parse_fields(given)


def test_real_slides_layers_differ_in_color() -> None:
    sdata = olfactory_bulb(require("olfactory_bulb"), 1)
    stc.pp.image_features(sdata, encoder="color", field_um=100)
    adata = sdata["table"]
    features = adata.obsm["X_image"]
    assert features.shape == (267, 35)
    assert features.std(axis=0).min() > 0
    # nuclei are packed in the granule cell layer and rare in the nerve layer: less red light comes through
    red = {layer: features[(adata.obs["layer"] == layer).to_numpy(), 0].mean() for layer in ("GCL", "ONL")}
    assert red["GCL"] < red["ONL"]

"""Image features are used again only while they match their slide: scale, pixels, positions, and the array itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import spatialdata as sd
from anndata import AnnData
from spatialdata import SpatialData

import stcontrast as stc
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, as_anndata, image_of, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from stcontrast.fitted import Predictor

HOW: dict[str, Any] = {"encoder": "color", "field_um": 100}


@pytest.fixture(scope="module")
def colored(toy: SpatialData) -> SpatialData:
    sdata = copied(toy)
    table = sdata["table"]
    # no scale is stored: it is derived from the lattice where none is given
    table.uns["stcontrast"].pop("um_per_px")
    stc.pp.image_features(sdata, um_per_px=1.0, overwrite=True, **HOW)
    return sdata


@pytest.fixture(scope="module")
def ridge(colored: SpatialData) -> Predictor:
    return stc.tl.fit(
        parts_of(copied(colored), "donor1", "donor2"), batch_key="donor", label_key=LABELS, method="ridge"
    )


def fresh_features(sdata: SpatialData, **arguments: Any) -> np.ndarray:
    again = copied(sdata)
    del again["table"].obsm["X_image"]
    stc.pp.image_features(again, **HOW, **{"um_per_px": 1.0, **arguments})
    return again["table"].obsm["X_image"]


def moved(sdata: SpatialData) -> SpatialData:
    shapes = {name: part.set_geometry(part.geometry.translate(12.0)) for name, part in sdata.shapes.items()}
    return SpatialData(images=dict(sdata.images), shapes=shapes, tables=dict(sdata.tables))


def with_another_image(sdata: SpatialData) -> SpatialData:
    return image_of(sdata, lambda pixels: 255 - pixels)


def unchanged(sdata: SpatialData) -> SpatialData:
    return sdata


CHANGES: list[Any] = [
    pytest.param(unchanged, {"um_per_px": 0.4}, "they were made at 1 µm per pixel, now it is 0.4", id="scale"),
    pytest.param(moved, {}, "40 of its 40 spots lie elsewhere", id="positions"),
    pytest.param(with_another_image, {}, "its image has changed", id="pixels"),
]
PREDICT: list[Any] = [
    pytest.param(stc.tl.predict_expression, id="predict_expression"),
    pytest.param(stc.tl.classify, id="classify"),
]


@pytest.mark.situation(
    "Image features",
    "Scale, positions or pixels changed after image features were made",
    "warning",
    "no longer match the slide",
)
@pytest.mark.parametrize(("change", "arguments", "reason"), CHANGES)
@pytest.mark.parametrize("predict", PREDICT)
def test_a_prediction_makes_them_again_and_says_so(
    colored: SpatialData, ridge: Predictor, change: Callable[..., SpatialData], arguments: dict[str, Any], reason: str,
    predict: Callable[..., None], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    sdata = change(parts_of(copied(colored), "donor3"))
    expected = fresh_features(sdata, **arguments)
    assert not np.allclose(sdata["table"].obsm["X_image"], expected)
    predict(sdata, ridge, **arguments)
    assert (
        f"Slide donor3_a: its image features in `obsm['X_image']` no longer match the slide, as {reason}" in caplog.text
    )
    np.testing.assert_array_equal(sdata["table"].obsm["X_image"], expected)
    caplog.clear()
    # and now they match
    predict(sdata, ridge, **arguments)
    assert "no longer match" not in caplog.text


@pytest.mark.parametrize(("change", "arguments", "reason"), CHANGES)
def test_a_prediction_into_a_store_too(
    colored: SpatialData, ridge: Predictor, change: Callable[..., SpatialData], arguments: dict[str, Any], reason: str,
    tmp_path: Any, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    sdata = change(parts_of(copied(colored), "donor3"))
    expected = copied(sdata)
    stc.tl.predict_expression(expected, ridge, **arguments)
    caplog.clear()
    stc.tl.predict_expression(sdata, ridge, store=tmp_path / "pred.zarr", **arguments)
    assert reason in caplog.text
    np.testing.assert_allclose(np.asarray(sdata["stc_pred"].X), expected["stc_pred"].X, atol=2e-4)


def test_an_interrupted_store_is_not_continued_with_other_features_of_the_same_spots(
    colored: SpatialData, ridge: Predictor, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdata = parts_of(copied(colored), "donor3")
    with monkeypatch.context() as patch:
        patch.setattr(type(ridge), "predict_spots", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stc.tl.predict_expression(sdata, ridge, store=tmp_path / "pred.zarr")
    stc.pp.image_features(sdata, um_per_px=0.8, **HOW)
    with pytest.raises(ValueError, match=r"interrupted work that differs in \['features'\]"):
        stc.tl.predict_expression(sdata, ridge, um_per_px=0.8, store=tmp_path / "pred.zarr")


@pytest.mark.parametrize(("change", "arguments", "reason"), CHANGES)
def test_fit_makes_them_again_and_says_so(
    colored: SpatialData, change: Callable[..., SpatialData], arguments: dict[str, Any], reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    sdata = change(parts_of(copied(colored), "donor1", "donor2"))
    expected = fresh_features(sdata, **arguments)
    stc.tl.fit(sdata, batch_key="donor", method="mean", **arguments)
    assert f"no longer match the slide, as {reason}" in caplog.text
    np.testing.assert_array_equal(sdata["table"].obsm["X_image"], expected)


def test_only_the_slide_that_changed_is_encoded_again(colored: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    sdata = parts_of(copied(colored), "donor1", "donor2")
    before = sdata["table"].obsm["X_image"].copy()
    stc.tl.fit(sdata, batch_key="donor", method="mean", um_per_px={"donor2_a": 0.4})
    assert "Slide donor2_a" in caplog.text
    assert "Slide donor1_a: its image features in `obsm['X_image']` no longer" not in caplog.text
    of_first = (sdata["table"].obs["region"] == "donor1_a").to_numpy()
    np.testing.assert_array_equal(sdata["table"].obsm["X_image"][of_first], before[of_first])
    assert not np.allclose(sdata["table"].obsm["X_image"][~of_first], before[~of_first])


def test_cross_validation_too(colored: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    sdata = with_another_image(parts_of(copied(colored), "donor1", "donor2"))
    stc.tl.cross_validate(sdata, donor_key="donor", methods=["mean"])
    assert "its image has changed" in caplog.text
    np.testing.assert_array_equal(sdata["table"].obsm["X_image"], fresh_features(sdata))


def test_a_scale_that_was_given_then_and_not_now_stays(colored: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    sdata = parts_of(copied(colored), "donor1", "donor2")
    stc.pp.image_features(sdata, um_per_px=0.5, **HOW)
    before = sdata["table"].obsm["X_image"].copy()
    stc.tl.fit(sdata, batch_key="donor", method="mean")
    np.testing.assert_array_equal(sdata["table"].obsm["X_image"], before)
    assert "no longer match" not in caplog.text
    # the lattice of the toy slides is Visium's, at 1 µm a pixel
    assert "were made at 0.5 µm per pixel, but its spots suggest 1" in caplog.text


@pytest.mark.situation(
    "Image features", "Something else was put into the slot of image features", "error", "was changed"
)
@pytest.mark.parametrize("own", ["another array", "some rows", "scaled"])
@pytest.mark.parametrize("use", ["fit", "predict_expression", "image_features"])
def test_an_array_of_the_user_under_our_record_is_refused(
    colored: SpatialData, ridge: Predictor, own: str, use: str
) -> None:
    sdata = parts_of(copied(colored), "donor1", "donor2")
    table = sdata["table"]
    features = table.obsm["X_image"].copy()
    features = {"another array": np.ones_like(features), "some rows": features, "scaled": features * 2}[own]
    features[:3] += 1
    table.obsm["X_image"] = features
    calls: dict[str, Callable[[], object]] = {
        "fit": lambda: stc.tl.fit(sdata, batch_key="donor", method="mean"),
        "predict_expression": lambda: stc.tl.predict_expression(sdata, ridge),
        "image_features": lambda: stc.pp.image_features(sdata, um_per_px=1.0, **HOW),
    }
    with pytest.raises(ValueError, match=r"`obsm\['X_image'\]`.*was changed.*overwrite=True"):
        calls[use]()
    assert table.obsm["X_image"] is features


@pytest.mark.parametrize("rows", [slice(5, 30), slice(None, None, -1)], ids=["fewer spots", "another order"])
def test_fewer_spots_or_another_order_are_no_change(
    colored: SpatialData, ridge: Predictor, rows: slice, caplog: pytest.LogCaptureFixture
) -> None:
    sdata = parts_of(copied(colored), "donor3")
    before = sdata["table"].obsm["X_image"][rows].copy()
    sdata.tables.data["table"] = sdata["table"][rows].copy()
    stc.tl.predict_expression(sdata, ridge)
    np.testing.assert_array_equal(sdata["table"].obsm["X_image"], before)
    assert "no longer match" not in caplog.text


def test_a_slide_that_was_renamed_is_known_by_what_it_shows(
    colored: SpatialData, ridge: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    sdata = parts_of(copied(colored), "donor3")
    table = sdata["table"].copy()
    table.obs["region"] = table.obs["region"].cat.rename_categories({"donor3_a": "new"})
    del table.uns["spatialdata_attrs"]
    renamed = SpatialData(
        images=dict(sdata.images),
        shapes={"new": sdata.shapes["donor3_a"]},
        tables={"table": sd.models.TableModel.parse(table, region="new", region_key="region", instance_key="spot_id")},
    )
    stc.tl.predict_expression(renamed, ridge)
    assert "no longer match" not in caplog.text


def test_without_an_image_they_are_taken_as_they_are(colored: SpatialData, ridge: Predictor) -> None:
    table = parts_of(copied(colored), "donor3")["table"]
    adata = as_anndata(colored)[table.obs_names].copy()
    adata.uns["stcontrast"] = {"image_features": table.uns["stcontrast"]["image_features"]}
    adata.obsm["spatial"] = np.zeros((adata.n_obs, 2)) + np.arange(adata.n_obs)[:, None]
    found = stc.tl.predict_expression(adata, ridge)
    assert isinstance(found, AnnData)
    assert found.shape == (40, len(ridge.genes))


def test_a_callable_is_not_made_again_without_the_callable(colored: SpatialData) -> None:
    def means(crops: np.ndarray) -> np.ndarray:
        return crops.mean(axis=(1, 2))

    sdata = parts_of(copied(colored), "donor1", "donor2")
    how: dict[str, Any] = {"encoder": stc.pp._encoders.resolve_encoder(means, size_px=16), "field_um": 100}
    stc.pp.image_features(sdata, um_per_px=1.0, overwrite=True, **how)
    stc.tl.fit(sdata, batch_key="donor", method="mean")
    sdata = moved(sdata)
    with pytest.raises(ValueError, match="callable"):
        stc.tl.fit(sdata, batch_key="donor", method="mean", um_per_px=1.0)
    stc.tl.fit(sdata, batch_key="donor", method="mean", um_per_px=1.0, **how)


@pytest.mark.situation(
    "Image features",
    "`spatialdata.concatenate` dropped the record of image features",
    "warning",
    "has no record of what made it",
)
def test_after_concatenation_fit_says_what_the_features_are_taken_for(
    colored: SpatialData, caplog: pytest.LogCaptureFixture
) -> None:
    objects = {donor: parts_of(copied(colored), donor) for donor in ("donor1", "donor2")}
    joined = sd.concatenate(objects, concatenate_tables=True)
    assert "stcontrast" not in joined["table"].uns
    stc.tl.fit(joined, batch_key="donor", method="mean")
    assert "has no record of what made it" in caplog.text
    assert "its 35 columns are treated as custom features" in caplog.text
    caplog.clear()
    # the user's own slot is the user's own: nothing to say
    joined["table"].obsm["X_own"] = joined["table"].obsm["X_image"]
    stc.tl.fit(joined, batch_key="donor", method="mean", use_rep="X_own")
    assert "no record" not in caplog.text

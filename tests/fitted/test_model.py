from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import stcontrast as stc
from stcontrast._data import inner_folds
from stcontrast._files import content_hash
from stcontrast.fitted import Predictor
from stcontrast.methods._base import METHODS
from stcontrast.methods.baselines import Knn, Ridge
from stcontrast.methods.stcontrast import Stcontrast
from stcontrast.pp._encoders import encoder_from_spec
from tests.methods.quick import QUICK
from tests.methods.synthetic import training_data

if TYPE_CHECKING:
    from stcontrast.methods import Spots

SPEC = {
    "genes": [f"g{i}" for i in range(5)], "classes": ["a", "b"], "blocks": [6], "n_neighbors": 6, "n_spots": 90, "n_spots_used": 90,
    "standardize": "slide", "image_features": [{"encoder": {"kind": "callable", "name": "made"}}], "versions": {"stcontrast": "0"},
    "donors": ["a", "b", "c"],
}  # fmt: skip


def training_spots() -> Spots:
    data = training_data(n_design=24)
    return replace(data, features=data.design[:, :6])


@pytest.fixture(scope="module")
def model() -> Predictor:
    data = training_spots()
    return Predictor.fit(Ridge(), data, inner_folds(data), SPEC)


@pytest.fixture
def seen() -> dict:
    rng = np.random.default_rng(0)
    return {
        "features": rng.normal(size=(40, 6)).astype(np.float32),
        "slide": np.repeat([0, 1], 20),
        "xy": rng.uniform(size=(40, 2)),
    }


def predict(model, seen):
    return model.predict(seen["features"], slide=seen["slide"], xy=seen["xy"])


def test_prediction(model, seen):
    prediction = predict(model, seen)
    assert prediction.expression.shape == (40, 5)
    assert prediction.expression.dtype == np.float32
    assert (prediction.lower >= 0).all()
    assert (prediction.lower <= prediction.expression).all()
    np.testing.assert_allclose(
        prediction.upper - prediction.expression, np.tile(model.calibration.half_width, (40, 1)), atol=1e-5
    )
    np.testing.assert_allclose(prediction.proba.sum(axis=1), 1, atol=1e-5)
    assert prediction.in_distribution.dtype == bool


def test_expression_is_never_negative(model, seen):
    seen["features"] *= 1000
    assert (predict(model, seen).expression >= 0).all()


def test_other_features_are_refused(model, seen):
    seen["features"] = seen["features"][:, :4]
    with pytest.raises(ValueError, match="trained on 6 image features per spot, found 4"):
        predict(model, seen)


def test_saved_and_read_again(model, seen, tmp_path):
    model.save(tmp_path / "model")
    again = stc.models.load(tmp_path / "model")
    assert again.spec == model.spec
    assert again.model_id == model.model_id
    one, other = predict(again, seen), predict(model, seen)
    for name in ("expression", "lower", "upper", "proba", "in_distribution"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_an_old_model_is_replaced_only_if_asked(model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(FileExistsError, match="`overwrite=True`"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_folder_of_something_else_is_left_alone(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="not of a stcontrast model"):
        model.save(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_a_save_that_fails_leaves_the_old_model(model, tmp_path, monkeypatch):
    model.save(tmp_path / "model")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save(tmp_path / "model", overwrite=True)
    assert stc.models.load(tmp_path / "model").model_id == model.model_id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_method_that_is_not_there_is_named(model, tmp_path):
    other = Predictor(model.method, model.spec | {"method": "lasso"})
    other.save(tmp_path / "model")
    with pytest.raises(ValueError, match="method 'lasso', which is not available"):
        stc.models.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param({"n_neighbors": -1}, r"n_neighbors: .*greater than or equal to 0", id="negative"),
        pytest.param({"blocks": [10**9]}, r"blocks\.0: .*less than or equal to 1000000", id="huge"),
        pytest.param({"genes": ["g0", "g0"]}, "genes: .*not distinct", id="twice"),
        pytest.param({"genes": "g0"}, "genes: .*valid list", id="another type"),
        pytest.param({"standardize": "zz"}, "standardize: ", id="unknown word"),
        pytest.param({"interval": 3.0}, "interval: ", id="out of range"),
        pytest.param({"images": {"a": {"print": "x", "box": [1.0]}}}, r"images\.a\.box: ", id="a box without corners"),
        pytest.param({"method_spec": {"penalties": 10**8}}, "unexpected keyword|out of range", id="option unknown"),
        pytest.param({"method_spec": {"seed": 2**40}}, "method_spec: .*out of range", id="option out of range"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(model, tmp_path, change, match):
    Predictor(model.method, model.spec | change).save(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"cannot be read: .*{match}"):
        stc.models.load(tmp_path / "model")


def test_the_place_of_encoder_weights_is_not_saved(model, tmp_path):
    encoder = {"kind": "timm", "name": "resnet18", "weights": str(tmp_path / "mine.pth"), "sha256": 64 * "0"}
    encoder |= {"size_px": 64, "pretrained": False, "seed": 0}
    used = Predictor(model.method, model.spec | {"image_features": [{"encoder": encoder}]})
    used.save(tmp_path / "model")
    again = stc.models.load(tmp_path / "model")
    assert again.model_id == used.model_id
    found = again.spec["image_features"][0]["encoder"]
    assert found == encoder | {"weights": "mine.pth"}
    with pytest.raises(ValueError, match=r"give `encoder=stc\.pp\.TimmEncoder\('resnet18', weights=\.\.\.\)`"):
        encoder_from_spec(found, allow_download=again.allow_download)


@pytest.mark.parametrize(
    "weights", ["/etc/passwd", "//server/share", "../mine.pth", "folder/mine.pth", r"\\server\a", 7]
)
def test_a_path_to_weights_in_a_saved_spec_is_refused(model, tmp_path, weights):
    model.save(tmp_path / "model")
    head = json.loads((tmp_path / "model" / "model.json").read_text())
    del head["sha256"]
    head["spec"]["image_features"] = [{"encoder": {"kind": "timm", "name": "resnet18", "weights": weights}}]
    # by somebody who knows the format
    (tmp_path / "model" / "model.json").write_text(json.dumps(head | {"sha256": content_hash([head])}))
    with pytest.raises(ValueError, match=r"image_features\.0\.encoder: .*not the name of a file"):
        stc.models.load(tmp_path / "model")


@pytest.mark.parametrize("name", sorted(QUICK))
def test_every_method_is_saved_and_read_again(name, tmp_path):
    data = training_spots()
    model = Predictor.fit(METHODS[name](**QUICK[name]), data, inner_folds(data), SPEC)
    model.save(tmp_path / "model")
    again = stc.models.load(tmp_path / "model")
    assert again.spec == model.spec
    depth = data.depth if model.method.oracle else None
    one, other = (part.predict(data.features, slide=data.slide, xy=data.xy, depth=depth) for part in (model, again))
    for part in ("expression", "lower", "upper", "proba"):
        np.testing.assert_allclose(getattr(one, part), getattr(other, part), atol=1e-6)
    np.testing.assert_array_equal(one.in_distribution, other.in_distribution)


def test_neighbours_have_names_and_donors(tmp_path):
    data = training_spots()
    data = replace(data, depth=data.depth * (np.arange(90) % 5 > 0))
    model = Predictor.fit(Knn(), data, inner_folds(data), SPEC)
    features, where = data.features, {"slide": data.slide, "xy": data.xy}
    found = model.neighbors(features, **where)
    assert found.spots.shape == found.weights.shape == (90, min(model.method.k, 72))
    np.testing.assert_allclose(found.donors.sum(axis=1), 1)
    assert list(found.donors.columns) == ["a", "b", "c"]
    np.testing.assert_allclose(found.effective_k, found.spots.shape[1])
    number = np.array([int(name.removeprefix("spot")) for name in found.spots[7]])
    assert data.measured[number].all()
    assert found.donors.iloc[7, 1] == pytest.approx((data.donor[number] == "1").mean())
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(stc.models.load(tmp_path / "model").neighbors(features, **where).spots, found.spots)


def test_neighbours_in_the_joint_embedding(tmp_path, monkeypatch):
    monkeypatch.setattr("stcontrast.methods.stcontrast._image_to_gene.MAX_BANK", 50)
    data = training_spots().with_design(n_neighbors=6, standardize="slide")
    data = replace(data, depth=data.depth * (np.arange(90) % 5 > 0))
    model = Predictor.fit(Stcontrast(max_epochs=3), data, inner_folds(data), SPEC)
    features, where = data.features, {"slide": data.slide, "xy": data.xy}
    found = model.neighbors(features, **where)
    assert found.spots.shape == (90, 20)
    np.testing.assert_allclose(found.effective_k, 20)
    np.testing.assert_allclose(found.donors.sum(axis=1), 1)
    measured = data.name[data.measured]
    kept = np.isin(data.name, measured[model.method.parts.arrays["bank"]])
    assert kept.sum() == 50
    # a spot that was kept is its own nearest neighbour, and has the slide and the donor that it came from
    np.testing.assert_array_equal(found.spots[kept, 0], data.name[kept])
    assert np.isin(found.spots, data.name[kept]).all()
    np.testing.assert_array_equal(model.bank["slide"], np.array(data.slides)[data.slide[data.measured]])
    image = model.method.embed(data)["X_stc_image"]
    rows, similarity = model.method.search(image, k=20, by="image")
    np.testing.assert_array_equal(model.bank["spot"][rows], found.spots)
    assert (np.diff(similarity, axis=1) <= 0).all()
    genes = model.method.embed(data)["X_stc_gene"]
    rows, similarity = model.method.search(image, k=1, by="gene")
    of_bank = np.where(kept[:, None], genes, np.nan)
    np.testing.assert_allclose(similarity[:, 0], np.nanmax(image @ of_bank.T, axis=1), atol=1e-5)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(stc.models.load(tmp_path / "model").neighbors(features, **where).spots, found.spots)

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import stcontrast as stc
from stcontrast._data.folds import inner_folds
from stcontrast.fitted import Predictor
from stcontrast.methods._base import METHODS
from stcontrast.methods.baselines import Knn, Ridge
from stcontrast.methods.stcontrast import Stcontrast
from tests.methods.quick import QUICK
from tests.methods.synthetic import training_data

if TYPE_CHECKING:
    from stcontrast._data.spots import Spots

SPEC = {
    "genes": [f"g{i}" for i in range(5)], "classes": ["a", "b"], "blocks": [6], "n_neighbors": 6,
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
    with pytest.raises(ValueError, match="trained on 6 image features a spot, found 4"):
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
    with pytest.raises(FileExistsError, match="no stcontrast model"):
        model.save(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_a_save_that_fails_leaves_the_old_model(model, tmp_path, monkeypatch):
    model.save(tmp_path / "model")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("stcontrast.fitted._disk.np.savez", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save(tmp_path / "model", overwrite=True)
    assert stc.models.load(tmp_path / "model").model_id == model.model_id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_folder_that_is_no_readable_model_is_refused(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`spec\.json` is absent"):
        stc.models.load(tmp_path)
    model.save(tmp_path / "model")
    spec = tmp_path / "model" / "spec.json"
    content = json.loads(spec.read_text())
    spec.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(ValueError, match="saved in format 99, by stcontrast 0; this version reads format 4"):
        stc.models.load(tmp_path / "model")
    spec.write_text(json.dumps({**content, "method": "lasso"}))
    with pytest.raises(ValueError, match="method 'lasso', which is not there"):
        stc.models.load(tmp_path / "model")


def test_a_model_of_the_first_format_is_refused_and_may_be_replaced(model, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    card = {"format": 1, "method": "ridge", "hyper": {}, "versions": {"stcontrast": "0.0.9"}}
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"saved in format 1, by stcontrast 0\.0\.9.*Fit it again with `stc\.tl\.fit`"):
        stc.models.load(folder)
    model.save(folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["arrays.npz", "spec.json", "state.json"]
    assert stc.models.load(folder).model_id == model.model_id


def test_the_state_of_a_model_holds_no_code(model, tmp_path):
    """Arrays are read without pickle, so that a folder from anybody is safe to read."""
    model.save(tmp_path / "model")
    np.savez(tmp_path / "model" / "arrays.npz", bank=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
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

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import stcontrast as stc
from stcontrast._data.folds import inner_folds
from stcontrast.fitted import Predictor
from stcontrast.methods.baselines import Knn, Ridge
from tests.methods.synthetic import training_data

CARD = {
    "genes": [f"g{i}" for i in range(5)], "classes": ["a", "b"], "n_features": 6, "n_neighbors": 6,
    "standardize": "slide", "image_features": {"encoder": {"name": "made"}}, "versions": {"stcontrast": "0"},
    "donors": ["a", "b", "c"],
}  # fmt: skip
NAMES = np.array([f"spot{i}" for i in range(90)])


@pytest.fixture(scope="module")
def model() -> Predictor:
    data = training_data(n_design=24)
    return Predictor.fit(Ridge(), data, inner_folds(data), CARD, features=data.design[:, :6], names=NAMES)


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

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Ridge, "save_parts", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save(tmp_path / "model", overwrite=True)
    assert stc.models.load(tmp_path / "model").model_id == model.model_id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_what_cannot_be_read_says_why(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`card\.json` is absent"):
        stc.models.load(tmp_path)
    model.save(tmp_path / "model")
    card = tmp_path / "model" / "card.json"
    content = json.loads(card.read_text())
    card.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(ValueError, match="another format, by stcontrast 0"):
        stc.models.load(tmp_path / "model")
    card.write_text(json.dumps({**content, "method": "lasso"}))
    with pytest.raises(ValueError, match="method 'lasso', which is not installed"):
        stc.models.load(tmp_path / "model")


def test_neighbours_by_name_and_donor(tmp_path):
    data = training_data(n_design=24)
    data = replace(data, depth=data.depth * (np.arange(90) % 5 > 0))
    model = Predictor.fit(Knn(), data, inner_folds(data), CARD, features=data.design[:, :6], names=NAMES)
    features, where = data.design[:, :6], {"slide": data.slide, "xy": data.xy}
    found = model.neighbors(features, **where)
    assert found.spots.shape == found.weights.shape == (90, min(model.method.k, 72))
    np.testing.assert_allclose(found.donors.sum(axis=1), 1)
    assert list(found.donors.columns) == ["a", "b", "c"]
    np.testing.assert_allclose(found.effective_k, found.spots.shape[1])
    number = np.array([int(name.removeprefix("spot")) for name in found.spots[7]])
    assert data.measured[number].all()
    assert found.donors.iloc[7, 1] == pytest.approx((data.donor[number] == 1).mean())
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(Predictor.load(tmp_path / "model").neighbors(features, **where).spots, found.spots)

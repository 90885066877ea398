from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stcontrast._data import inner_folds
from stcontrast._files import read_state, write_state
from stcontrast.methods._base import METHODS, get_method
from stcontrast.metrics import mean_slide_correlation
from tests.methods.quick import REGRESSING
from tests.methods.synthetic import training_data

ALL = np.arange(90)


def made(name: str, **options):
    return get_method(name, options={**REGRESSING[name], **options})


@pytest.fixture(scope="module", params=list(REGRESSING))
def fitted(request):
    data = training_data(n_classes=3)
    data = replace(data, depth=data.depth * (ALL % 11 > 0), label=np.where(ALL % 4, data.label, -1))
    method = made(request.param)
    method.fit_parts(data)
    return method, data


def test_saved_and_read_again(fitted, tmp_path):
    method, _ = fitted
    write_state(tmp_path, method.state())
    again = METHODS[method.name](**method.spec)
    again.restore(read_state(tmp_path))
    view = training_data(seed=1).unseen()
    np.testing.assert_array_equal(again.predict_expression(view), method.predict_expression(view))
    np.testing.assert_array_equal(again.predict_proba(view), method.predict_proba(view))


def test_a_prediction_is_of_its_own_slide_alone(fitted):
    method, data = fitted
    whole = method.predict_expression(data.unseen())
    assert np.isfinite(whole).all()
    rows = np.flatnonzero(data.slide == 1)
    np.testing.assert_allclose(method.predict_expression(data.take(rows).unseen()), whole[rows], atol=1e-4)


def test_the_order_of_the_spots_does_not_matter(fitted):
    method, data = fitted
    order = np.random.default_rng(0).permutation(90)
    one, other = (method.predict_expression(part.unseen()) for part in (data, data.take(order)))
    np.testing.assert_allclose(other, one[order], atol=1e-4)


def test_how_many_are_predicted_at_once_does_not_matter(fitted, monkeypatch):
    method, data = fitted
    whole = method.predict_expression(data.unseen())
    monkeypatch.setattr("stcontrast._models.contrastive.training.EMBEDDED_AT_ONCE", 7)
    np.testing.assert_allclose(method.predict_expression(data.unseen()), whole, atol=1e-5)


def test_the_neighbourhood_enters_a_prediction(fitted):
    method, data = fitted
    design = data.design.copy()
    first, *others = np.flatnonzero(data.slide == 0)
    design[others] += np.random.default_rng(0).normal(size=design[others].shape).astype(np.float32)
    before, after = (
        method.predict_expression(view)[first] for view in (data.unseen(), replace(data.unseen(), design=design))
    )
    assert not np.allclose(before, after, atol=1e-5)


def test_spots_without_counts_teach_nothing(fitted):
    method, data = fitted
    target = np.where(data.measured[:, None], data.target, 99).astype(np.float32)
    again = METHODS[method.name](**method.spec)
    again.fit_parts(replace(data, target=target, observed=target))
    np.testing.assert_array_equal(again.predict_expression(data.unseen()), method.predict_expression(data.unseen()))


@pytest.mark.parametrize("name", REGRESSING)
def test_held_out_counts_do_not_change_out_of_fold_predictions(name):
    data = training_data()
    folds = inner_folds(data)
    rows = folds[0].held_out
    found = made(name).predict_out_of_fold(data, folds)
    rng = np.random.default_rng(0)
    target = data.target.copy()
    target[rows] = 9 * rng.random(target[rows].shape)
    changed = replace(
        data, target=target, observed=target,
        label=np.where(np.isin(ALL, rows), rng.permutation(data.label), data.label),
    )  # fmt: skip
    again = made(name).predict_out_of_fold(changed, inner_folds(changed))
    np.testing.assert_array_equal(again.expression[rows], found.expression[rows])
    np.testing.assert_array_equal(again.proba[rows], found.proba[rows])
    others = folds[1].held_out
    assert not np.array_equal(again.expression[others], found.expression[others])


@pytest.mark.parametrize("name", REGRESSING)
def test_something_is_learnt(name):
    data, new = training_data(n_spots=60), training_data(n_spots=60, seed=1)
    method = made(name, max_epochs=40, batch_size=32, learning_rate=3e-3, n_hidden=32)
    method.fit_parts(data)
    found = method.predict_expression(new.unseen())
    assert mean_slide_correlation(found, new.observed, new.slide) > 0.5
    mean, _ = data.slide_means()
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=0.5)


@pytest.mark.parametrize("name", REGRESSING)
def test_labels_or_counts_alone(name):
    data = training_data()
    nothing = np.zeros((90, 0), dtype=np.float32)
    labels = replace(data, depth=np.zeros(90), counts=data.counts[:, :0], target=nothing, observed=nothing)
    method = made(name)
    method.fit_parts(labels)
    assert (method.predict_proba(data.unseen()).argmax(axis=1) == data.label).mean() > 0.9
    with pytest.raises(ValueError, match="without counts"):
        method.predict_expression(data.unseen())
    method.fit_parts(replace(data, label=np.full(90, -1)))
    with pytest.raises(ValueError, match="without labels"):
        method.predict_proba(data.unseen())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deepspot", {"n_members": 0}, "`n_members` must be a whole number of at least 1, found 0"),
        ("deepspot", {"dropout": 1.0}, "`dropout` must be a finite number of at least 0 and below 1"),
        ("deepspot", {"k": 3}, "Unknown options .'k'. of the method 'deepspot'"),
        ("triplex", {"distillation": 1.5}, "`distillation` must be a finite number of at least 0 and of at most 1"),
        ("triplex", {"n_hidden": 20, "n_heads": 8}, "multiple of `n_heads`, found 20 and 8"),
        ("triplex", {"max_steps": 0}, "`max_steps` must be a whole number of at least 1"),
    ],
)
def test_options_are_checked_before_any_work(name, options, message):
    with pytest.raises(ValueError, match=message):
        get_method(name, options=options)

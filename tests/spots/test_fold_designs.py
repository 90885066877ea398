"""Folds that bring features of their own: an encoder that was trained without the held-out rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from stcontrast._data import inner_folds
from stcontrast.fitted._calibration import InDistribution
from stcontrast.methods._base import METHODS
from stcontrast.methods.stcontrast import _method
from tests.methods.quick import QUICK
from tests.methods.synthetic import training_data

if TYPE_CHECKING:
    from stcontrast.methods import Fold


def with_design(folds: list[Fold], design: np.ndarray) -> list[Fold]:
    return [replace(fold, spots=replace(fold.spots, design=design, features=design)) for fold in folds]


@pytest.mark.parametrize("name", sorted(set(QUICK) - {"depth", "field"}))
def test_out_of_fold_predictions_depend_on_the_fold_s_design_alone(name, monkeypatch):
    # the axes of the last fit, onto which the default method turns embeddings as a whole, are those of all spots
    monkeypatch.setattr(_method, "orthogonal_procrustes", lambda one, _: (np.eye(one.shape[1], dtype=one.dtype), 1.0))
    data = training_data(n_spots=14)
    data.label[::3] = -1
    folds = with_design(inner_folds(data), data.design.copy())
    leaky = replace(data, design=np.random.default_rng(1).normal(size=data.design.shape).astype(np.float32))
    expected = METHODS[name](**QUICK[name]).fit(data, folds)
    found = METHODS[name](**QUICK[name]).fit(leaky, folds)
    assert np.isfinite(found.proba[data.label >= 0]).all()
    np.testing.assert_array_equal(found.expression, expected.expression)
    np.testing.assert_array_equal(found.proba, expected.proba)


def test_the_radius_is_measured_in_the_features_of_each_fold():
    data = training_data()
    folds = inner_folds(data)
    rng = np.random.default_rng(0)
    # an encoder that has seen all spots and one that has not: their units and axes differ
    turned = (data.design @ np.linalg.qr(rng.normal(size=(6, 6)))[0] * 3 + 5).astype(np.float32)
    own = [turned if i == 0 else data.design for i in range(len(folds))]
    found = InDistribution().fit(data.design, folds, in_fold=own)
    held_out = []
    for fold, features in zip(folds, own, strict=True):
        alone = InDistribution().fit(features[fold.train], inner_folds(data.take(fold.train)))
        held_out.append(alone.distance(features[fold.held_out]))
    assert float(found.radius) == pytest.approx(np.quantile(np.concatenate(held_out), 0.99), rel=1e-5)
    np.testing.assert_array_equal(found.reference, InDistribution().fit(data.design, folds).reference)

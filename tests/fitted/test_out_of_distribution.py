from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from stcontrast._data.folds import inner_folds
from stcontrast.fitted._calibration import InDistribution
from tests.methods.synthetic import training_data


@pytest.fixture(scope="module")
def data():
    return training_data()


@pytest.fixture(scope="module")
def familiarity(data):
    return InDistribution().fit(data.design, inner_folds(data))


def test_distance_and_radius_by_sklearn(data, familiarity):
    scaled = (data.design - data.design.mean(axis=0)) / data.design.std(axis=0)
    new = (training_data(seed=1).design - data.design.mean(axis=0)) / data.design.std(axis=0)

    def distance(points, reference):
        return NearestNeighbors(n_neighbors=10).fit(reference).kneighbors(points)[0].mean(axis=1)

    # six features: a rotation keeps every distance
    np.testing.assert_allclose(familiarity.distance(training_data(seed=1).design), distance(new, scaled), rtol=1e-4)
    held = [distance(scaled[fold.held_out], scaled[fold.train]) for fold in inner_folds(data)]
    assert float(familiarity.radius) == pytest.approx(np.quantile(np.concatenate(held), 0.99), rel=1e-4)


def test_units_of_the_features_do_not_matter(data, familiarity):
    units = np.array([1, 1e3, 1e-3, 5, 1, 1], dtype=np.float32)
    other = InDistribution().fit(data.design * units + 3, inner_folds(data))
    new = training_data(seed=1).design + np.linspace(0, 4, 90, dtype=np.float32)[:, None]
    np.testing.assert_allclose(other.distance(new * units + 3), familiarity.distance(new), rtol=1e-2)


def test_what_is_far_is_outside(data, familiarity):
    assert familiarity.includes(data.design).mean() > 0.98
    assert not familiarity.includes(data.design + 10).any()


def test_a_constant_feature_is_no_trouble(data):
    design = data.design.copy()
    design[:, 0] = 0.3
    assert np.isfinite(InDistribution().fit(design, inner_folds(data)).distance(design)).all()


def test_fewer_spots_than_neighbours():
    small = training_data(donors=2, n_spots=3)
    familiarity = InDistribution().fit(small.design, inner_folds(small))
    assert familiarity.distance(small.design).shape == (6,)

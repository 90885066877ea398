from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from stcontrast._data import inner_folds
from stcontrast.fitted._calibration import InDistribution
from tests.methods.synthetic import training_data


@pytest.fixture(scope="module")
def data():
    return training_data()


@pytest.fixture(scope="module")
def in_distribution(data):
    return InDistribution().fit(data.design, inner_folds(data))


def test_distance_and_radius_by_sklearn(data, in_distribution):
    scaled = (data.design - data.design.mean(axis=0)) / data.design.std(axis=0)
    new = (training_data(seed=1).design - data.design.mean(axis=0)) / data.design.std(axis=0)

    def distance(points, reference):
        return NearestNeighbors(n_neighbors=10).fit(reference).kneighbors(points)[0].mean(axis=1)

    # six features: a rotation keeps every distance
    np.testing.assert_allclose(in_distribution.distance(training_data(seed=1).design), distance(new, scaled), rtol=1e-4)
    held_out = [distance(scaled[fold.held_out], scaled[fold.train]) for fold in inner_folds(data)]
    assert float(in_distribution.radius) == pytest.approx(np.quantile(np.concatenate(held_out), 0.99), rel=1e-4)


def test_units_of_the_features_do_not_matter(data, in_distribution):
    units = np.array([1, 1e3, 1e-3, 5, 1, 1], dtype=np.float32)
    other = InDistribution().fit(data.design * units + 3, inner_folds(data))
    new = training_data(seed=1).design + np.linspace(0, 4, 90, dtype=np.float32)[:, None]
    np.testing.assert_allclose(other.distance(new * units + 3), in_distribution.distance(new), rtol=1e-2)


def test_distant_spots_are_outside(data, in_distribution):
    assert in_distribution.includes(data.design).mean() > 0.98
    assert not in_distribution.includes(data.design + 10).any()


def test_a_constant_feature_gives_finite_distances(data):
    design = data.design.copy()
    design[:, 0] = 0.3
    assert np.isfinite(InDistribution().fit(design, inner_folds(data)).distance(design)).all()


def test_fewer_spots_than_neighbours():
    small = training_data(donors=2, n_spots=3)
    in_distribution = InDistribution().fit(small.design, inner_folds(small))
    assert in_distribution.distance(small.design).shape == (6,)

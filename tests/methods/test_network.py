from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stcontrast.methods._network import Network
from stcontrast.metrics import mean_slide_correlation
from tests.methods.synthetic import training_data

ALL = np.arange(90)


def test_a_constant_column_keeps_its_scale():
    values = np.array([[1.0, 5.0], [3.0, 5.0]], dtype=np.float32)
    center, scale = standardizer(values)
    np.testing.assert_array_equal(center, [2, 5])
    np.testing.assert_array_equal(scale, [1, 1])


def test_scales_are_those_of_the_spots_trained_on():
    data = training_data()
    held_out = np.flatnonzero(data.donor == "2")
    wild = data.design.copy()
    wild[held_out] *= 100
    network = Network(max_epochs=2)
    network.fit(replace(data, design=wild), held_out=held_out)
    center, scale = standardizer(data.design[data.donor != "2"])
    np.testing.assert_allclose(network.scales["center"], center)
    np.testing.assert_allclose(network.scales["scale"], scale)
    np.testing.assert_allclose(network.scales["mean"], data.take(np.flatnonzero(data.donor != "2")).slide_means()[0])


def test_genes_count_by_how_much_they_were_seen_to_vary():
    data = training_data()
    _, of_spot = data.slide_means()
    quiet = np.float32([1, 0.01, 1, 1, 1]) * (data.target - of_spot) + of_spot
    held_out = np.flatnonzero(data.donor == "2")
    network = Network(max_epochs=1)
    network.fit(replace(data, target=quiet), held_out=held_out)
    expected = (data.observed - of_spot)[data.donor != "2"].std(axis=0)
    np.testing.assert_allclose(network.scales["deviation"], expected, rtol=1e-4)


def test_units_of_expression_come_back(tmp_path):
    data = training_data(n_spots=60)
    network = Network(max_epochs=40)
    network.fit(data, gene=data.design[:, :3])
    view = data.take(np.arange(180)).unseen()
    predicted = network.expression(view)
    assert mean_slide_correlation(predicted, data.observed, data.slide) > 0.7
    np.testing.assert_allclose(predicted.mean(axis=0), data.slide_means()[0], atol=0.1)
    network.save(tmp_path)
    again = Network(max_epochs=40)
    again.load(tmp_path)
    np.testing.assert_array_equal(again.expression(view), predicted)


def test_before_it_is_fitted():
    with pytest.raises(RuntimeError, match="not been fitted"):
        Network().expression(training_data().view(ALL))

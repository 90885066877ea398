from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stcontrast._data.folds import inner_folds
from stcontrast.fitted._disk import read_state, write_state
from stcontrast.methods._linear import standardizer
from stcontrast.methods._network import Network, stop_on_folds
from stcontrast.metrics import mean_slide_correlation
from tests.methods.synthetic import training_data


def test_scales_come_from_the_training_spots_alone():
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


def test_genes_are_scaled_by_their_measured_deviation():
    data = training_data()
    _, of_spot = data.slide_means()
    quiet = np.float32([1, 0.01, 1, 1, 1]) * (data.target - of_spot) + of_spot
    held_out = np.flatnonzero(data.donor == "2")
    network = Network(max_epochs=1)
    network.fit(replace(data, target=quiet), held_out=held_out)
    expected = (data.observed - of_spot)[data.donor != "2"].std(axis=0)
    np.testing.assert_allclose(network.scales["deviation"], expected, rtol=1e-4)


def test_predictions_are_in_the_units_of_expression(tmp_path):
    data = training_data(n_spots=60)
    network = Network(max_epochs=40)
    network.fit(data, gene=data.design[:, :3])
    unseen = data.unseen()
    predicted = network.expression(unseen)
    assert mean_slide_correlation(predicted, data.observed, data.slide) > 0.7
    np.testing.assert_allclose(predicted.mean(axis=0), data.slide_means()[0], atol=0.1)
    write_state(tmp_path, network.state())
    again = network.fresh()
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.expression(unseen), predicted)
    np.testing.assert_array_equal(again.proba(unseen), network.proba(unseen))


def test_before_it_is_fitted():
    with pytest.raises(RuntimeError, match="not been fitted"):
        Network().proba(training_data().unseen())
    with pytest.raises(ValueError, match="without counts"):
        Network().expression(training_data().unseen())


def test_training_stops_at_the_median_of_the_epochs_that_were_best_in_the_folds():
    data = training_data()
    best = iter([[2, 9], [3, 4], [50, 5]])

    def fit(spots, held_out):
        network = Network(max_epochs=1)
        network.fit(spots, held_out=held_out)
        return [network], next(best)

    found, epoch = stop_on_folds(data, inner_folds(data), fit)
    assert epoch == 4
    assert np.isfinite(found.expression).all()
    assert np.isfinite(found.proba).all()

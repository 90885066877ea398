from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stcontrast._files import read_state, write_state
from stcontrast.methods.baselines import Field
from stcontrast.metrics import mean_slide_correlation
from tests.methods.synthetic import training_data


def grid(n: int = 30):
    """A slide that is a square lattice, and what a fit needs."""
    xy = np.stack(np.meshgrid(np.arange(float(n)), np.arange(float(n))), axis=-1).reshape(-1, 2)
    return training_data(donors=1, n_spots=n * n, n_genes=40), xy


def test_fields_are_smooth_vary_like_the_genes_and_do_not_correlate_with_them():
    data, xy = grid()
    method = Field(length=4.0)
    method.fit_parts(data)
    view = replace(data.unseen(), xy=xy * 71)
    fields = method.predict_expression(view)
    mean, of_spot = data.slide_means()
    np.testing.assert_allclose(fields.std(axis=0).mean(), (data.target - of_spot).std(axis=0).mean(), rtol=0.2)
    assert abs(mean_slide_correlation(fields, data.observed, data.slide)) < 0.05
    # neighbours are alike as a Gaussian covariance of that length says
    standard = ((fields - mean) / data.target.std(axis=0)).reshape(30, 30, 40)
    r = (standard[:, 1:] * standard[:, :-1]).mean() / (standard**2).mean()
    assert r == pytest.approx(np.exp(-1 / (2 * 4.0**2)), abs=0.03)


def test_the_image_is_not_used():
    data = training_data()
    method = Field()
    method.fit_parts(data)
    view = data.unseen()
    blank = replace(view, design=np.zeros_like(view.design))
    np.testing.assert_array_equal(method.predict_expression(view), method.predict_expression(blank))
    np.testing.assert_array_equal(method.predict_proba(view), method.predict_proba(blank))


def test_classes_come_in_their_frequencies(tmp_path):
    data, xy = grid()
    data = replace(data, label=(np.arange(900) % 10 == 0).astype(np.int64))
    method = Field(length=1.0)
    method.fit_parts(data)
    view = replace(data.unseen(), xy=xy)
    assert method.predict_proba(view)[:, 1].mean() == pytest.approx(0.1, abs=0.1)
    write_state(tmp_path, method.state())
    again = Field(**method.spec)
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.predict_proba(view), method.predict_proba(view))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        Field(length=0.0)
    data = training_data()
    method = Field()
    method.fit_parts(replace(data, label=np.full(90, -1)))
    with pytest.raises(ValueError, match="without labels"):
        method.predict_proba(data.unseen())
    method.fit_parts(replace(data, depth=np.zeros(90)))
    with pytest.raises(ValueError, match="without counts"):
        method.predict_expression(data.unseen())

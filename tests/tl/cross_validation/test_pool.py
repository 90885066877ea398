from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import stcontrast as stc
from stcontrast.methods._base import METHODS
from stcontrast.methods.baselines import Mean, Ridge
from stcontrast.tl.cross_validation import _pool as _cv_pool
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, parts_of

QUICK = {"n_genes": 12, "n_score_genes": 6}
COMPARED = {
    "ridge": {}, "color": {}, "network": {"method": "mlp", "max_epochs": 2}, "tenth": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def registered():
    """A class that only this session knows: a worker can import it from nowhere."""
    before = dict(METHODS)

    class Tenth(Ridge):
        name = "tenth"

        def predict_expression(self, view):
            return super().predict_expression(view) / 10

    class Deadly(Mean):
        name = "deadly"

        def __init__(self, *, spared: int = 0, seed: int = 0):
            super().__init__(seed=seed)
            self.spared = spared

        def fit(self, data, folds):
            # the first slide is learnt from where donor 2 is held out
            if data.slide[0] == 0 and os.getpid() != self.spared:
                os._exit(3)
            return super().fit(data, folds)

    class Unlucky(Mean):
        name = "unlucky"

        def fit(self, data, folds):
            msg = "no luck"
            raise LookupError(msg)

    yield
    METHODS.clear()
    METHODS.update(before)


def cross_validated(sdata, **kwargs):
    return stc.tl.cross_validate(sdata, donor_key="donor", label_key=LABELS, **{**QUICK, **kwargs})


@pytest.mark.slow
def test_processes_give_the_same_numbers_for_methods_of_one_s_own_too(toy, registered):
    one, two = (cross_validated(copied(toy), methods=COMPARED, n_jobs=n_jobs) for n_jobs in (1, 2))
    assert len(two.failures) == 0
    pd.testing.assert_frame_equal(two.scores, one.scores, rtol=1e-5, atol=1e-6)
    pd.testing.assert_frame_equal(two.summary(), one.summary(), rtol=1e-5, atol=1e-6)
    pd.testing.assert_frame_equal(two.classes, one.classes, rtol=1e-5, atol=1e-6)
    for name in COMPARED:
        np.testing.assert_allclose(two.predictions.layers[name], one.predictions.layers[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(two.predictions.layers["tenth"], two.predictions.layers["ridge"] / np.float32(10))
    assert set(METHODS) > {"ridge", "tenth"}
    assert METHODS["ridge"] is Ridge


@pytest.mark.slow
def test_a_process_that_dies_is_the_failure_of_its_fit_alone(toy, registered, caplog, tmp_path):
    sdata = parts_of(copied(toy), "donor1", "donor2")
    compared = {"deadly": {"spared": os.getpid()}, "mean": {}, "unlucky": {}}
    cv = cross_validated(sdata, methods=compared, n_jobs=2, directory=tmp_path)
    failures = cv.failures.sort_values(["method", "donors"])
    assert failures["method"].tolist() == ["deadly", "unlucky", "unlucky"]
    assert failures["donors"].tolist() == ["donor2", "donor1", "donor2"]
    died, *raised = failures["error"]
    assert "ended unexpectedly, twice: it was killed, perhaps for want of memory" in died
    assert raised == ["LookupError: no luck"] * 2
    # the traceback came along
    assert "in fit\n" in caplog.text
    assert set(cv.scores.query("method == 'deadly'")["donor"]) == {"donor1"}
    assert set(cv.scores.query("method == 'mean'")["donor"]) == {"donor1", "donor2"}
    # what failed is not kept
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("n_jobs", "n_fits", "n_spots", "available", "expected"),
    [
        (1, 12, 10_000, 2**40, 1),
        (5, 12, 10, 0, 5),
        (5, 3, 10_000, 2**40, 3),
        (None, 12, 10_000, 2**40, 8),
        (None, 3, 10_000, 2**40, 3),
        (None, 12, 100, 2**40, 1),
        # 1.5 GiB + 6 × 4 bytes × 10 000 × (200 + 800) = 1.72 GiB each
        (None, 12, 10_000, 4 * 2**30, 2),
        (None, 12, 10_000, 2**20, 1),
    ],
)
def test_as_many_processes_as_fits_cores_and_memory(monkeypatch, n_jobs, n_fits, n_spots, available, expected):
    monkeypatch.setattr(_cv_pool, "cpu_count", lambda: 8)
    monkeypatch.setattr(_cv_pool, "available_memory", lambda: available)
    monkeypatch.setattr(_cv_pool, "_places_on_gpu", lambda: 8)
    material = SimpleNamespace(features=np.empty((n_spots, 200), dtype=np.float32))
    assert _cv_pool.count_processes(n_jobs, n_fits=n_fits, material=material, n_genes=800) == expected


def test_the_memory_of_a_container_counts(monkeypatch, tmp_path):
    free = _cv_pool.available_memory()
    assert free > 0
    for text, expected in (("max\n", free), (str(2**60), free), ("1000", 0)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(_cv_pool, "CGROUP_LIMITS", (tmp_path / "memory.max", tmp_path / "absent"))
        assert _cv_pool.available_memory() == pytest.approx(expected, rel=0.2)


def test_an_error_that_cannot_travel_is_told():
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    for error, expected in ((ValueError("bad"), ValueError), (Odd(1, 2), RuntimeError)):
        sent = _cv_pool._sendable(error)
        assert type(sent) is expected
        assert str(error) in str(sent)
        assert str(error) in sent.__notes__[0]


@pytest.mark.parametrize("n_jobs", [0, -1])
def test_a_wrong_number_of_processes_is_refused(raw, n_jobs):
    with pytest.raises(ValueError, match=f"`n_jobs` must be at least 1, .* found {n_jobs}"):
        stc.tl.cross_validate(raw, donor_key="donor", n_jobs=n_jobs)
    assert "X_image" not in raw["table"].obsm


def test_a_fit_is_a_fit_on_one_thread(toy, monkeypatch):
    import torch
    from stcontrast.tl._training import Prepared
    from threadpoolctl import threadpool_info

    seen = []
    original = Prepared.train

    def train(self):
        seen.append({*(pool["num_threads"] for pool in threadpool_info()), torch.get_num_threads()})
        return original(self)

    monkeypatch.setattr(Prepared, "train", train)
    cross_validated(copied(toy), methods=["mean"])
    assert seen == [{1}] * 3

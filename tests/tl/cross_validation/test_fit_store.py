from __future__ import annotations

import importlib
import logging
import sys

import numpy as np
import pandas as pd
import pytest

import stcontrast as stc
from stcontrast.methods._base import METHODS
from stcontrast.methods.baselines import Mean, Ridge
from stcontrast.tl.cross_validation import _fits
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, bare

METHODS_COMPARED = ["ridge", "mean"]


@pytest.fixture
def fits(monkeypatch):
    """Names of the methods that are fitted, as they are."""
    found: list[str] = []
    original = _fits.fit_model

    def fit_model(*args, **kwargs):
        found.append(kwargs["method"])
        return original(*args, **kwargs)

    monkeypatch.setattr(_fits, "fit_model", fit_model)
    return found


@pytest.fixture
def again(toy, tmp_path, fits):
    """Cross-validate into the same folder, and tell what was fitted for it."""

    def call(sdata=None, **kwargs):
        fits.clear()
        arguments = {"donor_key": "donor", "label_key": LABELS, "methods": METHODS_COMPARED, "n_genes": 12, **kwargs}
        cv = stc.tl.cross_validate(sdata or copied(toy), directory=tmp_path / "there" / "fits", **arguments)
        return cv, sorted(fits)

    return call


def test_a_repeated_call_fits_nothing_and_returns_the_same(again, tmp_path, caplog):
    one, fitted = again()
    assert fitted == ["mean"] * 3 + ["ridge"] * 3
    stored = sorted((tmp_path / "there" / "fits").iterdir())
    assert len(stored) == 6
    with caplog.at_level(logging.INFO, logger="stcontrast"):
        other, fitted = again()
    assert fitted == []
    assert "6 of 6 fits are read from" in caplog.text
    assert sorted((tmp_path / "there" / "fits").iterdir()) == stored
    pd.testing.assert_frame_equal(other.scores, one.scores, check_exact=True)
    pd.testing.assert_frame_equal(other.summary(), one.summary(), check_exact=True)
    pd.testing.assert_frame_equal(other.classes, one.classes, check_exact=True)
    np.testing.assert_array_equal(other.predictions.layers["ridge"], one.predictions.layers["ridge"])


def test_only_what_is_new_is_fitted(again):
    again()
    cv, fitted = again(methods={"ridge": {}, "again": {"method": "ridge"}, "knn": {}})
    assert fitted == ["knn"] * 3
    assert list(cv.summary().index) == ["ridge", "again", "knn", "ceiling"]
    np.testing.assert_array_equal(cv.predictions.layers["ridge"], cv.predictions.layers["again"])
    # what is only scored changes no fit
    assert again(n_score_genes=5)[1] == []


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1}, {"n_genes": 11}, {"n_neighbors": 3}, {"standardize": "none"}, {"label_key": None},
        {"methods": {"ridge": {"penalty": 3.0}, "mean": {}}}, {"gene_sets": {"highly_variable": None, "mine": ["GENE40"]}},
    ],
)  # fmt: skip
def test_whatever_is_changed_is_fitted_again(again, changed):
    again()
    assert "ridge" in again(**changed)[1]


def test_other_data_are_fitted_again(again, toy):
    again()
    sdata = copied(toy)
    rows = np.flatnonzero(sdata["table"].obs["donor"] == "donor1")
    sdata["table"].obsm["X_image"][rows[0], 0] += 1
    del sdata["table"].uns["stcontrast"]["image_features"]
    assert len(again(sdata)[1]) == 6
    sdata = copied(toy)
    sdata["table"].X[rows[0], 0] += 1
    assert len(again(sdata)[1]) == 6


def test_the_same_counts_in_another_order_are_the_same(again, toy):
    again()
    sdata = copied(toy)
    counts = sdata["table"].X.tocsr()
    # every row back to front
    for start, stop in zip(counts.indptr[:-1], counts.indptr[1:], strict=True):
        counts.indices[start:stop], counts.data[start:stop] = counts.indices[start:stop][::-1].copy(), counts.data[start:stop][::-1].copy()  # fmt: skip
    counts.has_sorted_indices = False
    sdata["table"].X = counts
    assert again(sdata)[1] == []


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other"])
def test_a_file_that_cannot_be_read_is_made_again(again, tmp_path, caplog, damage):
    again()
    files = sorted((tmp_path / "there" / "fits").iterdir())
    whole = files[0].read_bytes()
    if damage == "other":
        np.savez(files[0], genes=np.array(["A"]), classes=np.array([]), expression=np.zeros((2, 2)))
    else:
        files[0].write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no archive"}[damage])
    _, fitted = again()
    assert len(fitted) == 1
    assert f"{files[0]} cannot be read" in caplog.text
    assert again()[1] == []


def test_a_fit_that_fails_is_not_kept(again, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Ridge, "fit", lambda self, data, folds: 1 / 0)
        cv, _ = again()
        assert len(cv.failures) == 3
        assert len(list((tmp_path / "there" / "fits").iterdir())) == 3
    assert again()[1] == ["ridge"] * 3


def test_slides_without_counts(again, toy):
    one, fitted = again(bare(toy))
    assert len(fitted) == 6
    other, fitted = again(bare(toy))
    assert fitted == []
    pd.testing.assert_frame_equal(other.scores, one.scores, check_exact=True)


def test_a_file_in_the_way_is_refused_before_any_work(raw, tmp_path):
    path = tmp_path / "fits"
    path.write_text("")
    for directory in (path, str(path / "below")):
        with pytest.raises(FileExistsError, match=r"`directory`: '.*fits' is a file"):
            stc.tl.cross_validate(raw, donor_key="donor", directory=directory)
    assert "X_image" not in raw["table"].obsm


def test_a_folder_that_cannot_be_written_costs_a_warning(again, monkeypatch, caplog):
    def full(*_, **__):
        msg = "No space left on device"
        raise OSError(msg)

    monkeypatch.setattr(_fits.np, "savez", full)
    cv, _ = again(methods=["mean"])
    assert "mean with donor1 held out could not be written: No space left on device" in caplog.text
    assert len(cv.failures) == 0


OWN_METHOD = """
import numpy as np
from stcontrast.methods.baselines import Mean, Ridge

def offset(): return {offset}

class Shifted(Ridge):
    name = "shifted"

    def predict_expression(self, view):
        return super().predict_expression(view) + np.float32(offset())
"""


@pytest.fixture
def registered():
    """Remove the methods that the test registers."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def test_a_user_s_method_is_fitted_again_when_its_module_changes(again, registered, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = None
    for offset, n_fits in ((0.5, 3), (0.5, 0), (0.25, 3), (0.5, 0)):
        (tmp_path / "own_method.py").write_text(OWN_METHOD.format(offset=offset))
        module = importlib.import_module("own_method") if module is None else importlib.reload(module)
        assert len(again(methods=["shifted"])[1]) == n_fits
    sys.modules.pop("own_method")


def test_a_method_without_source_is_not_kept(again, registered, caplog, tmp_path):
    class Inside(Ridge):
        name = "inside"

    Typed = type("Typed", (Ridge,), {"name": "typed", "__module__": "__main__"})
    for method in (Inside, Typed):
        for _ in range(2):
            assert again(methods=[method.name, "mean"])[1].count(method.name) == 3
        assert f"no source code of the method '{method.name}'" in caplog.text
    assert len(list((tmp_path / "there" / "fits").iterdir())) == 3


class Own(Mean):
    """A user's method with an option that is no plain value."""

    name = "own"

    def __init__(self, *, function=None, seed=0):
        super().__init__(seed=seed)
        self.function = function


# for the tests below alone
METHODS.pop("own")


def test_options_that_cannot_be_hashed_are_refused_before_any_fit(again, fits, monkeypatch):
    monkeypatch.setitem(METHODS, "own", Own)
    with pytest.raises(TypeError, match=r"the options of 'own', .* cannot be hashed"):
        again(methods={"own": {"function": lambda x: x}})
    assert fits == []


@pytest.mark.parametrize("error", [MemoryError, FloatingPointError], ids=lambda error: error.__name__)
def test_a_fit_without_memory_or_with_a_lost_training_is_its_own_failure(again, monkeypatch, error):
    def fails(self, data, folds):
        raise error

    monkeypatch.setattr(Mean, "fit", fails)
    cv, fitted = again()
    assert fitted == ["mean"] * 3 + ["ridge"] * 3
    assert set(cv.failures["method"]) == {"mean"}
    assert all(error.__name__ in text for text in cv.failures["error"])
    assert set(cv.scores["method"]) == {"ridge", "ceiling"}


def test_ctrl_c_keeps_the_fits_that_are_finished(again, monkeypatch, tmp_path):
    fit, n_fits = Ridge.fit, []

    def interrupted(self, data, folds):
        n_fits.append(0)
        if len(n_fits) == 3:
            raise KeyboardInterrupt
        return fit(self, data, folds)

    with monkeypatch.context() as patch:
        patch.setattr(Ridge, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again()
    finished = len(list((tmp_path / "there" / "fits").iterdir()))
    assert finished >= 2
    cv, fitted = again()
    assert len(fitted) == 6 - finished
    assert len(cv.failures) == 0
    assert set(cv.scores["method"]) == {*METHODS_COMPARED, "ceiling"}

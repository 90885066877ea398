from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import stcontrast as stc

if TYPE_CHECKING:
    from stcontrast.tl import CrossValidation


def calibration(*args: Any, **kwargs: Any) -> Any:
    return stc.pl.calibration(*args, **kwargs)


def legend_of(ax: Any) -> dict[str, str]:
    return dict(text.get_text().rsplit(": ", 1) for text in ax.get_legend().get_texts())


def dots_of(ax: Any) -> dict[str, Any]:
    return {c.get_label().rsplit(": ", 1)[0]: c for c in ax.collections}


def made(cv: CrossValidation, methods: list[str], right: list[bool], confidence: list[float]) -> CrossValidation:
    predicted = ["a" if value else "b" for value in right]
    table = pd.DataFrame({"donor": "d", "true": "a", "predicted": predicted, "confidence": confidence})
    return replace(cv, methods=methods, classes=pd.concat([table.assign(method=method) for method in methods]))


@pytest.mark.parametrize("n_bins", [1, 4, 10])
def test_dots_are_the_bins(cv: CrossValidation, n_bins: int):
    ax = calibration(cv, n_bins=n_bins, show=False)
    assert list(dots_of(ax)) == cv.methods
    for method, dots in dots_of(ax).items():
        table = cv.classes[cv.classes["method"] == method]
        bins = pd.cut(table["confidence"].astype(float), [i / n_bins for i in range(n_bins + 1)], right=False)
        # sure of it altogether belongs to the last bin
        bins = bins.cat.codes.where(table["confidence"] < 1, n_bins - 1)
        right = (table["true"] == table["predicted"]).astype(float)
        expected = pd.DataFrame({"c": table["confidence"].astype(float), "r": right}).groupby(bins)
        np.testing.assert_allclose(dots.get_offsets(), expected.mean().to_numpy(), atol=1e-6)
        n_spots = expected.size().to_numpy()
        assert (np.argsort(dots.get_sizes(), kind="stable") == np.argsort(n_spots, kind="stable")).all()
        gap = (expected.mean()["c"] - expected.mean()["r"]).abs().to_numpy()
        assert float(legend_of(ax)[method]) == pytest.approx((gap * n_spots).sum() / n_spots.sum(), abs=6e-4)


def test_error_of_one_donor_is_its_score(cv: CrossValidation):
    one = replace(cv, classes=cv.classes.query("donor == 'donor2'"))
    scores = cv.scores.query("metric == 'calibration_error' and donor == 'donor2'").set_index("method")["value"]
    for method, error in legend_of(calibration(one, show=False)).items():
        assert error == f"{scores[method]:.3f}"


def test_by_hand(cv: CrossValidation):
    few = made(cv, ["m"], [True, False, True, True], [0.6, 0.8, 0.85, 1.0])
    ax = calibration(few, n_bins=2, show=False)
    np.testing.assert_allclose(dots_of(ax)["m"].get_offsets(), [[0.8125, 0.75]])
    # 0.0625 to three places
    assert legend_of(ax)["m"] in {"0.062", "0.063"}
    title = ax.get_legend().get_title().get_text()
    assert "expected calibration error" in title
    assert "4 at most" in title
    ax = calibration(few, n_bins=5, show=False)
    dots = dots_of(ax)["m"]
    np.testing.assert_allclose(dots.get_offsets(), [[0.6, 1.0], [2.65 / 3, 2 / 3]], atol=1e-6)
    assert dots.get_sizes()[1] > dots.get_sizes()[0]


def test_order_and_colors(cv: CrossValidation):
    ax = calibration(cv, methods=["mean", "knn", "mean"], show=False)
    assert list(legend_of(ax)) == ["mean", "knn"]
    assert list(legend_of(calibration(cv, methods="ridge", show=False))) == ["ridge"]
    names = [f"m{i}" for i in range(8)]
    ax = calibration(made(cv, names, [True], [0.5]), show=False)
    assert list(legend_of(ax)) == names
    assert len({to_hex(dots.get_facecolor()[0]) for dots in dots_of(ax).values()}) == 8


def test_errors(cv: CrossValidation):
    with pytest.raises(KeyError, match=r"no subtypes: \['mlp'\]; these did: \['knn', 'ridge', 'mean'\]"):
        calibration(cv, methods=["knn", "mlp"], show=False)
    with pytest.raises(ValueError, match="label_key"):
        calibration(replace(cv, classes=cv.classes[:0]), show=False)
    with pytest.raises(ValueError, match="must be the name of a method"):
        calibration(cv, methods=[], show=False)
    with pytest.raises(ValueError, match="9 methods to draw: choose 1 to 8"):
        calibration(made(cv, [f"m{i}" for i in range(9)], [True], [0.5]), show=False)
    with pytest.raises(ValueError, match="`n_bins` must be a whole number"):
        calibration(cv, n_bins=0, show=False)


def test_axes_of_the_user(cv: CrossValidation, monkeypatch: pytest.MonkeyPatch):
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    figure, ax = plt.subplots()
    assert calibration(cv, ax=ax) is ax
    assert calibration(cv, ax=ax, return_fig=True) is figure
    assert plt.fignum_exists(figure.number)
    assert shown == []
    assert isinstance(calibration(cv, return_fig=True), Figure)
    assert calibration(cv, show=True) is None
    assert shown == [1]

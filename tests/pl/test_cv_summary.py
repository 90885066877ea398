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


def cv_summary(*args: Any, **kwargs: Any) -> Any:
    return stc.pl.cv_summary(*args, **kwargs)


def dots_of(ax: Any) -> dict[str, np.ndarray]:
    return {c.get_label(): c.get_offsets() for c in ax.collections if str(c.get_label()).startswith("donor")}


def means_of(ax: Any) -> np.ndarray:
    (bars,) = [c for c in ax.collections if str(c.get_label()).startswith("mean of")]
    return np.array([segment[0, 0] for segment in bars.get_segments()])


def with_donors(cv: CrossValidation, n_donors: int) -> CrossValidation:
    rows = [
        {"method": method, "donor": f"donor{i:02d}", "slide": "s", "gene": "g", "metric": "pearson", "value": i / 20}
        for method in cv.methods
        for i in range(n_donors)
    ]
    return replace(cv, scores=pd.DataFrame(rows))


@pytest.mark.parametrize("metric", ["pearson", "macro_f1"])
def test_dots_and_bars_are_the_scores(cv: CrossValidation, metric: str):
    ax = cv_summary(cv, metric=metric, show=False)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["knn", "ridge", "mean", *(["ceiling"] if metric == "pearson" else [])]
    table = cv.scores[cv.scores["metric"] == metric]
    for donor, dots in dots_of(ax).items():
        # one slide a donor
        expected = table[table["donor"] == donor].groupby("method")["value"].mean()[names]
        np.testing.assert_allclose(dots[:, 0], expected)
        assert np.round(dots[:, 1]).tolist() == list(range(len(names)))
    np.testing.assert_allclose(means_of(ax), cv.summary()[metric].loc[names])
    # the first row is on top
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_slides_of_a_donor_have_equal_weight(cv: CrossValidation):
    row = {"method": "knn", "donor": "donor1", "metric": "pearson"}
    values = [("a", "g1", 0.0), ("a", "g2", 0.2), ("a", "g3", 0.4), ("b", "g1", 1.0), ("b", "g2", np.nan)]
    rows = [{**row, "slide": slide, "gene": gene, "value": value} for slide, gene, value in values]
    ax = cv_summary(replace(cv, methods=["knn"], scores=pd.DataFrame(rows)), show=False)
    np.testing.assert_allclose(dots_of(ax)["donor1"], [[0.6, 0.0]])


def test_a_donor_has_one_color_and_one_height(cv: CrossValidation):
    ax = cv_summary(cv, show=False)
    dots = dots_of(ax)
    heights = {donor: np.unique(np.round(xy[:, 1] - np.arange(len(xy)), 9)) for donor, xy in dots.items()}
    assert [len(height) for height in heights.values()] == [1, 1]
    assert heights["donor1"] != heights["donor2"]
    colors = {c.get_label(): c.get_facecolor()[0].tolist() for c in ax.collections if c.get_label() in dots}
    assert colors["donor1"] != colors["donor2"]
    # the ceiling is not joined with the methods
    joined = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert len(joined) == 2


def test_line_at_zero_for_correlations(cv: CrossValidation):
    def has_line(metric: str) -> bool:
        ax = cv_summary(cv, metric=metric, show=False)
        return any(list(line.get_xdata()) == [0, 0] for line in ax.lines)

    assert has_line("pearson")
    assert has_line("spearman")
    assert not has_line("rmse")


def test_axis_in_words(cv: CrossValidation):
    assert "log(1 + counts per 10 000)" in cv_summary(cv, metric="rmse", show=False).get_xlabel()
    rows = [{"method": "knn", "donor": "d", "slide": "", "gene": "", "metric": "my_own", "value": 1.0}]
    assert cv_summary(replace(cv, scores=pd.DataFrame(rows)), metric="my_own", show=False).get_xlabel() == "my own"


def test_a_method_without_the_metric_keeps_its_row(cv: CrossValidation):
    ax = cv_summary(cv, metric="moran_difference", show=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["knn", "ridge", "mean"]
    (text,) = [text for text in ax.texts if text.get_text() == "no value"]
    assert text.get_position()[1] == 2


@pytest.mark.parametrize(("n_donors", "n_entries"), [(1, 2), (10, 11), (11, 1)])
def test_legend_of_few_donors(cv: CrossValidation, n_donors: int, n_entries: int):
    ax = cv_summary(with_donors(cv, n_donors), show=False)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(labels) == n_entries
    assert labels[-1] == ("mean of 11 donors" if n_donors == 11 else "mean of donors")


def test_errors(cv: CrossValidation):
    with pytest.raises(ValueError, match=r"metric 'r2'; there are \['pearson', 'spearman', 'rmse'"):
        cv_summary(cv, metric="r2", show=False)
    rows = [{"method": "knn", "donor": "d", "slide": "", "gene": "", "metric": "pearson", "value": np.nan}]
    with pytest.raises(ValueError, match=r"there are \[\]"):
        cv_summary(replace(cv, scores=pd.DataFrame(rows)), show=False)


def test_axes_of_the_user(cv: CrossValidation, monkeypatch: pytest.MonkeyPatch):
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    figure, ax = plt.subplots()
    assert cv_summary(cv, ax=ax) is ax
    assert cv_summary(cv, ax=ax, return_fig=True) is figure
    assert plt.fignum_exists(figure.number)
    assert shown == []
    assert isinstance(cv_summary(cv, return_fig=True), Figure)
    assert cv_summary(cv, show=True) is None
    assert shown == [1]


@pytest.mark.parametrize(("style", "expected"), [("default", "#000000"), ("dark_background", "#ffffff")])
def test_means_are_visible_on_any_page(cv: CrossValidation, style: str, expected: str):
    with plt.style.context(style):
        ax = cv_summary(cv, show=False)
    (bars,) = [c for c in ax.collections if str(c.get_label()).startswith("mean of")]
    assert to_hex(bars.get_color()[0]) == expected

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import stcontrast as stc

if TYPE_CHECKING:
    from stcontrast.tl import CrossValidation


def gene_scores(*args: Any, **kwargs: Any) -> Any:
    return stc.pl.gene_scores(*args, **kwargs)


def dots_of(ax: Any) -> np.ndarray:
    (dots,) = ax.collections
    return np.asarray(dots.get_offsets())


def table_of(cv: CrossValidation, metric: str = "pearson") -> pd.DataFrame:
    scores = cv.scores[cv.scores["metric"] == metric]
    # one slide a donor
    return scores.pivot_table(index="gene", columns="method", values="value", aggfunc="mean")


def named(ax: Any) -> dict[str, tuple[float, float]]:
    return {text.get_text(): text.xy for text in ax.texts}


def made(
    cv: CrossValidation, values: list[tuple[str, str, str, str, float]], metric: str = "pearson"
) -> CrossValidation:
    columns = ("method", "donor", "slide", "gene", "value")
    rows = [{**dict(zip(columns, row, strict=True)), "metric": metric} for row in values]
    return replace(cv, scores=pd.DataFrame(rows))


def test_dots_are_the_mean_scores(cv: CrossValidation):
    ax = gene_scores(cv, show=False)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("ridge", "knn")
    table = table_of(cv)[["ridge", "knn"]].dropna()
    np.testing.assert_allclose(dots_of(ax), table.to_numpy())
    above = int((table["knn"] > table["ridge"]).sum())
    assert f"{above} of {len(table)} genes above the diagonal (better)" in ax.get_title()
    assert ax.get_xlim() == ax.get_ylim()


def test_best_genes_are_named_at_their_dots(cv: CrossValidation):
    ax = gene_scores(cv, method="ridge", reference="knn", n_genes=4, show=False)
    table = table_of(cv)
    best = table["ridge"].nlargest(4).index
    assert list(named(ax)) == list(best)
    for gene, position in named(ax).items():
        np.testing.assert_allclose(position, table.loc[gene, ["knn", "ridge"]].astype(float))
    assert len(named(gene_scores(cv, n_genes=99, show=False))) == len(table)
    assert named(gene_scores(cv, n_genes=0, show=False)) == {}


def test_names_are_apart(cv: CrossValidation):
    figure = gene_scores(cv, n_genes=10, return_fig=True)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == 10
    overlapping = [(i, j) for i in range(10) for j in range(i) if boxes[i].overlaps(boxes[j])]
    assert overlapping == []


@pytest.mark.parametrize(
    ("metric", "best", "hint"),
    [
        ("rmse", "low", " (worse)"),
        ("variance_ratio", "high", ""),
        ("moran_difference", "zero", ""),
        ("spearman", "top", " (better)"),
    ],
)
def test_best_depends_on_the_metric(cv: CrossValidation, metric: str, best: str, hint: str):
    scores = {"low": -0.5, "zero": 0.1, "high": 0.8, "top": 1.9}
    values = [(method, "d", "s", gene, value) for method in ("knn", "ridge") for gene, value in scores.items()]
    ax = gene_scores(made(cv, values, metric), metric=metric, n_genes=1, show=False)
    assert list(named(ax)) == [best]
    assert ax.get_title().endswith(f"0 of 4 genes above the diagonal{hint}")


def test_mean_over_slides_then_donors_where_both_have_a_score(cv: CrossValidation):
    values = [
        ("ridge", "d1", "a", "g", 0.0), ("ridge", "d1", "b", "g", 0.4), ("ridge", "d2", "c", "g", 0.6),
        ("ridge", "d2", "d", "g", 9.0), ("knn", "d1", "a", "g", 0.2), ("knn", "d1", "b", "g", 0.2),
        ("knn", "d2", "c", "g", 0.8), ("knn", "d2", "d", "g", np.nan), ("ridge", "d1", "a", "only ridge", 0.1),
    ]  # fmt: skip
    ax = gene_scores(made(cv, values), show=False)
    np.testing.assert_allclose(dots_of(ax), [[0.4, 0.5]])


def test_ceiling_as_the_method(cv: CrossValidation):
    ax = gene_scores(cv, method="ceiling", show=False)
    scores = cv.scores.query("metric == 'pearson' and method in ['ridge', 'ceiling']")
    both = scores.pivot_table(index=["donor", "gene"], columns="method", values="value").dropna()
    np.testing.assert_allclose(dots_of(ax), both.groupby("gene").mean()[["ridge", "ceiling"]].to_numpy())
    assert ax.get_ylabel() == "ceiling"


def test_panel_of_a_subfigure(cv: CrossValidation):
    ax = plt.figure(figsize=(5, 4)).subfigures(squeeze=False)[0, 0].subplots()
    assert gene_scores(cv, n_genes=3, ax=ax) is ax


def test_errors(cv: CrossValidation):
    with pytest.raises(KeyError, match=r"by \['mlp'\]; these methods have it: \['knn', 'ridge', 'mean', 'ceiling'\]"):
        gene_scores(cv, method="mlp", show=False)
    with pytest.raises(KeyError, match=r"by \['color'\]"):
        gene_scores(cv, reference="color", show=False)
    with pytest.raises(KeyError, match=r"by \['mean'\]; these methods have it: \['knn', 'ridge'\]"):
        gene_scores(cv, method="mean", metric="moran_difference", show=False)
    with pytest.raises(ValueError, match=r"no metric 'macro_f1'; there are \['pearson'"):
        gene_scores(cv, metric="macro_f1", show=False)
    with pytest.raises(ValueError, match="to compare 'ridge' with is needed"):
        gene_scores(cv, method="ridge", show=False)
    with pytest.raises(ValueError, match="must be a whole number"):
        gene_scores(cv, n_genes=-1, show=False)
    apart = made(cv, [("knn", "d", "s", "g1", 0.1), ("ridge", "d", "s", "g2", 0.1)])
    with pytest.raises(ValueError, match="for no shared gene"):
        gene_scores(apart, show=False)


def test_axes_of_the_user(cv: CrossValidation, monkeypatch: pytest.MonkeyPatch):
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    figure, ax = plt.subplots()
    assert gene_scores(cv, ax=ax) is ax
    assert gene_scores(cv, ax=ax, return_fig=True) is figure
    assert plt.fignum_exists(figure.number)
    assert shown == []
    assert isinstance(gene_scores(cv, return_fig=True), Figure)
    assert gene_scores(cv, show=True) is None
    assert shown == [1]

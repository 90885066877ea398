from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import stcontrast as stc

if TYPE_CHECKING:
    from stcontrast.tl import CrossValidation


def confusion(*args: Any, **kwargs: Any) -> Any:
    return stc.pl.confusion(*args, **kwargs)


def cells_of(ax: Any) -> np.ndarray:
    (image,) = ax.images
    return np.ma.filled(image.get_array(), np.nan)


def texts_of(ax: Any) -> dict[tuple[int, int], str]:
    return {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in ax.texts}


def bar_of(ax: Any) -> Any:
    return ax.images[0].colorbar.ax


def made(cv: CrossValidation, true: list[str], predicted: list[str]) -> CrossValidation:
    table = pd.DataFrame({"method": "ridge", "donor": "d", "true": true, "predicted": predicted, "confidence": 0.5})
    return replace(cv, classes=table)


def test_counts(cv: CrossValidation):
    ax = confusion(cv, method="ridge", normalize=False, show=False)
    table = cv.confusion("ridge")
    np.testing.assert_array_equal(cells_of(ax), table.to_numpy())
    assert cells_of(ax).sum() == (cv.classes["method"] == "ridge").sum()
    assert texts_of(ax) == {cell: str(count) for cell, count in np.ndenumerate(table.to_numpy())}
    assert [label.get_text() for label in ax.get_xticklabels()] == list(table.columns)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(table.index)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("predicted", "true", "ridge")
    assert bar_of(ax).get_ylabel() == "spots"


def test_fractions_of_the_true_subtype(cv: CrossValidation):
    ax = confusion(cv, method="ridge", show=False)
    table = cv.confusion("ridge")
    np.testing.assert_allclose(cells_of(ax).sum(axis=1), 1.0)
    np.testing.assert_allclose(cells_of(ax), table.div(table.sum(axis=1), axis=0).to_numpy())
    assert texts_of(ax) == {cell: f"{value:.2f}" for cell, value in np.ndenumerate(cells_of(ax))}
    rows = [f"{name} ({n})" for name, n in table.sum(axis=1).items()]
    assert [label.get_text() for label in ax.get_yticklabels()] == rows
    assert ax.images[0].get_clim() == (0.0, 1.0)
    assert bar_of(ax).get_ylabel() == "fraction of the true subtype"


def test_a_subtype_that_is_only_predicted(cv: CrossValidation):
    few = made(cv, ["a", "a", "b", "b"], ["a", "c", "b", "b"])
    ax = confusion(few, show=False)
    np.testing.assert_array_equal(cells_of(ax), [[0.5, 0, 0.5], [0, 1, 0], [np.nan] * 3])
    assert {row for row, _ in texts_of(ax)} == {0, 1}
    assert len(texts_of(confusion(few, normalize=False, show=False))) == 9


def test_numbers_are_legible(cv: CrossValidation):
    for normalize in (True, False):
        ax = confusion(cv, method="mean", normalize=normalize, show=False)
        cells, (image,) = cells_of(ax), ax.images
        inks = set()
        for text in ax.texts:
            column, row = (int(value) for value in text.get_position())
            ink, paper = (
                np.dot((0.299, 0.587, 0.114), color)
                for color in (to_rgb(text.get_color()), image.to_rgba(cells[row, column])[:3])
            )
            assert abs(ink - paper) > 0.4
            inks.add(text.get_color())
        assert inks == {"black", "white"}


def test_default_is_the_first_method_with_subtypes(cv: CrossValidation):
    assert confusion(cv, show=False).get_title() == "knn"
    assert confusion(made(cv, ["a"], ["a"]), show=False).get_title() == "ridge"


def test_errors(cv: CrossValidation):
    with pytest.raises(KeyError, match=r"'mlp' predicted no classes; these did: \['knn', 'mean', 'ridge'\]"):
        confusion(cv, method="mlp", show=False)
    with pytest.raises(ValueError, match="label_key"):
        confusion(replace(cv, classes=cv.classes[:0]), show=False)


def test_axes_of_the_user(cv: CrossValidation, monkeypatch: pytest.MonkeyPatch):
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    figure, ax = plt.subplots()
    assert confusion(cv, ax=ax) is ax
    assert confusion(cv, ax=ax, return_fig=True) is figure
    assert plt.fignum_exists(figure.number)
    assert shown == []
    assert isinstance(confusion(cv, return_fig=True), Figure)
    assert confusion(cv, show=True) is None
    assert shown == [1]

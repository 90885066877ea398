from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import stcontrast as stc


@pytest.fixture(scope="module")
def slides() -> tuple[Any, Any]:
    """Slides with queries, and those of the model; tests do not change them."""
    return stc.datasets.toy(n_donors=1, n_spots=20, n_genes=10, seed=1), stc.datasets.toy(
        n_donors=2, n_spots=20, n_genes=10
    )


def table(pairs: dict[str, list[str]]) -> pd.DataFrame:
    """What `find_similar` returns: matches of every query of the slide "donor1_a"."""
    rows = [
        {
            "query": query, "query_slide": "donor1_a", "match": match, "slide": match.rsplit("_", 1)[0],
            "donor": match.split("_")[0], "similarity": 0.9 - i / 10, "rank": i + 1,
        }
        for query, matches in pairs.items()
        for i, match in enumerate(matches)
    ]  # fmt: skip
    return pd.DataFrame(rows)


FOUND = table({"donor1_a_3": ["donor2_a_4", "donor1_a_5", "donor1_a_6"], "donor1_a_7": ["donor1_a_1", "donor2_a_2"]})


def similar(*args: Any, **kwargs: Any) -> Any:
    return stc.pl.similar(*args, **{"show": False, **kwargs})


def crop(sdata: Any, name: str, field_um: float) -> Any:
    row = list(sdata["table"].obs_names).index(name)
    return stc.pp.crops(sdata, field_um=field_um, size_px=160)[row]


@pytest.mark.parametrize("field_um", [50.0, 200.0])
def test_crops_of_query_and_matches(slides: tuple[Any, Any], field_um: float):
    new, train = slides
    axes = similar(FOUND, new, train, field_um=field_um)
    assert axes.shape == (2, 4)
    shown = [[ax.images[0].get_array() if ax.images else None for ax in row] for row in axes]
    np.testing.assert_array_equal(shown[0][0], crop(new, "donor1_a_3", field_um))
    np.testing.assert_array_equal(shown[0][1], crop(train, "donor2_a_4", field_um))
    np.testing.assert_array_equal(shown[1][1], crop(train, "donor1_a_1", field_um))
    assert shown[1][3] is None


def test_titles(slides: tuple[Any, Any]):
    new, train = slides
    train["table"].obs["kind"] = pd.Categorical(["fat"] * 39 + [None])
    axes = similar(FOUND, new, train, label_key="kind", n=1)
    assert axes.shape == (2, 2)
    assert axes[0, 0].get_title(loc="left") == "donor1_a_3\ndonor1_a"
    assert axes[0, 1].get_title(loc="left") == "1. similarity 0.90\ndonor2, fat"
    assert similar(FOUND, new, train, max_queries=1).shape == (1, 4)


def test_matches_are_in_the_same_object_by_default(slides: tuple[Any, Any]):
    _, train = slides
    axes = similar(FOUND, train)
    np.testing.assert_array_equal(axes[0, 0].images[0].get_array(), crop(train, "donor1_a_3", 200))


def test_axes_of_the_user(slides: tuple[Any, Any]):
    figure, axes = plt.subplots(1, 3)
    returned = similar(FOUND, *slides, n=2, max_queries=1, ax=axes, return_fig=True)
    assert returned is figure
    with pytest.raises(ValueError, match=r"must hold 8 axes.*found 3"):
        similar(FOUND, *slides, ax=axes)


def test_errors(slides: tuple[Any, Any]):
    new, train = slides
    with pytest.raises(KeyError, match=r"`training` lacks 2 spots of the table, e.g. 'donor2_a_4' of slide 'donor2_a'"):
        similar(FOUND, new)
    with pytest.raises(KeyError, match=r"`data` lacks 1 spots of the table, e.g. 'x' of slide 'donor1_a'"):
        similar(table({"x": ["donor1_a_1"]}), new, train)
    with pytest.raises(KeyError, match=r"`label_key`: no column 'x'"):
        similar(FOUND, new, train, label_key="x")
    with pytest.raises(KeyError, match=r"`found` lacks the columns \['rank'\]"):
        similar(FOUND.drop(columns="rank"), new, train)
    with pytest.raises(ValueError, match="has no rows"):
        similar(FOUND[:0], new, train)
    with pytest.raises(ValueError, match="`field_um` must be"):
        similar(FOUND, new, train, field_um=0)
    assert not plt.get_fignums()

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import stcontrast as stc
from stcontrast.pl._colors import CLASS_COLORS
from tests.pl.test_pictures import bar_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure
    from spatialdata import SpatialData


def crops(data: Any, *args: Any, **kwargs: Any) -> Any:
    return stc.pl.crops(data, *args, **{"show": False, **kwargs})


def shown(axes: Any) -> list[list[Any]]:
    return [[np.asarray(ax.images[0].get_array()) for ax in row if ax.images] for row in axes]


def words(axes: Any) -> list[str]:
    return [row[0].get_title(loc="left") for row in axes]


def test_crops_are_those_of_the_class(sdata: SpatialData):
    axes = crops(sdata, n=4, field_um=100)
    table = sdata["table"]
    names = list(table.obs["stc_class"].cat.categories)
    assert axes.shape == (len(names), 4)
    every = stc.pp.crops(sdata, field_um=100, size_px=160)
    for name, row in zip(names, shown(axes), strict=True):
        of_class = every[(table.obs["stc_class"] == name).to_numpy()]
        assert len(row) == min(4, len(of_class))
        found = [next(i for i, crop in enumerate(of_class) if (crop == one).all()) for one in row]
        assert len(set(found)) == len(row)
    counts = table.obs["stc_class"].value_counts()
    for name, title in zip(names, words(axes), strict=True):
        assert title.startswith(f"{name} ({counts[name]} spot")
    frames = [to_hex(row[0].spines["left"].get_edgecolor()) for row in axes]
    assert frames == list(CLASS_COLORS[: len(names)])
    assert bar_of(axes[-1, 0]).txt_label.get_text() == "20 µm"


def test_slides_take_turns_and_a_seed_draws_others(sdata: SpatialData):
    sdata["table"].obs["all"] = pd.Categorical(["x"] * sdata["table"].n_obs)
    one, again, other = (shown(crops(sdata, "all", n=6, seed=seed)) for seed in (0, 0, 1))
    every = stc.pp.crops(sdata, field_um=200, size_px=160)
    slides = sdata["table"].obs["region"].to_numpy()
    of = [slides[next(i for i, crop in enumerate(every) if (crop == one_crop).all())] for one_crop in one[0]]
    assert of == ["donor1_a"] * 2 + ["donor2_a"] * 2 + ["donor3_a"] * 2
    assert all((a == b).all() for a, b in zip(one[0], again[0], strict=True))
    assert not all((a == b).all() for a, b in zip(one[0], other[0], strict=True))


@pytest.mark.parametrize("values", ["predicted", "measured"])
def test_deciles_of_a_gene(sdata: SpatialData, values: str):
    axes = crops(sdata, "GENE1", values=values, n=2)
    assert axes.shape == (10, 2)
    assert words(axes)[0].startswith("GENE1, decile 1: ")
    ends = [tuple(map(float, title.split(": ")[1].split(" (")[0].split(" to "))) for title in words(axes)]
    assert all(low <= high for low, high in ends)
    assert all(one[1] <= other[0] + 0.01 for one, other in pairwise(ends))
    two = crops(sdata, "GENE1", values=values, n=2, groups=[10, 1])
    assert words(two) == [words(axes)[9], words(axes)[0]]
    assert words(crops(sdata, "GENE1", values=values, n=2, n_bins=3))[2].startswith("GENE1, part 3 of 3: ")


def test_numbers_of_the_prediction(sdata: SpatialData):
    sdata["stc_pred"].obs["score_A"] = np.arange(sdata["stc_pred"].n_obs) + 0.5
    axes = crops(sdata, "score_A", n=6, n_bins=2)
    assert words(axes)[0].startswith("score A, part 1 of 2: 0.5 to 44.5 (45 spots of 3 slides)")


def test_equal_values_stay_together(sdata: SpatialData):
    sdata["table"].obs["x"] = np.r_[np.zeros(85), np.linspace(1, 2, 5)]
    axes = crops(sdata, "x", n=8)
    assert words(axes) == [
        "x, part 1 of 2: 0 to 0 (85 spots of 3 slides)", "x, part 2 of 2: 1 to 2 (5 spots of 1 slide)",
    ]  # fmt: skip


def test_missing_values_are_in_no_row(sdata: SpatialData):
    table = sdata["table"]
    table.obs["stc_class"] = pd.Categorical(["fat"] * 3 + [None] * (table.n_obs - 3), categories=["fat", "glands"])
    (title,) = words(crops(sdata, n=5))
    assert title == "fat (3 spots of 1 slide)"


def test_axes_and_titles_of_the_user(sdata: SpatialData):
    figure, axes = plt.subplots(2, 3)
    groups = sorted(sdata["table"].obs["stc_class"].unique())[:2]
    found = crops(sdata, n=3, groups=groups, ax=axes, title=["one", "two"], return_fig=True)
    assert found is figure
    assert words(axes) == ["one", "two"]
    with pytest.raises(ValueError, match=r"`ax` must hold 6 axes.*found 3"):
        crops(sdata, n=3, groups=groups, ax=axes[0])


def test_a_list_of_objects(sdata: SpatialData):
    names = sorted(sdata["table"].obs["stc_class"].unique())
    assert len(crops([sdata, sdata], n=2)) == len(names)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"color": "GENE99"}, KeyError, "Gene 'GENE99' is not among"),
        ({"color": "GENE99", "values": "measured"}, KeyError, "'GENE99' is neither a column of `obs`"),
        ({"groups": "bone"}, KeyError, r"no spot is in \['bone'\]; there are \["),
        ({"color": "GENE1", "groups": [11]}, KeyError, r"no spot is in \[11\]"),
        ({"n": 0}, ValueError, "`n` must be a whole number from 1 to 20"),
        ({"field_um": 0}, ValueError, "`field_um` must be"),
        ({"values": "both"}, ValueError, "`values` must be one of 'predicted', 'measured'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_errors(sdata: SpatialData, arguments: dict[str, Any], kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        crops(sdata, **arguments)
    assert not plt.get_fignums()


def test_what_is_to_be_called_first(sdata: SpatialData):
    del sdata["table"].obs["stc_class"], sdata.tables["stc_pred"]
    with pytest.raises(KeyError, match=r"Call `stc\.tl\.classify` first"):
        crops(sdata)
    with pytest.raises(KeyError, match="No table 'stc_pred'"):
        crops(sdata, "GENE1")
    assert crops(sdata, "GENE1", values="measured", n=1).shape == (10, 1)
    for name in list(sdata.images):
        del sdata.images[name]
    with pytest.raises(ValueError, match="No image lies under the spots"):
        crops(sdata, "GENE1", values="measured")


@pytest.mark.parametrize("page", ["white", "black"])
def test_text_is_visible_on_any_page(sdata: SpatialData, page: str):
    with mpl.rc_context({"figure.facecolor": page}):
        axes = crops(sdata, n=2)
    expected = "#000000" if page == "white" else "#ffffff"
    assert {to_hex(row[0]._left_title.get_color()) for row in axes} == {expected}
    assert to_hex(bar_of(axes[-1, 0]).txt_label._text.get_color()) == expected


def test_baseline_image(sdata: SpatialData, difference: Callable[[Figure, str], object]):
    with mpl.rc_context(mpl.rcParamsDefault):
        assert difference(crops(sdata, n=4, return_fig=True), "crops") is None

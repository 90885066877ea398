from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from cycler import cycler
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure

import stcontrast as stc
from stcontrast.pl._colors import CLASS_COLORS, class_colors

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

SUBTYPES = ["tumour", "stroma", "fat", "glands"]


def spatial_class(*args: Any, **kwargs: Any) -> Any:
    return stc.pl.spatial_class(*args, **kwargs)


def face_colors(ax: Any) -> list[str]:
    return [to_hex(color) for collection in ax.collections for color in collection.get_facecolor()]


def legend_of(figure: Any) -> dict[str, Any]:
    (legend,) = figure.legends
    return {
        text.get_text(): handle.get_markerfacecolor()
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }


def test_colors_on_the_spots(sdata: SpatialData):
    axes = spatial_class(sdata, show=False)
    assert axes.shape == (3, 1)
    palette = dict(zip(SUBTYPES, CLASS_COLORS, strict=False))
    table = sdata["table"]
    for (ax,), slide in zip(axes, ["donor1_a", "donor2_a", "donor3_a"], strict=True):
        expected = [palette[name] for name in table.obs.loc[table.obs["region"] == slide, "stc_class"]]
        assert face_colors(ax) == expected
        assert ax.get_title(loc="left") == f"{slide}\nPredicted class"
        assert len(ax.images) == 1
    assert legend_of(axes[0, 0].figure) == palette


def test_annotation_and_prediction(sdata: SpatialData):
    axes = spatial_class(sdata, label_key="subtype", show=False)
    assert axes.shape == (3, 2)
    labels = sdata["table"].obs["subtype"]
    here = (sdata["table"].obs["region"] == "donor1_a").to_numpy()
    left, right = axes[0]
    assert len(face_colors(left)) == labels[here].notna().sum()
    assert len(face_colors(right)) == here.sum()
    (outlines,) = [c for c in left.collections if not len(c.get_facecolor())]
    assert len(outlines.get_paths()) == labels[here].isna().sum() > 0
    assert left.get_title(loc="left") == "donor1_a\nsubtype, annotated"
    assert right.get_title(loc="left") == "subtype, predicted"
    assert list(legend_of(left.figure)) == [*SUBTYPES, "not annotated"]
    left.figure.canvas.draw()


def test_colors_of_the_user(sdata: SpatialData):
    colors = ["#ff0000", "#00ff00", "#0000ff", "#ffff00"]
    sdata["table"].uns["stc_class_colors"] = colors
    axes = spatial_class(sdata, label_key="subtype", slides=["donor2_a"], show=False)
    assert set(face_colors(axes[0, 1])) <= set(colors)
    legend = legend_of(axes[0, 0].figure)
    assert all(legend[name] == color for name, color in zip(SUBTYPES, colors, strict=True) if name in legend)


def test_class_colors_of_two_columns():
    obs = pd.DataFrame({"a": pd.Categorical(["x", "y"]), "b": ["y", "z"]}, index=["s1", "s2"])
    table = AnnData(obs=obs, uns={"b_colors": ["red", CLASS_COLORS[0]], "a_colors": ["blue"]})
    # "a_colors" is of other categories; "z" took the first of the palette
    colors = class_colors(table, ["a", "b"])
    assert list(colors) == ["x", "y", "z"]
    assert colors["y"] == to_hex("red")
    assert colors["z"] == CLASS_COLORS[0]
    assert colors["x"] == CLASS_COLORS[1]
    assert len(set(colors.values())) == 3


def test_more_classes_than_colors():
    names = [f"c{i:03d}" for i in range(150)]
    table = AnnData(obs=pd.DataFrame({"k": names}, index=names))
    assert len(class_colors(table, ["k"])) == 150


def test_spots_without_a_class(sdata: SpatialData):
    table = sdata["table"]
    table.obs["stc_class"] = table.obs["stc_class"].astype(object)
    table.obs.iloc[:30, table.obs.columns.get_loc("stc_class")] = None
    axes = spatial_class(sdata, show=False)
    assert face_colors(axes[0, 0]) == []
    assert len(face_colors(axes[1, 0])) == 30
    assert "no class" in legend_of(axes[0, 0].figure)


def test_the_data_do_not_change(sdata: SpatialData):
    table = sdata["table"]
    obs, uns = table.obs.copy(), sorted(table.uns)
    spatial_class(sdata, label_key="subtype", show=False)
    pd.testing.assert_frame_equal(obs, table.obs)
    assert uns == sorted(table.uns)
    assert sorted(sdata.tables) == ["stc_pred", "table"]


def test_anndata_with_scanpy_images():
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(5), np.arange(4)), axis=-1).reshape(-1, 2) * 100.0 + 50
    adata = AnnData(obs=pd.DataFrame({"stc_class": rng.choice(["a", "b"], 20)}, index=[f"s{i}" for i in range(20)]))
    adata.obsm["spatial"] = xy
    image = rng.random((200, 250, 3)).astype(np.float32)
    factors = {"tissue_hires_scalef": 0.5, "spot_diameter_fullres": 50.0}
    adata.uns["spatial"] = {"lib": {"images": {"hires": image}, "scalefactors": factors}}
    axes = spatial_class(adata, show=False)
    assert axes[0, 0].images[0].get_array().shape == (200, 250, 3)
    first = axes[0, 0].collections[0].get_paths()[0].vertices[:-1]
    np.testing.assert_allclose(first.mean(axis=0), [25.0, 25.0], atol=1e-9)


def test_show_conventions(sdata: SpatialData, monkeypatch: pytest.MonkeyPatch, autoshow: Callable[[bool], None]):
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    figure, ax = plt.subplots()
    autoshow(True)
    assert spatial_class(sdata, slides="donor1_a") is None
    assert shown == [1]
    assert isinstance(spatial_class(sdata, slides="donor1_a", return_fig=True), Figure)
    returned = spatial_class(sdata, slides="donor1_a", ax=ax)
    assert returned[0, 0] is ax
    assert not figure.legends
    assert to_rgba(ax.get_legend().legend_handles[0].get_markerfacecolor()) == to_rgba(CLASS_COLORS[0])
    assert shown == [1]


def test_errors(sdata: SpatialData):
    with pytest.raises(KeyError, match=re.escape("stc.tl.classify")):
        spatial_class(sdata, key="leiden", show=False)
    with pytest.raises(KeyError, match=r"No column 'layer'.*subtype"):
        spatial_class(sdata, label_key="layer", show=False)
    with pytest.raises(KeyError, match=r"`slides` names no slide"):
        spatial_class(sdata, slides=[], show=False)
    with pytest.raises(ValueError, match=r"must hold 3 axes"):
        spatial_class(sdata, ax=plt.figure().add_subplot(), show=False)


def numbered(sdata: SpatialData, name: str, values: Any) -> Any:
    sdata["table"].obs[name] = values
    return spatial_class(sdata, key=name, show=False)


@pytest.mark.parametrize("name", ["stc_class_confidence", "score"])
def test_floats_are_no_classes(sdata: SpatialData, name: str):
    values = np.linspace(0.3, 1, sdata["table"].n_obs)
    values[3] = np.nan
    axes = numbered(sdata, name, values)
    figure = axes[0, 0].figure
    assert not figure.legends
    (colored, *_) = [c for c in axes[0, 0].collections if c.get_array() is not None]
    np.testing.assert_allclose(colored.get_array(), values[:30][np.isfinite(values[:30])])
    (bar,) = [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]
    assert bar == name.removeprefix("stc_class_")
    title = axes[0, 0].get_title(loc="left")
    assert title == "donor1_a\n" + ("Confidence of the predicted class" if "class" in name else "score")


def test_confidence_of_ones_is_no_class(sdata: SpatialData):
    axes = numbered(sdata, "stc_class_confidence", np.ones(90))
    assert not axes[0, 0].figure.legends


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0, 1, 2], ["0", "1", "2"]),
        ([10.0, 2.0, np.nan], ["2", "10", "no class"]),
        ([True, False, True], ["False", "True"]),
        (["b", 1, "1"], ["b", "1"]),
    ],
    ids=["whole", "whole with gaps", "truth", "mixed"],
)
def test_few_whole_numbers_are_classes(sdata: SpatialData, values: list[Any], names: list[str]):
    axes = numbered(sdata, "cluster", pd.Series(values * 30, index=sdata["table"].obs_names))
    assert sorted(legend_of(axes[0, 0].figure)) == sorted(names)


@pytest.mark.parametrize(("n", "kind", "classes"), [(30, float, True), (31, float, False), (45, int, True)])
def test_many_whole_floats_are_no_classes(sdata: SpatialData, n: int, kind: type, classes: bool):
    axes = numbered(sdata, "n_cells", (np.arange(90) % n).astype(kind))
    assert bool(axes[0, 0].figure.legends) == classes


def test_uncertain_classes_are_pale(sdata: SpatialData):
    table = sdata["table"]
    table.obs["stc_class"] = "tumour"
    table.obs["other"] = pd.Categorical(["tumour"] * 89 + ["fat"])
    table.obs["stc_class_confidence"] = np.linspace(0, 1, 90)
    axes = spatial_class(sdata, key="stc_class", show=False)
    colors = np.concatenate([ax.collections[0].get_facecolor()[:, :3] for ax in axes.ravel()])
    saturation = colors.max(axis=1) - colors.min(axis=1)
    # two classes at least: a guess is right half of the time
    assert (np.diff(saturation[45:]) > 0).all()
    np.testing.assert_allclose(saturation[:45], 0, atol=1e-6)
    assert to_hex(colors[-1]) == CLASS_COLORS[0]
    assert any("confidence" in name for name in legend_of(axes[0, 0].figure))
    full = spatial_class(sdata, confidence=False, show=False)
    assert set(face_colors(full[0, 0])) == {CLASS_COLORS[0]}
    assert not any("confidence" in name for name in legend_of(full[0, 0].figure))


def test_confidence_in_another_column(sdata: SpatialData):
    sdata["table"].obs["sure"] = 0.25
    axes = spatial_class(sdata, confidence="sure", show=False)
    assert {name for name in legend_of(axes[0, 0].figure) if name in SUBTYPES} == set(SUBTYPES)
    assert len(set(face_colors(axes[0, 0]))) == 1
    with pytest.raises(KeyError, match=r"`confidence`: no column 'x'.*'sure'"):
        spatial_class(sdata, confidence="x", show=False)
    sdata["table"].obs["sure"] = 3.0
    with pytest.raises(ValueError, match=r"'sure' must hold probabilities"):
        spatial_class(sdata, confidence="sure", show=False)
    with pytest.raises(ValueError, match=r"'stc_class' must hold probabilities"):
        spatial_class(sdata, confidence="stc_class", show=False)


def test_an_annotation_pales_nowhere(sdata: SpatialData):
    sdata["table"].obs["stc_class_confidence"] = 0.3
    axes = spatial_class(sdata, label_key="subtype", show=False)
    assert set(face_colors(axes[0, 0])) <= set(CLASS_COLORS)
    assert not set(face_colors(axes[0, 1])) & set(CLASS_COLORS)


@pytest.mark.parametrize("groups", ["tumour", ["fat", "tumour"]])
def test_groups(sdata: SpatialData, groups: Any):
    axes = spatial_class(sdata, groups=groups, show=False)
    wanted = [groups] if isinstance(groups, str) else groups
    n = int(sdata["table"].obs["stc_class"].isin(wanted).sum())
    assert sum(len(face_colors(ax)) for ax in axes.ravel()) == n
    assert set(legend_of(axes[0, 0].figure)) == {*wanted, "other"}
    with pytest.raises(KeyError, match=r"`groups` names no class: \['x'\].*tumour"):
        spatial_class(sdata, groups=["x"], show=False)


@pytest.mark.parametrize(
    ("palette", "expected"),
    [
        (["red", "lime", "blue", "k"], ["#ff0000", "#00ff00", "#0000ff", "#000000"]),
        (["red", "lime"], ["#ff0000", "#00ff00", "#ff0000", "#00ff00"]),
        ({"tumour": "red", "elsewhere": "blue"}, ["#ff0000", *CLASS_COLORS[:3]]),
        ("tab10", ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728"]),
        (cycler(color=["red", "lime", "blue", "k"]), ["#ff0000", "#00ff00", "#0000ff", "#000000"]),
    ],
    ids=["colors", "too few", "mapping", "colour map", "cycler"],
)
def test_palettes(sdata: SpatialData, palette: Any, expected: list[str]):
    sdata["table"].uns["stc_class_colors"] = ["#111111", "#222222", "#333333", "#444444"]
    colors = legend_of(spatial_class(sdata, palette=palette, show=False)[0, 0].figure)
    assert [colors[name] for name in SUBTYPES] == expected


@pytest.mark.parametrize("palette", ["no map", ["red", "no colour"], [], {"tumour": 7}])
def test_palettes_without_colors(sdata: SpatialData, palette: Any):
    with pytest.raises(ValueError, match="`palette`"):
        spatial_class(sdata, palette=palette, show=False)
    assert not plt.get_fignums()


@pytest.mark.parametrize("legend_loc", [None, "none", "on data", "lower left", "bottom margin"])
def test_places_of_the_legend(sdata: SpatialData, legend_loc: str | None):
    axes = spatial_class(sdata, legend_loc=legend_loc, show=False)
    last = axes[0, -1]
    assert len(last.figure.legends) == (legend_loc == "bottom margin")
    assert (last.get_legend() is not None) == (legend_loc == "lower left")
    here = set(sdata["table"].obs["stc_class"][:30])
    assert {text.get_text() for text in last.texts} == (here if legend_loc == "on data" else set())
    with pytest.raises(ValueError, match="`legend_loc` must be one of"):
        spatial_class(sdata, legend_loc="outside", show=False)


def test_an_annotation_of_floats_is_refused(sdata: SpatialData):
    sdata["table"].obs["age"] = np.linspace(0, 1, 90)
    with pytest.raises(ValueError, match=r"`label_key`: the column 'age' holds numbers, not classes"):
        spatial_class(sdata, label_key="age", show=False)


def test_a_list_of_objects_has_one_color_a_class(sdata: SpatialData):
    from copy import deepcopy

    other = deepcopy(sdata["table"])
    other.obs["stc_class"] = pd.Categorical(["fat"] * 89 + ["bone"])
    from spatialdata import SpatialData as Object

    second = Object(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": other})
    axes = spatial_class([sdata, second], show=False)
    assert axes.shape == (6, 1)
    colors = legend_of(axes[0, 0].figure)
    assert set(colors) == {*SUBTYPES, "bone"}
    assert set(face_colors(axes[3, 0])) == {colors["fat"]}

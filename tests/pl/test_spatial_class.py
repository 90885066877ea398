from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
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

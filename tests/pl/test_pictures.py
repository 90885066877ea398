"""What the pictures of slides share: scale, grid, titles, legends, colours, arguments; and small baseline images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import geopandas as gpd
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]
from shapely import Polygon
from skimage.color import rgb2lab

import stcontrast as stc
from stcontrast.pl._colors import CLASS_COLORS, CMAP

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

SLIDES = ["donor1_a", "donor2_a", "donor3_a"]


def draw(kind: str, data: Any, **kwargs: Any) -> Any:
    arguments = {"show": False, **kwargs}
    return (
        stc.pl.spatial_pred(data, "GENE1", **arguments) if kind == "pred" else stc.pl.spatial_class(data, **arguments)
    )


both = pytest.mark.parametrize("kind", ["pred", "class"])


def spots_of(ax: Axes) -> list[PolyCollection]:
    return [c for c in ax.collections if isinstance(c, PolyCollection)]


def inches(ax: Axes) -> Any:
    return ax.get_window_extent().bounds / np.float64(ax.figure.dpi)


def bar_of(ax: Axes) -> AnchoredSizeBar:
    (bar,) = [artist for artist in ax.artists if isinstance(artist, AnchoredSizeBar)]
    return bar


@both
def test_one_scale_over_all_slides(sdata: SpatialData, kind: str):
    scale = {"donor1_a": 1.0, "donor2_a": 0.5, "donor3_a": 3.0}
    axes = draw(kind, sdata, um_per_px=scale)
    for panels, um_per_px in zip(axes, scale.values(), strict=True):
        for ax in panels:
            view_um = np.ptp(ax.get_xlim()) * um_per_px, np.ptp(ax.get_ylim()) * um_per_px
            width, height = inches(ax)[2:]
            np.testing.assert_allclose(np.array(view_um) / (width, height), view_um[0] / width, rtol=1e-6)
            assert view_um[0] / width == pytest.approx(np.ptp(axes[0, 0].get_xlim()) / inches(axes[0, 0])[2])
    assert len({bar_of(panels[0]).txt_label.get_text() for panels in axes}) == 1


@both
def test_spots_are_inside_the_view(sdata: SpatialData, kind: str):
    for ax in draw(kind, sdata).ravel():
        low, high = np.sort(ax.get_xlim()), np.sort(ax.get_ylim())
        corners = np.concatenate([path.vertices for c in spots_of(ax) for path in c.get_paths()])
        assert (corners >= [low[0], high[0]]).all()
        assert (corners <= [low[1], high[1]]).all()


@both
@pytest.mark.parametrize("ncols", [None, 1, 2, 4])
def test_rows_are_regular(sdata: SpatialData, kind: str, ncols: int | None):
    axes = draw(kind, sdata, ncols=ncols)
    boxes = np.array([inches(ax) for ax in axes.ravel()])
    np.testing.assert_allclose(boxes[:, 2:], boxes[:1, 2:].repeat(len(boxes), axis=0))
    columns = np.unique(boxes[:, 0].round(4))
    rows = np.unique(boxes[:, 1].round(4))
    assert len({tuple(box[:2].round(4)) for box in boxes}) == len(boxes)
    assert len(columns) * (len(rows) - 1) < len(boxes) <= len(columns) * len(rows)
    if ncols is not None:
        assert len(columns) <= ncols


@pytest.mark.parametrize(("n_slides", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (9, 3)])
def test_columns_by_default(sdata: SpatialData, n_slides: int, columns: int):
    # objects of one slide, more than once: slides of a study in files of their own
    axes = draw("class", [_of_one_slide(sdata)] * n_slides)
    assert len(axes) == n_slides
    assert len({round(inches(ax)[0], 4) for ax in axes.ravel()}) == columns


def _of_one_slide(sdata: SpatialData) -> SpatialData:
    from spatialdata import SpatialData as Object

    table = sdata["table"][sdata["table"].obs["region"] == "donor1_a"].copy()
    table.uns["spatialdata_attrs"]["region"] = ["donor1_a"]
    return Object(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": table})


@both
def test_long_names_stay_in_their_panels(sdata: SpatialData, kind: str):
    long = "A_very_long_name_of_a_slide_or_a_gene_" * 6
    sdata["table"].obs[long] = sdata["table"].obs["stc_class"]
    axes = draw(kind, sdata, title=[long, "x"] if kind == "pred" else long)
    figure = axes[0, 0].figure
    figure.canvas.draw()
    for ax in axes.ravel():
        title, box = ax.title if ax.get_title() else ax._left_title, ax.get_window_extent()
        assert title.get_window_extent().x1 <= box.x1 + 1
        assert title.get_window_extent().y1 <= figure.bbox.y1 + 1


@pytest.mark.parametrize("legend_loc", ["right margin", "bottom margin"])
@pytest.mark.parametrize("n_classes", [3, 12, 40])
@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_a_legend_leaves_the_tissue_its_half(sdata: SpatialData, n_classes: int, long: bool, legend_loc: str):
    names = [f"c{i}" + " of a tissue with a very long name that nobody can remember" * long for i in range(n_classes)]
    table = sdata["table"]
    table.obs["stc_class"] = [names[i % n_classes] for i in range(table.n_obs)]
    axes = draw("class", sdata, slides=["donor1_a", "donor2_a"], legend_loc=legend_loc)
    plain = draw("class", sdata, slides=["donor1_a", "donor2_a"], legend_loc="none")
    figure = axes[0, 0].figure
    figure.canvas.draw()
    (legend,) = figure.legends
    box, page = legend.get_window_extent(), figure.bbox
    assert (box.x0, box.y0) >= (page.x0 - 1, page.y0 - 1)
    assert box.x1 <= page.x1 + 1
    panels = [ax.get_window_extent() for ax in axes.ravel()]
    assert not any(box.overlaps(panel) for panel in panels)
    # panels keep their size in inches, and half of the figure
    np.testing.assert_allclose([inches(ax)[2:] for ax in axes.ravel()], [inches(ax)[2:] for ax in plain.ravel()])
    assert max(p.x1 for p in panels) - min(p.x0 for p in panels) >= page.width / 2
    assert len(legend.get_texts()) == n_classes
    assert legend.get_texts()[0].get_text().replace("\n", " ") == names[0]


@both
@pytest.mark.parametrize("page", ["white", "black"])
def test_text_is_visible_on_any_page(sdata: SpatialData, kind: str, page: str):
    with mpl.rc_context({"figure.facecolor": page}):
        axes = draw(kind, sdata)
    figure = axes[0, 0].figure
    expected = to_rgb("black" if page == "white" else "white")
    bar = bar_of(axes[0, 0])
    colors = [ax._left_title.get_color() for ax in axes.ravel()]
    colors += [bar.txt_label._text.get_color(), bar.size_bar.get_children()[0].get_facecolor()]
    colors += [text.get_color() for legend in figure.legends for text in legend.get_texts()]
    for extra in set(figure.axes) - set(axes.ravel()):
        colors += [extra.yaxis.label.get_color(), *(label.get_color() for label in extra.get_yticklabels())]
    assert {to_rgb(color) for color in colors} == {expected}
    # the slide itself is light on any page
    assert {to_hex(ax.get_facecolor()) for ax in axes.ravel()} == {"#ffffff"}


def seen_by(colors: np.ndarray, matrix: Any) -> np.ndarray:
    """Colours as an eye without one kind of cone sees them (Machado et al. 2009), in CIE Lab."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4) @ np.array(matrix).T
    linear = linear.clip(0, 1)
    return rgb2lab(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ],
    ids=["normal", "protan", "deutan", "tritan"],
)
@pytest.mark.parametrize(("n", "least"), [(14, 15.0), (24, 12.0)])
def test_classes_are_told_apart_with_any_colour_vision(matrix: Any, n: int, least: float):
    lab = seen_by(np.array([to_rgb(color) for color in CLASS_COLORS[:n]]), matrix)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > least


def test_colors_of_expression_have_no_blue_and_darken():
    colors = mpl.colormaps[CMAP](np.linspace(0, 1, 50))[:, :3]
    assert (colors[:, 0] >= colors[:, 2]).all()
    assert (colors[:, 1] >= colors[:, 2] - 0.02).all()
    assert (np.diff(rgb2lab(colors)[:, 0]) < 0).all()


@both
def test_arguments_of_scanpy(sdata: SpatialData, kind: str):
    plain = draw(kind, sdata)[0, -1]
    axes = draw(kind, sdata, size=2.0, alpha=0.5, img_alpha=0.3, title="My title")
    for ax in axes.ravel():
        assert ax.get_title(loc="left") == "My title"
        assert ax.images[0].get_alpha() == 0.3
        assert {c.get_alpha() for c in spots_of(ax)} == {0.5}
    width = [np.ptp(np.asarray(spots_of(ax)[0].get_paths()[0].vertices)[:, 0]) for ax in (plain, axes[0, -1])]
    assert width[1] == pytest.approx(2 * width[0])
    titles = [f"t{i}" for i in range(axes.size)]
    assert [ax.get_title(loc="left") for ax in draw(kind, sdata, title=titles).ravel()] == titles


@both
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 0}, "`size` must be a finite number above 0"),
        ({"alpha": 1.5}, "`alpha` must be a finite number of at least 0 and of at most 1"),
        ({"img_alpha": -1}, "`img_alpha`"),
        ({"ncols": 0}, "`ncols` must be a whole number of at least 1"),
        ({"title": ["a", "b", "c", "d"]}, r"`title` must be one text, or \d.*found 4"),
        ({"vmax": "99"}, "`vmax` must be a number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range(sdata: SpatialData, kind: str, given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        draw(kind, sdata, **given)
    assert not plt.get_fignums()


@both
def test_edges_are_thin(sdata: SpatialData, kind: str):
    for ax in draw(kind, sdata, img_alpha=1.0).ravel():
        (spots,) = spots_of(ax)
        assert 0 < np.ravel(spots.get_linewidth())[0] <= 0.3


@both
def test_polygons_are_drawn_as_they_are(sdata: SpatialData, kind: str):
    rng = np.random.default_rng(0)
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    circles = sdata["donor1_a"]
    rings = []
    for point in circles.geometry:
        angle = np.sort(rng.uniform(0, 2 * np.pi, 7))
        rings.append(np.column_stack([point.x + 30 * np.cos(angle), point.y + 20 * np.sin(angle)]))
    cells = gpd.GeoDataFrame(geometry=[Polygon(ring) for ring in rings], index=circles.index)
    del sdata.shapes["donor1_a"]
    sdata.shapes["donor1_a"] = ShapesModel.parse(cells, transformations=get_transformation(circles, get_all=True))
    ax = draw(kind, sdata, slides="donor1_a", um_per_px=1.0)[0, -1]
    drawn = [np.asarray(path.vertices)[:-1] for path in spots_of(ax)[0].get_paths()]
    assert len(drawn) == len(rings)
    for corners, ring in zip(drawn, rings, strict=True):
        np.testing.assert_allclose(sorted(map(tuple, corners)), sorted(map(tuple, ring)), atol=1e-6)


@both
def test_an_image_is_not_needed(sdata: SpatialData, kind: str):
    for name in list(sdata.images):
        del sdata.images[name]
    axes = draw(kind, sdata)
    assert not any(ax.images for ax in axes.ravel())
    assert all(spots_of(ax) for ax in axes[:, -1])


@both
def test_baseline_image(sdata: SpatialData, kind: str, difference: Callable[[Figure, str], object]):
    sdata["table"].obs["stc_class_confidence"] = np.linspace(0.3, 1, sdata["table"].n_obs)
    with mpl.rc_context(mpl.rcParamsDefault):
        figure = draw(kind, sdata, slides=SLIDES[:2], return_fig=True)
        assert difference(figure, kind) is None


def test_baseline_images_tell_pictures_apart(sdata: SpatialData, difference: Callable[[Figure, str], object]):
    with mpl.rc_context(mpl.rcParamsDefault):
        figure = draw("pred", sdata, slides=SLIDES[:2], cmap="viridis", img_alpha=1.0, return_fig=True)
        assert difference(figure, "pred") is not None


def test_points_of_an_anndata_without_images():
    adata = AnnData(obs=pd.DataFrame({"stc_class": list("aabb")}, index=list("wxyz")))
    adata.obsm["spatial"] = np.array([[0.0, 0], [100, 0], [0, 100], [100, 100]])
    (ax,) = draw("class", adata)[0]
    assert not ax.images
    assert len(spots_of(ax)[0].get_paths()) == 4

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]

import stcontrast as stc
from tests.real_data import require
from tests.slides import her2st_low_resolution

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from spatialdata import SpatialData

SLIDES = ["donor1_a", "donor2_a", "donor3_a"]


def spatial_pred(*args: Any, **kwargs: Any) -> Any:
    return stc.pl.spatial_pred(*args, **kwargs)


def rows_of(table: AnnData, slide: str) -> NDArray[np.intp]:
    return np.flatnonzero(table.obs["region"] == slide)


def observed(table: AnnData, gene: str, slide: str) -> Any:
    counts = np.asarray(table.X.todense(), dtype=np.float64)[rows_of(table, slide)]
    return np.log(1 + 10_000 * counts[:, list(table.var_names).index(gene)] / counts.sum(axis=1))


def filled(ax: Axes) -> list[Any]:
    return [c for c in ax.collections if isinstance(c, PolyCollection) and c.get_array() is not None]


def values(ax: Axes) -> Any:
    (spots,) = filled(ax)
    return np.asarray(spots.get_array())


def centers(ax: Axes) -> NDArray[np.float64]:
    (spots,) = filled(ax)
    # a closed path repeats its first corner
    return np.array([path.vertices[:-1].mean(axis=0) for path in spots.get_paths()])


def scale_bar(ax: Axes) -> tuple[float, str]:
    (bar,) = [artist for artist in ax.artists if isinstance(artist, AnchoredSizeBar)]
    return bar.size_bar.get_children()[0].get_width(), bar.txt_label.get_text()


def color_bar_label(figure: Any) -> list[str]:
    return [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]


def test_values_on_the_spots(sdata: SpatialData):
    axes = spatial_pred(sdata, "GENE2", show=False)
    assert axes.shape == (3, 2)
    table, prediction = sdata["table"], sdata["stc_pred"]
    for (left, right), slide in zip(axes, SLIDES, strict=True):
        rows = rows_of(table, slide)
        np.testing.assert_allclose(values(left), observed(table, "GENE2", slide), rtol=1e-6)
        expected = prediction.to_df().loc[table.obs_names[rows], "GENE2"]
        np.testing.assert_allclose(values(right), expected, rtol=1e-6)
        for ax in (left, right):
            np.testing.assert_allclose(centers(ax), table.obsm["spatial"][rows], atol=1e-6)
            assert len(ax.images) == 1


def test_one_color_scale(sdata: SpatialData):
    axes = spatial_pred(sdata, "GENE1", show=False)
    drawn = np.concatenate([values(ax) for ax in axes.ravel()])
    low, high = np.quantile(drawn, [0.01, 0.99])
    for ax in axes.ravel():
        np.testing.assert_allclose(filled(ax)[0].get_clim(), (low, high))
    assert color_bar_label(axes[0, 0].figure) == ["log(1 + counts per 10 000)"]


def test_color_scale_of_the_user(sdata: SpatialData):
    axes = spatial_pred(sdata, "GENE1", vmin=1.0, vmax=2.5, cmap="magma", show=False)
    assert {filled(ax)[0].get_clim() for ax in axes.ravel()} == {(1.0, 2.5)}
    assert filled(axes[0, 0])[0].get_cmap().name == "magma"


def test_constant_gene(sdata: SpatialData):
    sdata["stc_pred"].X[:] = 0.0
    sdata["table"].X = sdata["table"].X.multiply(sdata["table"].var_names != "GENE1").tocsr()
    axes = spatial_pred(sdata, "GENE1", show=False)
    assert filled(axes[0, 0])[0].get_clim() == (0.0, 1.0)
    assert axes[0, 1].get_title(loc="left") == "GENE1 predicted, r undefined"


@pytest.mark.parametrize("um_per_px", [None, 0.25, {"donor1_a": 4.0}])
def test_scale_bar(sdata: SpatialData, um_per_px: Any):
    axes = spatial_pred(sdata, "GENE1", slides="donor1_a", um_per_px=um_per_px, show=False)
    # toy slides have 1 µm a pixel
    true = {"donor1_a": 1.0} if um_per_px is None else um_per_px
    true = true["donor1_a"] if isinstance(true, dict) else true
    length_px, label = scale_bar(axes[0, 0])
    number, unit = label.split()
    length_um = float(number) * {"µm": 1.0, "mm": 1000.0}[unit]
    assert length_px == pytest.approx(length_um / true)
    width = np.diff(axes[0, 0].get_xlim())[0]
    assert 0.1 * width < length_px <= width / 3


def test_titles(sdata: SpatialData):
    axes = spatial_pred(sdata, "GENE1", show=False)
    table, prediction = sdata["table"], sdata["stc_pred"].to_df()
    for (left, right), slide in zip(axes, SLIDES, strict=True):
        predicted = prediction.loc[table.obs_names[rows_of(table, slide)], "GENE1"]
        r = np.corrcoef(observed(table, "GENE1", slide), predicted)[0, 1]
        assert left.get_title(loc="left") == f"{slide}\nGENE1 measured"
        assert right.get_title(loc="left") == f"GENE1 predicted, r = {r:.2f}"


def test_title_says_what_the_model_was_trained_on(sdata: SpatialData):
    provenance = {"donor1_a": "in-sample", "donor2_a": "out-of-donor"}
    sdata["stc_pred"].uns["stcontrast"]["prediction"]["provenance"] = provenance
    axes = spatial_pred(sdata, "GENE1", show=False)
    assert [ax.get_title(loc="left").endswith(" (in-sample)") for ax in axes[:, 1]] == [True, False, False]


def test_slide_without_counts(sdata: SpatialData):
    table = sdata["table"]
    keep = (table.obs["region"] != "donor2_a").to_numpy()
    table.X = table.X.multiply(keep[:, None]).tocsr()
    axes = spatial_pred(sdata, "GENE1", show=False)
    left, right = axes[1]
    assert not left.collections
    assert len(left.images) == 1
    assert left.get_title(loc="left") == "donor2_a\nGENE1 not measured"
    assert right.get_title(loc="left") == "GENE1 predicted"
    assert len(values(right)) == 30
    assert len(values(axes[0, 0])) == 30


def test_table_without_genes(sdata: SpatialData):
    bare = sdata["table"][:, :0].copy()
    del sdata.tables["table"]
    sdata["table"] = bare
    axes = spatial_pred(sdata, "GENE1", show=False)
    assert [len(ax.collections) for ax in axes.ravel()] == [0, 1] * 3


def test_gene_that_was_not_measured(sdata: SpatialData):
    measured = sdata["table"][:, 1:].copy()
    del sdata.tables["table"]
    sdata["table"] = measured
    axes = spatial_pred(sdata, "GENE1", slides=["donor3_a"], show=False)
    assert axes[0, 0].get_title(loc="left") == "donor3_a\nH&E"


def test_spots_without_a_prediction_are_outlined(sdata: SpatialData):
    prediction = sdata["stc_pred"]
    some = prediction[(prediction.obs["region"] == "donor1_a") & (prediction.obs["spot_id"] < 20)].copy()
    some.uns["spatialdata_attrs"]["region"] = ["donor1_a"]
    del sdata.tables["stc_pred"]
    sdata["stc_pred"] = some
    axes = spatial_pred(sdata, "GENE1", show=False)
    assert axes.shape == (1, 2)
    assert len(values(axes[0, 1])) == 20
    (outlines,) = [c for c in axes[0, 1].collections if c.get_array() is None]
    assert len(outlines.get_paths()) == 10
    with pytest.raises(KeyError, match=r"No prediction for \['donor2_a'\]"):
        spatial_pred(sdata, "GENE1", slides=["donor1_a", "donor2_a"], show=False)


def test_the_data_do_not_change(sdata: SpatialData):
    def state() -> dict[str, Any]:
        return {
            name: (table.X.copy(), table.obs.copy(), sorted(table.uns), sorted(table.obsm), sorted(map(str, table.layers)))
            for name, table in sdata.tables.items()
        } | {name: sdata.shapes[name].copy() for name in sdata.shapes}  # fmt: skip

    before, elements = state(), [name for _, name, _ in sdata.gen_elements()]
    spatial_pred(sdata, "GENE1", show=False)
    after = state()
    assert elements == [name for _, name, _ in sdata.gen_elements()]
    for name, table in before.items():
        if isinstance(table, tuple):
            assert np.abs(table[0] - after[name][0]).max() == 0
            pd.testing.assert_frame_equal(table[1], after[name][1])
            assert table[2:] == after[name][2:]
        else:
            pd.testing.assert_frame_equal(pd.DataFrame(table), pd.DataFrame(after[name]))


def test_show_conventions(sdata: SpatialData, monkeypatch: pytest.MonkeyPatch, autoshow: Callable[[bool], None]):
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    arguments: dict[str, Any] = {"gene": "GENE1", "slides": "donor1_a"}
    assert isinstance(spatial_pred(sdata, return_fig=True, **arguments), Figure)
    assert not shown
    autoshow(True)
    assert spatial_pred(sdata, **arguments) is None
    assert shown == [1]
    autoshow(False)
    assert spatial_pred(sdata, **arguments).shape == (1, 2)
    assert shown == [1]


def test_axes_of_the_user(sdata: SpatialData):
    figure, axes = plt.subplots(2, 2)
    returned = spatial_pred(sdata, "GENE1", slides=["donor3_a", "donor1_a"], ax=axes)
    assert returned[0, 0] is axes[0, 0]
    assert returned[0, 0].get_title(loc="left").startswith("donor3_a")
    assert len(figure.axes) == 5
    figure.canvas.draw()
    with pytest.raises(ValueError, match=r"must hold 6 axes.*found 4"):
        spatial_pred(sdata, "GENE1", ax=axes)


def test_errors(sdata: SpatialData):
    with pytest.raises(KeyError, match=r"`slides` names no slide.*\['other'\].*donor1_a"):
        spatial_pred(sdata, "GENE1", slides=["donor1_a", "other"], show=False)
    with pytest.raises(TypeError, match=r"AnnData object holds no prediction.*sdata\['stc_pred'\] = prediction"):
        spatial_pred(sdata["table"], "GENE1", show=False)
    with pytest.raises(TypeError, match=r"found DataFrame"):
        spatial_pred(sdata["table"].obs, "GENE1", show=False)
    del sdata.tables["stc_pred"]
    with pytest.raises(KeyError, match=re.escape("stc.tl.predict_expression")):
        spatial_pred(sdata, "GENE1", show=False)
    assert not plt.get_fignums()


def test_real_slide():
    sdata = her2st_low_resolution(require("her2st"), "A1")
    prediction = sdata["table"][:, ["ERBB2", "GNAS"]].copy()
    prediction.X = np.log1p(prediction.X.toarray())
    prediction.uns["stcontrast"] = {"prediction": {}}
    sdata["stc_pred"] = prediction
    figure = spatial_pred(sdata, "ERBB2", return_fig=True)
    figure.canvas.draw()
    length_px, label = scale_bar(figure.axes[0])
    assert label == "1 mm"
    assert length_px == pytest.approx(1000 / sdata["table"].uns["stcontrast"]["um_per_px"]["A1"])
    # true diameter: 100 µm
    width = np.ptp(filled(figure.axes[0])[0].get_paths()[0].vertices[:, 0])
    assert width * 1000 / length_px == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize(
    ("gene", "message"),
    [
        ("gene3", r"not among the 10 genes of the prediction.*nor among the 20 measured.*Close matches: \['GENE3'"),
        ("GENE15", r"it was measured, but is not modelled.*Close matches"),
        ("xyz", r"'xyz' is.*The first of them: \['GENE1'"),
    ],
)
def test_unknown_gene(sdata: SpatialData, gene: str, message: str):
    with pytest.raises(KeyError, match=message):
        spatial_pred(sdata, gene, show=False)


def test_layer_of_counts(sdata: SpatialData):
    table = sdata["table"]
    table.layers["counts"] = table.X.copy()
    table.X = table.X.multiply(0.5).tocsr()
    counts = table.layers["counts"].toarray()
    expected = np.log1p(counts[:, 0] / counts.sum(axis=1) * 1e4)
    axes = spatial_pred(sdata, "GENE1", layer="counts", show=False)
    drawn = np.concatenate([filled(left)[0].get_array() for left, _ in axes])
    np.testing.assert_allclose(drawn, expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"`X` holds the value.*`layer`"):
        spatial_pred(sdata, "GENE1", show=False)
    with pytest.raises(KeyError, match=r"No layer 'raw'.*'counts'"):
        spatial_pred(sdata, "GENE1", layer="raw", show=False)


def test_duplicate_gene_name(sdata: SpatialData):
    sdata["stc_pred"].var_names = ["GENE1", "GENE1", *sdata["stc_pred"].var_names[2:]]
    with pytest.raises(ValueError, match="var_names_make_unique"):
        spatial_pred(sdata, "GENE1", show=False)


def test_table_without_matrix(sdata: SpatialData):
    sdata["table"].X = None
    with pytest.raises(ValueError, match=r"no `X`.*`layer`"):
        spatial_pred(sdata, "GENE1", show=False)


@pytest.fixture(scope="session")
def model() -> Any:
    train = stc.datasets.toy(n_donors=2, n_spots=30, n_genes=12)
    stc.pp.image_features(train, encoder="color")
    return stc.tl.fit(train, batch_key="donor", method="ridge")


@pytest.fixture(scope="session")
def written(model: Any) -> SpatialData:
    """A real prediction; tests draw it and change copies only."""
    new = stc.datasets.toy(n_donors=2, n_spots=30, n_genes=12, seed=1)
    stc.tl.predict_expression(new, model)
    return new


def without_measurement(written: SpatialData) -> SpatialData:
    from spatialdata import SpatialData as Object

    return Object(images=dict(written.images), shapes=dict(written.shapes), tables={"stc_pred": written["stc_pred"]})


def as_anndata(written: SpatialData, *, images: bool) -> AnnData:
    """The slide "donor1_a" as scanpy has it."""
    table = written["table"][written["table"].obs["region"] == "donor1_a"].copy()
    pixels = np.moveaxis(written["donor1_a_he"]["scale0"]["image"].to_numpy(), 0, -1)
    del table.uns["spatialdata_attrs"]
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 55.0}
    table.uns["spatial"] = {"donor1_a": {"images": {"hires": pixels}, "scalefactors": factors}}
    if not images:
        del table.uns["spatial"]
    return table


def test_a_prediction_without_a_measured_table(written: SpatialData):
    alone = without_measurement(written)
    axes = spatial_pred(alone, "GENE1", show=False)
    with_counts = spatial_pred(written, "GENE1", show=False)
    assert axes.shape == (2, 2)
    for (image, ax), (_, other) in zip(axes, with_counts, strict=True):
        assert image.get_title(loc="left").endswith("\nH&E")
        assert not image.collections
        assert image.images[0].get_alpha() == 1.0
        np.testing.assert_allclose(values(ax), values(other))
        np.testing.assert_allclose(centers(ax), centers(other))
        assert ax.get_title(loc="left") == "GENE1 predicted"
    assert spatial_pred(alone, ["GENE1", "GENE2"], show=False).shape == (2, 2)


def test_a_table_of_other_shapes_is_no_measurement(written: SpatialData):
    from spatialdata.models import ShapesModel, TableModel

    sdata = without_measurement(written)
    sdata["nuclei"] = ShapesModel.parse(np.zeros((3, 2)), geometry=0, radius=1)
    cells = pd.DataFrame({"region": pd.Categorical(["nuclei"] * 3), "id": range(3)}, index=list("abc"))
    from anndata import AnnData as Table

    sdata["table"] = TableModel.parse(
        Table(np.ones((3, 1), dtype=np.float32), obs=cells, var=pd.DataFrame(index=["GENE1"])),
        region="nuclei", region_key="region", instance_key="id",
    )  # fmt: skip
    axes = spatial_pred(sdata, "GENE1", show=False)
    assert [len(values(ax)) for ax in axes[:, 1]] == [30, 30]


@pytest.mark.parametrize("images", [True, False], ids=["images", "no images"])
def test_what_predict_expression_returns_for_an_anndata(model: Any, written: SpatialData, images: bool):
    adata = as_anndata(written, images=True)
    predicted: Any = stc.tl.predict_expression(adata, model, um_per_px=1.0)
    if not images:
        del predicted.uns["spatial"]
    axes = spatial_pred(predicted, ["GENE1", "GENE2"], panels=["predicted", "width"], show=False)
    assert axes.shape == (1, 4)
    np.testing.assert_allclose(values(axes[0, 0]), predicted.to_df()["GENE1"], rtol=1e-6)
    np.testing.assert_allclose(centers(axes[0, 0]), adata.obsm["spatial"], atol=1e-6)
    assert bool(axes[0, 0].images) == images


def test_the_table_of_a_spatialdata_alone(written: SpatialData):
    axes = spatial_pred(written["stc_pred"], "GENE1", panels="predicted", show=False)
    assert axes.shape == (2, 1)
    assert [len(values(ax)) for ax in axes.ravel()] == [30, 30]
    assert not axes[0, 0].images


def test_a_list_of_objects_has_one_scale(written: SpatialData, sdata: SpatialData):
    axes = spatial_pred([written, sdata], "GENE1", show=False)
    assert axes.shape == (5, 2)
    assert len({filled(ax)[0].get_clim() for ax in axes.ravel()}) == 1
    axes = spatial_pred([written, sdata], "GENE1", slides="donor3_a", um_per_px={"donor3_a": 2.0}, show=False)
    assert axes[0, 0].get_title(loc="left").startswith("donor3_a")
    with pytest.raises(KeyError, match=r"`um_per_px` names slides that are absent: \['x'\]"):
        spatial_pred([written, sdata], "GENE1", um_per_px={"x": 2.0}, show=False)


def test_panels_of_the_interval(written: SpatialData):
    kinds = ["width", "lower", "predicted", "upper", "out_of_distribution", "image", "measured"]
    axes = spatial_pred(written, "GENE1", panels=kinds, slides="donor1_a", show=False)
    prediction = written["stc_pred"][written["stc_pred"].obs["region"] == "donor1_a"]
    lower, upper = (prediction.to_df(layer=name)["GENE1"] for name in ("lower", "upper"))
    panel = dict(zip(kinds, axes[0], strict=True))
    for kind, expected in {"lower": lower, "upper": upper, "width": upper - lower}.items():
        np.testing.assert_allclose(values(panel[kind]), expected, rtol=1e-5)
    n_out = int((~prediction.obs["stc_in_distribution"].to_numpy(bool)).sum())
    assert (
        panel["out_of_distribution"].get_title(loc="left").replace("\n", " ")
        == f"Out of distribution: {n_out} of 30 spots"
    )
    assert not panel["image"].collections
    assert "lower end of the 90 % interval" in panel["lower"].get_title(loc="left").replace("\n", " ")
    shared = {filled(panel[kind])[0].get_clim() for kind in ("lower", "upper", "predicted", "measured")}
    assert len(shared) == 1
    assert filled(panel["width"])[0].get_clim() not in shared
    assert color_bar_label(axes[0, 0].figure) == ["log(1 + counts per 10 000)", "width, log(1 + counts per 10 000)"]


def test_spots_out_of_distribution_are_filled(sdata: SpatialData):
    prediction = sdata["stc_pred"]
    prediction.obs["stc_in_distribution"] = (prediction.obs["spot_id"] % 3 != 0).to_numpy()
    (ax,) = spatial_pred(sdata, "GENE1", panels="out_of_distribution", slides="donor1_a", show=False)[0]
    shown = [c for c in ax.collections if len(c.get_facecolor())]
    expected = (prediction.obs["region"] == "donor1_a") & ~prediction.obs["stc_in_distribution"]
    assert sum(len(c.get_paths()) for c in shown) == expected.sum() > 0
    assert ax.get_title(loc="left") == f"donor1_a\nOut of distribution: {expected.sum()} of 30 spots"


def test_no_interval_anywhere_is_said(written: SpatialData, sdata: SpatialData):
    from copy import deepcopy

    bare = without_measurement(written)
    prediction = deepcopy(written["stc_pred"])
    rows = (prediction.obs["region"] == "donor1_a").to_numpy()
    for layer in ("lower", "upper"):
        prediction.layers[layer][rows] = np.nan
    bare.tables["stc_pred"] = prediction
    axes = spatial_pred(bare, "GENE1", panels=["lower", "width"], show=False)
    assert axes[0, 0].get_title(loc="left") == "donor1_a\nGENE1: no interval"
    assert len(values(axes[1, 1])) == 30
    with pytest.raises(ValueError, match=r"GENE1 has no interval on \['donor1_a'\].*several donors"):
        spatial_pred(bare, "GENE1", panels="width", slides="donor1_a", show=False)
    with pytest.raises(KeyError, match=r"'upper' needs the layers \['upper'\], which the prediction lacks"):
        spatial_pred(sdata, "GENE1", panels="upper", show=False)
    with pytest.raises(KeyError, match=r"needs the column 'stc_in_distribution'"):
        spatial_pred(sdata, "GENE1", panels=["measured", "out_of_distribution"], show=False)


@pytest.mark.parametrize("genes", [["GENE1", "GENE3"], ("GENE3", "GENE1", "GENE3"), pd.Index(["GENE1", "GENE3"])])
def test_many_genes_have_a_scale_each(sdata: SpatialData, genes: Any):
    axes = spatial_pred(sdata, genes, slides=["donor1_a", "donor2_a"], show=False)
    names = list(dict.fromkeys(genes))
    assert axes.shape == (2, 4)
    for i, gene in enumerate(names):
        block = axes[:, 2 * i : 2 * i + 2]
        assert all(f"{gene} " in ax.get_title(loc="left") for ax in block.ravel())
        assert len({filled(ax)[0].get_clim() for ax in block.ravel()}) == 1
    assert len(color_bar_label(axes[0, 0].figure)) == 4
    one = spatial_pred(sdata, names[0], slides=["donor1_a", "donor2_a"], show=False)
    assert filled(one[0, 0])[0].get_clim() == filled(axes[0, 0])[0].get_clim()


def test_scales_of_many_genes(sdata: SpatialData):
    axes = spatial_pred(sdata, ["GENE1", "GENE2"], vmin=0, vmax=["p50", 3.0], slides="donor1_a", show=False)
    drawn = np.concatenate([values(ax) for ax in axes[0, :2]])
    np.testing.assert_allclose(filled(axes[0, 0])[0].get_clim(), (0, np.median(drawn)))
    assert filled(axes[0, 3])[0].get_clim() == (0, 3)
    with pytest.raises(ValueError, match=r"`vmax` must hold one value for each of 2 genes, found 3"):
        spatial_pred(sdata, ["GENE1", "GENE2"], vmax=[1, 2, 3], show=False)


def test_what_all_genes_share_comes_once(written: SpatialData):
    axes = spatial_pred(
        written, ["GENE1", "GENE2"], panels=["image", "predicted", "out_of_distribution"], slides="donor1_a", show=False
    )
    titles = [ax.get_title(loc="left").split("\n")[-1].split(",")[0] for ax in axes[0]]
    assert titles[:3] == ["GENE1 predicted", "GENE2 predicted", "H&E"]
    assert titles[3].startswith("Out of distribution")


@pytest.mark.parametrize("panel", [None, "image", "measured", "predicted", "lower", "width", "out_of_distribution"])
def test_one_axes_for_any_panel(written: SpatialData, panel: str | None):
    figure, ax = plt.subplots()
    returned = spatial_pred(written, "GENE1", slides="donor1_a", panels=panel, ax=ax)
    assert returned.shape == (1, 1)
    assert returned[0, 0] is ax
    expected = values(spatial_pred(written, "GENE1", slides="donor1_a", show=False)[0, 1])
    if panel in (None, "predicted"):
        np.testing.assert_allclose(values(ax), expected)
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gene": []}, "`gene` must be the name of a gene, or a list of names"),
        ({"gene": [1, 2]}, "`gene` must be"),
        ({"panels": "observed"}, "`panels` must be one or more of .*'measured'.*found 'observed'"),
        ({"panels": []}, "`panels` must be"),
        ({"vmax": float("nan")}, "`vmax` must be"),
        ({"vmin": "p101"}, "`vmin` must be"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_arguments_of_another_kind(sdata: SpatialData, given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        spatial_pred(sdata, **{"gene": "GENE1", "show": False, **given})


def test_counts_are_not_looked_at_for_the_prediction_alone(sdata: SpatialData):
    sdata["table"].X = sdata["table"].X.multiply(0.5).tocsr()
    assert spatial_pred(sdata, "GENE1", panels="predicted", show=False).shape == (3, 1)


def test_ids_of_two_types_are_one_spot(sdata: SpatialData):
    before = spatial_pred(sdata, "GENE1", show=False)
    sdata["stc_pred"].obs["spot_id"] = sdata["stc_pred"].obs["spot_id"].astype(float)
    for old, new in zip(before.ravel(), spatial_pred(sdata, "GENE1", show=False).ravel(), strict=True):
        np.testing.assert_allclose(values(old), values(new))


@pytest.mark.parametrize("as_anndata", [False, True], ids=["SpatialData", "AnnData"])
def test_image_and_measurement_need_no_prediction(sdata: SpatialData, as_anndata: bool):
    del sdata.tables["stc_pred"]
    data: Any = sdata
    if as_anndata:
        data = sdata["table"].copy()
        data.obs["library_id"] = data.obs["region"].astype(str)
    axes = spatial_pred(data, ["GENE2", "GENE15"], panels=["image", "measured"], show=False)
    assert axes.shape == (3, 3)
    for (first, second, image), slide in zip(axes, SLIDES, strict=True):
        np.testing.assert_allclose(values(first), observed(sdata["table"], "GENE2", slide), rtol=1e-6)
        np.testing.assert_allclose(values(second), observed(sdata["table"], "GENE15", slide), rtol=1e-6)
        assert not filled(image)
    assert spatial_pred(data, "GENE2", panels="image", slides="donor2_a", show=False).shape == (1, 1)
    with pytest.raises(KeyError, match=r"'gene2' is not among the 20 genes of the table. Close matches: \['GENE2'"):
        spatial_pred(data, "gene2", panels="measured", show=False)
    with pytest.raises((KeyError, TypeError), match=r"stc.tl.predict_expression"):
        spatial_pred(data, "GENE2", panels=["measured", "predicted"], show=False)


def test_some_objects_may_have_a_prediction(sdata: SpatialData, written: SpatialData):
    del sdata.tables["stc_pred"]
    assert spatial_pred([sdata, written], "GENE2", panels="measured", show=False).shape[1] == 1

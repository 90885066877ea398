"""A prediction is an ordinary table: squidpy, scanpy and spatialdata-plot take it as it is."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

import stcontrast as stc
from tests.tl.conftest import copied
from tests.tl.toy import parts_of

mpl.use("Agg")

pytestmark = [
    # squidpy and scanpy read settings and use functions that numpy, pandas and their own next releases deprecate
    pytest.mark.filterwarnings("ignore::FutureWarning:squidpy"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:squidpy"),
    pytest.mark.filterwarnings("ignore::FutureWarning:scanpy"),
]


@pytest.fixture(scope="module")
def chained(fitted):
    """Fitted, predicted, classified: as a user has it."""
    model, train = fitted
    sdata = copied(train)
    stc.tl.predict_expression(sdata, model, donor_key="donor")
    stc.tl.classify(sdata, model)
    return sdata


@pytest.mark.parametrize("graph", ["grid", "knn"])
def test_squidpy_autocorrelation(chained, graph):
    import squidpy as sq

    prediction = chained["stc_pred"].copy()
    if graph == "grid":
        sq.gr.spatial_neighbors_grid(prediction, library_key="region", n_neighs=6)
    else:
        sq.gr.spatial_neighbors_knn(prediction, library_key="region", n_neighs=6)
    sq.gr.spatial_autocorr(prediction, mode="moran", show_progress_bar=False)
    moran = prediction.uns["moranI"]
    assert set(moran.index) == set(prediction.var_names)
    assert np.isfinite(moran["I"]).all()
    # neighbours share image features: predictions vary smoothly
    assert moran["I"].median() > 0.1


def test_squidpy_neighbourhoods_of_subtypes(chained):
    import squidpy as sq

    table = chained["table"].copy()
    table.obs["stc_class"] = table.obs["stc_class"].cat.remove_unused_categories()
    sq.gr.spatial_neighbors_grid(table, library_key="region", n_neighs=6)
    sq.gr.nhood_enrichment(table, "stc_class", n_perms=50, seed=0, show_progress_bar=False)
    n_classes = len(table.obs["stc_class"].cat.categories)
    assert table.uns["stc_class_nhood_enrichment"]["zscore"].shape == (n_classes, n_classes)


@pytest.mark.slow
def test_scanpy_clusters(chained):
    import scanpy as sc

    prediction = chained["stc_pred"].copy()
    sc.pp.pca(prediction, n_comps=10)
    sc.pp.neighbors(prediction, n_neighbors=10)
    sc.tl.leiden(prediction, flavor="igraph", n_iterations=2, random_state=0)
    assert prediction.obs["leiden"].nunique() > 1


# spatialdata-plot looks at one coordinate system and keeps the whole table; it sets the colour of missing values in a way that matplotlib is going to deprecate
@pytest.mark.filterwarnings("ignore:The table is annotating '.*', which is not present:UserWarning")
@pytest.mark.filterwarnings("ignore:The set_bad function will be deprecated:PendingDeprecationWarning")
def test_spatialdata_plot(chained):
    import spatialdata_plot  # noqa: F401
    from matplotlib import pyplot as plt

    name, gene = "donor1_a", chained["stc_pred"].var_names[0]
    figure, ax = plt.subplots()
    drawn = chained.pl.render_images(f"{name}_he").pl.render_shapes(name, color=gene, table_name="stc_pred")
    drawn.pl.show(coordinate_systems=name, ax=ax)
    assert ax.collections
    assert len(figure.axes) == 2  # and a colour bar
    plt.close("all")


def test_written_and_read_again(chained, model, tmp_path):
    import spatialdata

    chained.write(tmp_path / "store.zarr")
    again = spatialdata.read_zarr(tmp_path / "store.zarr")
    assert {name for _, name, _ in again.gen_elements()} == {name for _, name, _ in chained.gen_elements()}
    for name in ("table", "stc_pred"):
        before, after = chained[name], again[name]
        for slot in ("obsm", "layers"):
            for key, value in getattr(before, slot).items():
                if key is not None and isinstance(value, np.ndarray):
                    np.testing.assert_array_equal(getattr(after, slot)[key], value)
        assert list(after.var_names) == list(before.var_names)
        for column in before.obs:
            assert list(after.obs[column].astype(str)) == list(before.obs[column].astype(str))
    np.testing.assert_array_equal(again["stc_pred"].X, chained["stc_pred"].X)
    assert again["stc_pred"].obs["stc_in_distribution"].dtype == bool
    before, after = chained["stc_pred"].uns["stcontrast"], again["stc_pred"].uns["stcontrast"]
    assert after == before
    classification = again["table"].uns["stcontrast"]["classification"]
    assert list(classification["classes"]) == model.classes
    assert classification["provenance"] == {"donor1_a": "in-sample", "donor2_a": "in-sample"}
    # and it goes on from there: same features, the same prediction, still recognised
    stc.tl.predict_expression(again, model)
    np.testing.assert_allclose(again["stc_pred"].X, chained["stc_pred"].X, atol=1e-5)
    assert set(again["stc_pred"].uns["stcontrast"]["prediction"]["provenance"].values()) == {"in-sample"}


def test_pictures_of_our_own(chained):
    from matplotlib import pyplot as plt

    stc.pl.spatial_pred(chained, chained["stc_pred"].var_names[0], show=False)
    stc.pl.spatial_class(chained, show=False)
    plt.close("all")


def test_fitting_on_what_was_read_from_disk(toy, tmp_path):
    import spatialdata

    parts_of(copied(toy), "donor1", "donor2").write(tmp_path / "store.zarr")
    sdata = spatialdata.read_zarr(tmp_path / "store.zarr")
    model = stc.tl.fit(sdata, batch_key="donor", label_key="subtype", method="ridge")
    assert sdata["stc_pred"].n_vars == len(model.genes)
    # nothing was written to disk
    assert "stc_pred" not in spatialdata.read_zarr(tmp_path / "store.zarr")

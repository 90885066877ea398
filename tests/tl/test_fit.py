from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import stcontrast as stc
from tests.methods.quick import QUICK
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, OPTIONS, as_anndata, bare, parts_of, snapshot

OURS = ("X_stc_gene", "X_stc_image")


def test_slots_of_the_training_table(fitted, toy):
    model, sdata = fitted
    table = sdata["table"]
    assert {"X_image", *OURS} <= set(table.obsm)
    for key in OURS:
        assert table.obsm[key].dtype == np.float32
        assert table.obsm[key].shape[0] == table.n_obs
    assert table.obsm["X_stc_gene"].shape == table.obsm["X_stc_image"].shape
    for key in OURS:
        np.testing.assert_allclose(np.linalg.norm(table.obsm[key], axis=1), 1, atol=1e-5)
    assert table.uns["stcontrast"]["model_id"] == model.model_id
    record = table.uns["stcontrast"]["image_features"]
    assert record["encoder"]["name"] == "texture"
    assert record["field_um"] == [100, 200, 400, 800]
    assert list(table.obs.columns) == list(toy["table"].obs.columns)


def test_prediction_table_of_the_training_slides(fitted):
    model, sdata = fitted
    table, prediction = sdata["table"], sdata["stc_pred"]
    assert list(prediction.var_names) == model.genes
    assert prediction.shape == (table.n_obs, 40)
    assert list(prediction.obs_names) == list(table.obs_names)
    assert list(prediction.obs.columns) == ["region", "spot_id", "donor", "stc_in_distribution"]
    assert list(prediction.obs["donor"]) == list(table.obs["donor"])
    assert {"lower", "upper"} <= set(prediction.layers)
    assert prediction.X.dtype == prediction.layers["lower"].dtype == np.float32
    assert (prediction.layers["lower"] <= prediction.X).all()
    assert (prediction.layers["upper"] >= prediction.X).all()
    np.testing.assert_allclose(prediction.obsm["spatial"], table.obsm["spatial"], atol=1e-6)
    np.testing.assert_array_equal(prediction.var["stc_held_out_r"], model.calibration.held_out_r)
    written = prediction.uns["stcontrast"]["prediction"]
    assert written["units"] == "log1p(counts per 10 000 of the full library)"
    assert written["model_id"] == model.model_id
    assert written["provenance"] == {"donor1_a": "in-sample", "donor2_a": "in-sample"}
    assert written["calibrated_on"] == "held-out donors"
    assert prediction.obs["stc_in_distribution"].mean() > 0.9


def test_spec(model):
    spec = model.spec
    assert spec["donors"] == ["donor1", "donor2"]
    assert spec["classes"] == ["fat", "glands", "stroma", "tumour"]
    assert spec["method"] == "stcontrast"
    assert spec["method_spec"]["max_epochs"] == OPTIONS["max_epochs"]
    assert sorted(spec["slides"]) == ["donor1_a", "donor2_a"]
    assert spec["versions"]["stcontrast"] == stc.__version__
    assert -1 <= spec["held_out_r"] <= 1
    assert 0 <= spec["held_out_macro_f1"] <= 1


def test_features_are_made_where_they_are_absent(raw, toy):
    stc.tl.fit(raw, batch_key="donor", method="mean")
    np.testing.assert_array_equal(raw["table"].obsm["X_image"], toy["table"].obsm["X_image"])
    assert raw["table"].uns["stcontrast"]["image_features"]["field_um"] == [100, 200, 400, 800]


def test_the_user_s_elements_are_unchanged(sdata):
    before = snapshot(sdata)
    table = sdata["table"]
    counts = table.X.copy()
    stc.tl.fit(sdata, batch_key="donor", label_key=LABELS, method="ridge")
    after = snapshot(sdata)
    assert after.pop("stc_pred")
    assert after.pop("elements") == sorted([*before.pop("elements"), "stc_pred"])
    assert after == before
    assert sdata["table"] is table
    assert (counts != table.X).nnz == 0


def test_a_table_of_the_user_is_not_overwritten(sdata):
    sdata["stc_pred"] = sdata["table"].copy()
    before = snapshot(sdata)
    with pytest.raises(ValueError, match="an element 'stc_pred' already, without the record of a prediction"):
        stc.tl.fit(sdata, batch_key="donor", method="ridge")
    assert snapshot(sdata) == before


def test_fitting_again_replaces_our_prediction(sdata):
    first = stc.tl.fit(sdata, batch_key="donor", method="mean")
    second = stc.tl.fit(sdata, batch_key="donor", method="ridge")
    written = sdata["stc_pred"].uns["stcontrast"]["prediction"]
    assert written["model_id"] == second.model_id != first.model_id


def test_a_list_of_slides_with_counts_labels_or_both(toy):
    """Donor 1: counts and labels; donor 2: a table without genes, labels only; donor 3: counts only."""
    one, two, three = (parts_of(copied(toy), f"donor{i}") for i in (1, 2, 3))
    two = bare(two)
    del three["table"].obs[LABELS]
    model = stc.tl.fit([one, two, three], batch_key="donor", label_key=LABELS, options=OPTIONS)
    assert model.spec["donors"] == ["donor1", "donor2", "donor3"]
    assert len(model.genes) == 40
    for sdata in (one, three):
        assert np.isfinite(sdata["table"].obsm["X_stc_gene"]).all()
    assert np.isnan(two["table"].obsm["X_stc_gene"]).all()
    assert np.isfinite(two["table"].obsm["X_stc_image"]).all()
    for sdata, donor in ((one, "donor1"), (two, "donor2"), (three, "donor3")):
        assert sdata["stc_pred"].shape == (40, 40)
        assert sdata["stc_pred"].uns["stcontrast"]["prediction"]["provenance"] == {f"{donor}_a": "in-sample"}
        stc.tl.classify(sdata, model)


def test_spots_without_counts_among_others(sdata):
    table = sdata["table"]
    counts = table.X.toarray()
    counts[:7] = 0
    table.X = sparse.csr_matrix(counts)
    model = stc.tl.fit(sdata, batch_key="donor", options=OPTIONS)
    assert model.classes == []
    assert np.isnan(table.obsm["X_stc_gene"][:7]).all()
    assert np.isfinite(table.obsm["X_stc_gene"][7:]).all()
    assert np.isfinite(sdata["stc_pred"].X).all()
    with pytest.raises(ValueError, match="trained without labels"):
        stc.tl.classify(sdata, model)


@pytest.mark.parametrize("method", ["stcontrast", "ridge", "mean"])
def test_labels_without_any_counts(toy, method):
    sdata = bare(toy)
    model = stc.tl.fit(sdata, batch_key="donor", label_key=LABELS, method=method, options=QUICK[method])
    assert not model.has_expression
    assert "stc_pred" not in sdata
    assert not {"X_stc_image", "X_stc_gene", "X_stc_vae"} & set(sdata["table"].obsm)
    stc.tl.classify(sdata, model)
    assert sdata["table"].obs["stc_class"].notna().all()
    with pytest.raises(ValueError, match="trained without counts"):
        stc.tl.predict_expression(sdata, model)


@pytest.mark.parametrize("method", ["ridge", "stcontrast"])
def test_a_single_donor_is_split_into_blocks(toy, method, caplog):
    sdata = parts_of(copied(toy), "donor1")
    model = stc.tl.fit(sdata, batch_key="donor", label_key=LABELS, method=method, options=QUICK[method])
    assert model.spec["held_out_unit"] == "block"
    assert "say nothing about another donor" in caplog.text


def test_genes_by_name_and_by_number(sdata):
    assert stc.tl.fit(sdata, batch_key="donor", method="mean", genes=["GENE3", "GENE1", "GENE3"]).genes == [
        "GENE3",
        "GENE1",
    ]
    chosen = stc.tl.fit(sdata, batch_key="donor", method="mean", n_genes=7).genes
    assert len(chosen) == 7
    [other] = set(stc.tl.fit(sdata, batch_key="donor", method="mean", n_genes=8).genes) - set(chosen)
    both = stc.tl.fit(sdata, batch_key="donor", method="mean", n_genes=7, genes=[other, chosen[2], other])
    assert both.genes == [*chosen, other]


def test_raw_counts_in_a_layer(sdata):
    table = sdata["table"]
    expected = stc.tl.fit(sdata, batch_key="donor", method="ridge")
    table.layers["counts"] = table.X.copy()
    table.X = np.log1p(table.X.toarray())
    model = stc.tl.fit(sdata, batch_key="donor", method="ridge", layer="counts")
    assert model.genes == expected.genes
    np.testing.assert_array_equal(model.calibration.half_width, expected.calibration.half_width)


def test_the_seed_decides_everything_and_the_random_numbers_of_the_session_stay(toy):
    torch.manual_seed(0)
    expected = float(torch.rand(1))
    torch.manual_seed(0)
    models = []
    for _ in range(2):
        sdata = copied(toy)
        models.append(stc.tl.fit(sdata, batch_key="donor", label_key=LABELS, options=OPTIONS, seed=np.int64(3)))
    assert float(torch.rand(1)) == expected
    assert models[0].model_id == models[1].model_id
    np.testing.assert_array_equal(models[0].calibration.half_width, models[1].calibration.half_width)


def test_anndata_with_features_of_the_user_s_own(toy):
    adata = as_anndata(toy)
    adata.obsm["X_image"] = adata.obsm["X_image"][:, :20]
    model = stc.tl.fit(adata, batch_key="donor", label_key=LABELS, options=OPTIONS)
    assert set(OURS) <= set(adata.obsm)
    assert model.spec["image_features"][0]["encoder"]["kind"] == "given"
    predicted = stc.tl.predict_expression(adata, model, donor_key="donor")
    assert predicted.shape == (120, 40)
    np.testing.assert_array_equal(predicted.obsm["spatial"], adata.obsm["spatial"])
    provenance = predicted.uns["stcontrast"]["prediction"]["provenance"]
    assert provenance == {f"donor{i}_a": "in-sample" for i in (1, 2, 3)}
    other = as_anndata(toy)
    with pytest.raises(ValueError, match=r"custom features in `obsm\['X_image'\]` \(20 a spot\), found X_image"):
        stc.tl.predict_expression(other, model)
    del other.obsm["X_image"]
    with pytest.raises(ValueError, match="found none"):
        stc.tl.classify(other, model)


def test_a_list_of_anndata(toy):
    parts = [as_anndata(parts_of(copied(toy), f"donor{i}")) for i in (1, 2)]
    model = stc.tl.fit(parts, batch_key="donor", method="ridge")
    assert model.spec["held_out_unit"] == "donor"
    predicted = stc.tl.predict_expression(parts, model)
    assert [table.n_obs for table in predicted] == [40, 40]


def test_scale_of_each_slide(raw):
    """µm per pixel as a mapping over all slides of a list, as a number, and stored: the same features."""
    stored = parts_of(raw, "donor1")
    stc.tl.fit(stored, batch_key="donor", method="mean")
    parts = [parts_of(raw, "donor1"), parts_of(raw, "donor2")]
    for part in parts:
        del part["table"].uns["stcontrast"]
    stc.tl.fit(parts, batch_key="donor", method="mean", um_per_px={"donor1_a": 1.0, "donor2_a": 2.0})
    np.testing.assert_array_equal(parts[0]["table"].obsm["X_image"], stored["table"].obsm["X_image"])
    found = [part["table"].uns["stcontrast"]["image_features"]["um_per_px"] for part in parts]
    assert found == [{"donor1_a": 1.0}, {"donor2_a": 2.0}]


def test_options_of_the_method(sdata):
    with pytest.raises(ValueError, match=r"Unknown options \['epochs'\]"):
        stc.tl.fit(sdata, batch_key="donor", options={"epochs": 3})


def break_counts(sdata):
    sdata["table"].X = np.log1p(sdata["table"].X.toarray())


BAD = {
    "absent batch column": (
        {"batch_key": "patient"}, None, KeyError, r"`batch_key`: no column 'patient' in `obs`; its columns are \['array_col'",
    ),
    "absent donor column": ({"donor_key": "mouse"}, None, KeyError, "`donor_key`: no column 'mouse'.*'donor'"),
    "absent label column": ({"label_key": "layer"}, None, KeyError, "`label_key`: no column 'layer'.*'subtype'"),
    "absent layer": ({"layer": "raw"}, None, KeyError, r"No layer 'raw' in the table; its layers are \['truth'\]"),
    "absent table": ({"table_key": "tbl"}, None, KeyError, r"No table 'tbl'.*\['table'\]"),
    "absent image": ({"image_key": "he"}, None, KeyError, "No image 'he'.*'donor1_a_he'"),
    "absent gene": ({"genes": ["GENE1", "ACTB"]}, None, KeyError, r"1 of the genes to model are absent from the counts: \['ACTB'\]"),
    "absent slide in a mapping": (
        {"um_per_px": {"donor9_a": 1.0}}, None, KeyError, r"`um_per_px` names slides that are absent: \['donor9_a'\]. Slides: \['donor1_a'",
    ),
    "unknown method": ({"method": "lasso"}, None, ValueError, "Unknown method 'lasso'. Valid options are"),
    "normalised counts": ({}, break_counts, ValueError, "Raw counts are needed, but `X` holds the value"),
    "counts of a layer": ({"layer": "truth"}, None, ValueError, r"`layers\['truth'\]` holds the value"),
    "image elsewhere": ({"image_key": "donor1_a_he"}, None, ValueError, "does not lie under the spots of 'donor2_a'"),
    "negative scale": ({"um_per_px": -1}, None, ValueError, "must be a positive number"),
    "no field": ({"field_um": ()}, None, ValueError, "`field_um` must be"),
    "nothing to learn": (
        {}, lambda sdata: setattr(sdata["table"], "X", sparse.csr_matrix((120, 40))), ValueError, "Nothing to learn from",
    ),
    "empty donor": (
        {}, lambda sdata: sdata["table"].obs.__setitem__("donor", pd.Categorical([None] * 3 + ["a"] * 117)), ValueError,
        "column 'donor' of `obs` is empty for 3 spots",
    ),
    "no image": ({}, lambda sdata: sdata.images.pop("donor2_a_he"), ValueError, r"No image lies under the spots of \['donor2_a'\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_refused_before_any_work(raw, case):
    arguments, change, kind, message = BAD[case]
    if change is not None:
        change(raw)
    before = snapshot(raw)
    with pytest.raises(kind, match=message):
        stc.tl.fit(raw, **{"batch_key": "donor", **arguments})
    assert snapshot(raw) == before


def test_unknown_scale_is_refused(raw):
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    rng = np.random.default_rng(0)
    del raw["table"].uns["stcontrast"]["um_per_px"]
    for name in list(raw.shapes):
        shapes = raw.shapes.pop(name)
        points = np.array([(p.x, p.y) for p in shapes.geometry]) + rng.uniform(-45, 45, (len(shapes), 2))
        transformations = get_transformation(shapes, get_all=True)
        raw.shapes[name] = ShapesModel.parse(points, geometry=0, radius=3.7, transformations=transformations)
    before = snapshot(raw)
    with pytest.raises(ValueError, match=r"µm per pixel is unknown for .*Give `um_per_px`"):
        stc.tl.fit(raw, batch_key="donor")
    assert snapshot(raw) == before


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="Expected a SpatialData or an AnnData object, found ndarray"):
        stc.tl.fit(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="an empty list"):
        stc.tl.fit([])


def test_slides_that_share_a_name_are_refused(toy):
    with pytest.raises(ValueError, match=r"Slides share a name: \['donor1_a'\]"):
        stc.tl.fit([parts_of(copied(toy), "donor1"), parts_of(copied(toy), "donor1")], batch_key="donor")


def test_genes_that_are_not_shared_are_refused(toy):
    one, two = (parts_of(copied(toy), f"donor{i}") for i in (1, 2))
    two["table"].var_names = [f"ENSG{i}" for i in range(40)]
    with pytest.raises(ValueError, match=r"The objects share 0 genes.*Genes begin"):
        stc.tl.fit([one, two], batch_key="donor")


def test_features_made_in_different_ways_are_refused(toy):
    one, two = (parts_of(copied(toy), f"donor{i}") for i in (1, 2))
    stc.pp.image_features(two, field_um=80)
    made = r"\"texture at \['100', '200', '400', '800'\] µm\", \"texture at \['80'\]"
    with pytest.raises(ValueError, match=rf"in different ways: \[{made}"):
        stc.tl.fit([one, two], batch_key="donor", method="mean")
    del one["table"].obsm["X_image"]
    with pytest.raises(ValueError, match="would be made, in different ways"):
        stc.tl.fit([one, two], batch_key="donor", method="mean")
    assert "X_image" not in one["table"].obsm


def test_with_more_spots_than_asked_for_nothing_is_written(toy, caplog):
    sdata = copied(toy)
    model = stc.tl.fit(sdata, batch_key="donor", method="ridge", max_spots=60)
    assert model.spec["n_spots_used"] == 60 < model.spec["n_spots"] == sdata["table"].n_obs
    assert "stc_pred" not in sdata
    assert "X_image" in sdata["table"].obsm
    assert "Learning from 60 of" in caplog.text
    assert "are not written" in caplog.text
    stc.tl.predict_expression(sdata, model)
    assert np.isfinite(sdata["stc_pred"].X).all()

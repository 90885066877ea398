from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import spatialdata
from spatialdata import SpatialData

import stcontrast as stc
from tests.tl.conftest import copied
from tests.tl.toy import as_anndata, bare, image_of, parts_of, snapshot, with_table


@pytest.fixture(scope="module")
def predicted(model, toy):
    """Donor 3 from its H&E alone."""
    sdata = bare(parts_of(copied(toy), "donor3"))
    stc.tl.predict_expression(sdata, model, donor_key="donor")
    return sdata


def test_h_and_e_alone_is_enough(predicted, model):
    table, prediction = predicted["table"], predicted["stc_pred"]
    assert table.n_vars == 0
    assert list(prediction.var_names) == model.genes
    assert prediction.X.dtype == np.float32
    assert np.isfinite(prediction.X).all()
    assert (prediction.X >= 0).all()
    for name in ("lower", "upper"):
        assert prediction.layers[name].dtype == np.float32
    half = np.tile(model.calibration.half_width, (40, 1))
    np.testing.assert_allclose(prediction.layers["upper"], prediction.X + half, rtol=1e-5)
    np.testing.assert_allclose(prediction.layers["lower"], np.maximum(prediction.X - half, 0), atol=1e-5)
    assert list(prediction.obs.columns) == ["region", "spot_id", "donor", "stc_in_distribution"]
    assert prediction.obsm["spatial"].shape == (40, 2)
    assert "stc_held_out_r" in prediction.var
    assert prediction.uns["spatialdata_attrs"] == {
        "region": ["donor3_a"], "region_key": "region", "instance_key": "spot_id",
    }  # fmt: skip
    assert table.obsm["X_image"].dtype == np.float32
    assert table.uns["stcontrast"]["image_features"]["encoder"]["name"] == "texture"


def test_counts_are_not_looked_at(predicted, model, sdata):
    measured = parts_of(sdata, "donor3")
    stc.tl.predict_expression(measured, model)
    np.testing.assert_array_equal(measured["stc_pred"].X, predicted["stc_pred"].X)


def test_the_order_of_the_spots_does_not_matter(predicted, model, sdata):
    shuffled = parts_of(sdata, "donor3")
    order = np.random.default_rng(0).permutation(40)
    shuffled.tables.data["table"] = shuffled["table"][order].copy()
    stc.tl.predict_expression(shuffled, model)
    assert list(shuffled["stc_pred"].obs["spot_id"]) == list(order)
    np.testing.assert_allclose(shuffled["stc_pred"].X, predicted["stc_pred"].X[order], atol=1e-4)


def provenance(sdata, model, **kwargs) -> dict[str, str]:
    stc.tl.predict_expression(sdata, model, **kwargs)
    return sdata["stc_pred"].uns["stcontrast"]["prediction"]["provenance"]


def test_provenance(sdata, model):
    assert provenance(sdata, model, donor_key="donor") == {
        "donor1_a": "in-sample", "donor2_a": "in-sample", "donor3_a": "out-of-donor",
    }  # fmt: skip
    assert provenance(sdata, model)["donor3_a"] == "unknown-donor"


def test_another_slide_of_a_known_donor(model):
    slides = stc.datasets.toy(n_donors=1, slides_per_donor=2, n_spots=40, n_genes=40)
    found = provenance(slides, model, donor_key="donor")
    assert found == {"donor1_a": "in-sample", "donor1_b": "in-donor"}


def some_spots(sdata, keep):
    table = sdata["table"]
    table = table[keep].copy()
    table.obs["region"] = table.obs["region"].cat.remove_unused_categories()
    return with_table(sdata, table, sorted(set(table.obs["region"])))


@pytest.mark.situation(
    "Donors, slides, labels", "Spots of one slide are split into training and test", "warning", "other spots of slides"
)
@pytest.mark.parametrize("which", ["the others", "half of those trained on", "laid anew", "another donor of the slide"])
def test_other_spots_of_a_training_slide(sdata, which, tmp_path, caplog):
    train = np.random.default_rng(0).uniform(size=120) < 0.7
    learnt = stc.tl.fit(some_spots(sdata, train), batch_key="donor", method="ridge")
    learnt.save(tmp_path / "model")
    first = (sdata["table"].obs["donor"] == "donor1").to_numpy()
    named: dict[str, Any] = {}
    if which == "laid anew":
        images = {"donor1_a_he": sdata.images["donor1_a_he"]}
        new = SpatialData(images=images)
        stc.pp.tissue_grid(new, um_per_px=1.0, pitch_um=100)
    else:
        new = some_spots(
            sdata, first & (train & (np.arange(120) % 2 > 0) if which == "half of those trained on" else ~train)
        )
    if which == "another donor of the slide":
        new["table"].obs["donor"] = "donor9"
        named = {"donor_key": "donor"}
    [found] = provenance(new, stc.models.load(tmp_path / "model"), **named).values()
    assert found == ("out-of-donor" if named else "in-sample")
    assert ("other spots of slides that the model was trained on (donor1_a), by their images" in caplog.text) == (
        not named
    )


def test_another_section_on_the_image_of_a_training_slide(sdata, caplog):
    x = np.array([point.x for point in sdata["donor1_a"].geometry])
    first = (sdata["table"].obs["donor"] == "donor1").to_numpy()
    left = first.copy()
    left[first] = x < np.median(x)
    learnt = stc.tl.fit(some_spots(sdata, left | ~first), batch_key="donor", method="ridge")
    assert provenance(some_spots(sdata, first & ~left), learnt) == {"donor1_a": "unknown-donor"}
    assert "by their images" not in caplog.text


def test_the_user_s_elements_are_unchanged(unseen, model):
    before = snapshot(unseen)
    stc.tl.predict_expression(unseen, model, key_added="mine")
    after = snapshot(unseen)
    assert after["elements"] == sorted([*before["elements"], "mine"])
    table = {key: value for key, value in after["table"].items() if key not in ("obsm", "ours")}
    assert table == {key: value for key, value in before["table"].items() if key not in ("obsm", "ours")}
    assert set(after["table"]["obsm"]) - set(before["table"]["obsm"]) == {"X_image"}
    stc.tl.predict_expression(unseen, model, key_added="mine")


@pytest.mark.parametrize("key", ["mine", "donor3_a", "donor3_a_he", "table"])
def test_what_is_not_ours_is_not_overwritten(unseen, model, key):
    unseen["mine"] = unseen["table"].copy()
    before = snapshot(unseen)
    with pytest.raises(ValueError, match=f"an element '{key}' already.*It is not replaced"):
        stc.tl.predict_expression(unseen, model, key_added=key, table_key="table")
    assert snapshot(unseen) == before


def test_features_of_another_kind_are_left_in_their_slot(unseen, predicted, model):
    stc.pp.image_features(unseen, field_um=50)
    theirs = unseen["table"].obsm["X_image"].copy()
    stc.tl.predict_expression(unseen, model)
    np.testing.assert_array_equal(unseen["table"].obsm["X_image"], theirs)
    np.testing.assert_array_equal(unseen["stc_pred"].X, predicted["stc_pred"].X)


def test_anndata_in_anndata_out(predicted, model, toy):
    adata = as_anndata(parts_of(copied(toy), "donor3"))
    adata.uns["stcontrast"] = {"image_features": dict(toy["table"].uns["stcontrast"]["image_features"])}
    adata.obsm["spatial"] = 3 * adata.obsm["spatial"]
    before = set(adata.obsm)
    table = stc.tl.predict_expression(adata, model, donor_key="donor")
    assert set(adata.obsm) == before
    np.testing.assert_allclose(table.X, predicted["stc_pred"].X, atol=1e-4)
    np.testing.assert_array_equal(table.obsm["spatial"], adata.obsm["spatial"])
    assert list(table.obs.columns) == ["library_id", "donor", "stc_in_distribution"]
    assert table.uns["stcontrast"]["prediction"]["provenance"] == {"donor3_a": "out-of-donor"}


def test_a_list_in_a_list_out(model, toy, unseen, tmp_path):
    adata = as_anndata(parts_of(copied(toy), "donor3"))
    adata.uns["stcontrast"] = {"image_features": dict(toy["table"].uns["stcontrast"]["image_features"])}
    alone = stc.tl.predict_expression(adata, model)
    model.save(tmp_path / "model")
    for given in ([adata], [unseen, adata], (adata, adata)):
        found = stc.tl.predict_expression(given, tmp_path / "model")
        assert isinstance(found, list)
        assert len(found) == sum(item is adata for item in given)
        for table in found:
            np.testing.assert_array_equal(table.X, alone.X)


def test_a_slide_like_no_other_is_marked(model, toy):
    """Noise instead of tissue on one side: the spots there look like nothing in the training."""
    sdata = bare(parts_of(copied(toy), "donor3"))
    plain = bare(parts_of(copied(toy), "donor3"))
    stc.tl.predict_expression(plain, model)

    def spoil(pixels):
        spoiled = pixels.copy()
        spoiled[:, :, : pixels.shape[2] // 2] = np.random.default_rng(0).choice(
            [0, 255], (*pixels.shape[:2], pixels.shape[2] // 2)
        )
        return spoiled

    weird = image_of(sdata, spoil)
    stc.tl.predict_expression(weird, model)
    x = weird["stc_pred"].obsm["spatial"][:, 0]
    width = weird.images["donor3_a_he"]["scale0"]["image"].sizes["x"]
    inside, outside = x < width / 2 - 60, x > width / 2 + 250
    assert plain["stc_pred"].obs["stc_in_distribution"].all()
    # donors differ in what lies beyond the border of the image, too: not every spot there stands out
    assert weird["stc_pred"].obs["stc_in_distribution"][inside].mean() < 0.3
    assert weird["stc_pred"].obs["stc_in_distribution"][outside].all()


def test_inverted_colours_are_marked(model, toy):
    weird = image_of(bare(parts_of(copied(toy), "donor3")), lambda pixels: 255 - pixels)
    stc.tl.predict_expression(weird, model)
    assert not weird["stc_pred"].obs["stc_in_distribution"].any()


def test_several_at_once_and_nothing_if_one_cannot_be(unseen, model, sdata):
    other = parts_of(sdata, "donor1")
    assert stc.tl.predict_expression([other, unseen], model) is None
    assert "stc_pred" in other
    assert "stc_pred" in unseen
    for item in (other, unseen):
        del item.tables["stc_pred"], item["table"].obsm["X_image"]
        item["table"].uns["stcontrast"].pop("image_features", None)
    del unseen.images["donor3_a_he"]
    before = [snapshot(item) for item in (other, unseen)]
    with pytest.raises(ValueError, match=r"No image lies under the spots of \['donor3_a'\]"):
        stc.tl.predict_expression([other, unseen], model)
    assert [snapshot(item) for item in (other, unseen)] == before


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"donor_key": "mouse"}, KeyError, "`donor_key`: no column 'mouse' in `obs`.*'donor'"),
        ({"table_key": "tbl"}, KeyError, r"\['table'\]"),
        ({"image_key": "he"}, KeyError, r"\['donor3_a_he'\]"),
        ({"um_per_px": {"slide9": 1.0}}, KeyError, r"absent: \['slide9'\]. Slides: \['donor3_a'\]"),
    ],
)
def test_bad_keys(unseen, model, arguments, kind, message):
    before = snapshot(unseen)
    with pytest.raises(kind, match=message):
        stc.tl.predict_expression(unseen, model, **arguments)
    assert snapshot(unseen) == before


LOADED = """
import sys
import numpy as np
import spatialdata
import stcontrast as stc
stc.settings.progress = False
model, store, out = sys.argv[1:]
sdata = spatialdata.read_zarr(store)
stc.tl.predict_expression(sdata, stc.models.load(model))
stc.tl.classify(sdata, stc.models.load(model))
np.savez(out, X=sdata["stc_pred"].X, proba=sdata["table"].obsm["stc_class_proba"])
"""


@pytest.mark.slow
def test_a_saved_model_in_a_fresh_process(model, toy, tmp_path):
    sdata = bare(parts_of(copied(toy), "donor3"))
    model.save(tmp_path / "model")
    sdata.write(tmp_path / "scan.zarr")
    paths = [str(tmp_path / name) for name in ("model", "scan.zarr", "out.npz")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOADED, *paths], check=True, env=environment)
    sdata = spatialdata.read_zarr(tmp_path / "scan.zarr")
    stc.tl.predict_expression(sdata, model)
    stc.tl.classify(sdata, model)
    with np.load(tmp_path / "out.npz") as there:
        np.testing.assert_allclose(there["X"], sdata["stc_pred"].X, atol=1e-5)
        np.testing.assert_allclose(there["proba"], sdata["table"].obsm["stc_class_proba"], atol=1e-5)

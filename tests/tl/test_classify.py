from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import stcontrast as stc
from tests.tl.conftest import copied
from tests.tl.toy import as_anndata, bare, parts_of, snapshot


def test_slots(unseen, model):
    before = snapshot(unseen)["table"]
    stc.tl.classify(unseen, model, donor_key="donor")
    table = unseen["table"]
    assert isinstance(table.obs["stc_class"].dtype, pd.CategoricalDtype)
    assert list(table.obs["stc_class"].cat.categories) == model.classes == ["fat", "glands", "stroma", "tumour"]
    proba = table.obsm["stc_class_proba"]
    assert proba.shape == (40, 4)
    assert proba.dtype == np.float32
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(table.obs["stc_class"].cat.codes, proba.argmax(axis=1))
    np.testing.assert_array_equal(table.obs["stc_class_confidence"], proba.max(axis=1))
    assert table.uns["stcontrast"]["classification"] == {
        "classes": model.classes, "model_id": model.model_id, "provenance": {"donor3_a": "out-of-donor"},
        "version": stc.__version__,
    }  # fmt: skip
    after = snapshot(unseen)["table"]
    assert set(after["obsm"]) - set(before["obsm"]) == {"X_image", "stc_class_proba"}
    assert list(table.obs.columns[-2:]) == ["stc_class", "stc_class_confidence"]


def test_labels_and_counts_are_not_looked_at(unseen, model, toy):
    alone = bare(parts_of(copied(toy), "donor3"), keep=("region", "spot_id"))
    for sdata in (alone, unseen):
        stc.tl.classify(sdata, model)
    np.testing.assert_array_equal(alone["table"].obsm["stc_class_proba"], unseen["table"].obsm["stc_class_proba"])
    assert alone["table"].uns["stcontrast"]["classification"]["provenance"] == {"donor3_a": "unknown-donor"}


def test_planted_subtypes_are_found_by_ridge(toy):
    train, test = parts_of(copied(toy), "donor1", "donor2"), parts_of(copied(toy), "donor3")
    model = stc.tl.fit(train, batch_key="donor", label_key="subtype", method="ridge")
    stc.tl.classify(test, model)
    right = test["table"].obs["stc_class"].astype(str) == test["table"].obs["subtype_truth"].astype(str)
    assert right.mean() > 0.6


def test_anndata(model, toy):
    adata = as_anndata(parts_of(copied(toy), "donor3"))
    adata.uns["stcontrast"] = {"image_features": dict(toy["table"].uns["stcontrast"]["image_features"])}
    stc.tl.classify(adata, model)
    assert adata.obs["stc_class"].notna().all()


def test_a_list_and_nothing_if_one_cannot_be(unseen, model, sdata):
    other = parts_of(sdata, "donor1")
    del unseen.images["donor3_a_he"]
    with pytest.raises(ValueError, match=r"No image lies under the spots of \['donor3_a'\]"):
        stc.tl.classify([other, unseen], model)
    assert "stc_class" not in other["table"].obs
    with pytest.raises(KeyError, match="no column 'mouse'"):
        stc.tl.classify([other], model, donor_key="mouse")


def test_classes_under_another_name(unseen, model, tmp_path):
    model.save(tmp_path / "model")
    stc.tl.classify(unseen, tmp_path / "model", key_added="tissue")
    stc.tl.classify(unseen, model)
    table = unseen["table"]
    for here, default in (("tissue", "stc_class"), ("tissue_confidence", "stc_class_confidence")):
        assert table.obs[here].tolist() == table.obs[default].tolist()
    np.testing.assert_array_equal(table.obsm["tissue_proba"], table.obsm["stc_class_proba"])
    ours = table.uns["stcontrast"]
    assert ours["classification_tissue"] == ours["classification"]
    # a slot of its own is renewed
    stc.tl.classify(unseen, str(tmp_path / "model"), key_added="tissue")


@pytest.mark.parametrize("taken", ["tissue", "tissue_confidence", "tissue_proba"])
def test_a_name_that_is_taken_is_refused(unseen, model, taken):
    table = unseen["table"]
    if taken.endswith("proba"):
        table.obsm[taken] = np.zeros((40, 2))
    else:
        table.obs[taken] = "mine"
    before = snapshot(unseen)
    with pytest.raises(ValueError, match=rf"'{taken}'\]` holds something that stcontrast did not write.*give another"):
        stc.tl.classify(unseen, model, key_added="tissue")
    assert snapshot(unseen) == before


def test_what_is_no_model_is_refused(unseen, tmp_path):
    with pytest.raises(TypeError, match=r"`model` must be what `stc.tl.fit` returned, or the folder .* found int"):
        stc.tl.classify(unseen, 3)
    with pytest.raises(FileNotFoundError, match="No stcontrast model in"):
        stc.tl.predict_expression(unseen, tmp_path)

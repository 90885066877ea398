from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import stcontrast as stc
from stcontrast.models import Predictor
from tests.methods.quick import CONTRASTIVE
from tests.tl.conftest import copied
from tests.tl.toy import as_anndata, bare, parts_of, snapshot

COLUMNS = ["query", "query_slide", "match", "slide", "donor", "similarity", "rank"]
FIRST = "donor3_a_"


@pytest.fixture(scope="session")
def joint_model(joint):
    return joint[0]


@pytest.fixture(scope="session")
def query(toy):
    """Donor 3 with image features, not to be changed."""
    return parts_of(copied(toy), "donor3")


@pytest.mark.parametrize("by", ["image", "gene"])
def test_the_same_as_one_by_one(query, joint, by):
    model, train = joint
    found = stc.tl.find_similar(query, model, k=7, by=by)
    assert list(found.columns) == COLUMNS
    assert len(found) == 40 * 7
    embedded = parts_of(query, "donor3")
    stc.tl.embed(embedded, model)
    table, bank = embedded["table"], train["table"]
    for i in range(40):
        cosines = bank.obsm[f"X_stc_{by}"] @ table.obsm["X_stc_image"][i]
        nearest = np.argsort(-cosines, kind="stable")[:7]
        rows = found.iloc[7 * i : 7 * (i + 1)]
        assert set(rows["query"]) == {table.obs_names[i]}
        assert rows["rank"].tolist() == [1, 2, 3, 4, 5, 6, 7]
        np.testing.assert_allclose(rows["similarity"], cosines[nearest], atol=1e-5)
        np.testing.assert_array_equal(rows["match"], bank.obs_names[nearest])
        np.testing.assert_array_equal(rows["donor"], bank.obs["donor"].iloc[nearest])
        np.testing.assert_array_equal(rows["slide"], bank.obs["region"].iloc[nearest])
    assert set(found["query_slide"]) == {"donor3_a"}
    assert set(found["donor"]) <= {"donor1", "donor2"}


def test_a_training_spot_finds_itself(toy, joint_model):
    found = stc.tl.find_similar(parts_of(copied(toy), "donor1", "donor2"), joint_model, k=1)
    assert found["match"].tolist() == found["query"].tolist()
    assert found["slide"].tolist() == found["query_slide"].tolist()
    np.testing.assert_allclose(found["similarity"], 1, atol=1e-5)
    assert found["similarity"].max() <= 1


@pytest.mark.parametrize(
    "spots",
    [
        [f"{FIRST}3", f"{FIRST}17"],
        (f"{FIRST}3", f"{FIRST}17"),
        np.array([f"{FIRST}3", f"{FIRST}17"]),
        pd.Index([f"{FIRST}3", f"{FIRST}17"]),
        [3, 17],
        np.array([3, 17], dtype=np.int32),
        np.isin(np.arange(40), [3, 17]),
        np.isin(np.arange(40), [3, 17]).tolist(),
        pd.Series(np.isin(np.arange(40), [3, 17])),
        pd.Series(np.isin(np.arange(40), [3, 17]), dtype="boolean"),
    ],
    ids=["list", "tuple", "array", "index", "positions", "int32", "mask", "mask list", "mask series", "nullable mask"],
)
def test_spots_in_every_form(query, joint_model, spots):
    everything = stc.tl.find_similar(query, joint_model, k=4)
    found = stc.tl.find_similar(query, joint_model, k=4, spots=spots)
    wanted = everything[everything["query"].isin([f"{FIRST}3", f"{FIRST}17"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        found.drop(columns="similarity"), wanted.drop(columns="similarity"), check_categorical=False
    )
    np.testing.assert_allclose(found["similarity"], wanted["similarity"], atol=1e-6)


def test_the_order_of_spots_is_kept(query, joint_model):
    found = stc.tl.find_similar(query, joint_model, k=2, spots=[f"{FIRST}9", f"{FIRST}2", f"{FIRST}9"])
    assert found["query"].tolist() == [f"{FIRST}{i}" for i in (9, 9, 2, 2, 9, 9)]
    one = stc.tl.find_similar(query, joint_model, k=2, spots=f"{FIRST}2")
    assert one["match"].tolist() == found["match"].tolist()[2:4]
    assert stc.tl.find_similar(query, joint_model, k=2, spots=2)["match"].tolist() == one["match"].tolist()


@pytest.mark.parametrize(
    ("spots", "error", "message"),
    [
        (["spot", f"{FIRST}1"], KeyError, rf"no spots \['spot'\]; some that exist: \['{FIRST}0'"),
        ([0, 40], IndexError, r"positions \[40\], but the table's rows are 0 to 39"),
        ([-1], IndexError, r"positions \[-1\]"),
        (np.ones(39, dtype=bool), ValueError, r"mask `spots` has shape \(39,\), but the table has 40 spots"),
        (np.zeros(40, dtype=bool), ValueError, "must select some spots"),
        ([], ValueError, "must select some spots"),
        ([[1, 2]], ValueError, r"in one dimension; found shape \(1, 2\)"),
        ([1.5], TypeError, "must be names of spots, a boolean mask or positions; found values of type float64"),
        (pd.Series([True, None] * 20, dtype="boolean"), TypeError, "found values of type object"),
    ],
)
def test_spots_that_are_not_there(unseen, joint_model, spots, error, message):
    before = snapshot(unseen)
    with pytest.raises(error, match=message):
        stc.tl.find_similar(unseen, joint_model, spots=spots)
    assert snapshot(unseen) == before


def test_names_that_are_not_unique(unseen, joint_model):
    unseen["table"].obs_names = ["one", "one", *unseen["table"].obs_names[2:]]
    with pytest.raises(ValueError, match="names of the spots are not unique: give `spots` as positions or a mask"):
        stc.tl.find_similar(unseen, joint_model, spots=["one"])
    assert len(stc.tl.find_similar(unseen, joint_model, spots=[0], k=3)) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 0}, "`k` must be a whole number of at least 1, found 0"),
        ({"by": "genes"}, "`by` must be one of 'image', 'gene', found 'genes'"),
    ],
)
def test_arguments_out_of_range(unseen, joint_model, given, message):
    with pytest.raises(ValueError, match=message):
        stc.tl.find_similar(unseen, joint_model, **given)


def test_rows_of_several_objects_are_refused(sdata, joint_model):
    both = [parts_of(sdata, "donor1"), parts_of(sdata, "donor3")]
    with pytest.raises(ValueError, match="`spots` are rows of one table, found 2 objects"):
        stc.tl.find_similar(both, joint_model, spots=[1])
    found = stc.tl.find_similar(both, joint_model, k=3)
    assert found["query"].nunique() == 80
    assert found["query_slide"].cat.categories.tolist() == ["donor1_a", "donor3_a"]
    alone = stc.tl.find_similar(both[1], joint_model, k=3)
    last = found.iloc[120:].reset_index(drop=True)
    assert last["match"].tolist() == alone["match"].tolist()
    np.testing.assert_array_equal(last["similarity"], alone["similarity"])
    assert len(stc.tl.find_similar([both[1]], joint_model, spots=[1], k=3)) == 3


def test_only_slides_with_a_query_are_embedded(sdata, joint_model, monkeypatch):
    sizes = []
    made = Predictor.unseen_spots

    def counted(self, features, **where):
        sizes.append(len(features))
        return made(self, features, **where)

    monkeypatch.setattr(Predictor, "unseen_spots", counted)
    found = stc.tl.find_similar(sdata, joint_model, spots=[85], k=2)
    assert sizes == [40]
    assert found["query"].tolist() == [f"{FIRST}5"] * 2


def test_more_than_there_are_is_all(query, joint_model):
    found = stc.tl.find_similar(query, joint_model, spots=[0], k=1000)
    assert len(found) == 80
    assert found["match"].is_unique


def test_an_image_is_enough_and_nothing_else_is_written(unseen, query, joint_model, toy):
    wanted = stc.tl.find_similar(query, joint_model, k=3)
    scanned = bare(unseen)
    before = snapshot(scanned)["table"]
    found = stc.tl.find_similar(scanned, joint_model, k=3)
    assert found["match"].tolist() == wanted["match"].tolist()
    after = snapshot(scanned)["table"]
    assert set(after["obsm"]) - set(before["obsm"]) == {"X_image"}
    assert set(after["ours"]) - set(before["ours"]) == {"image_features"}
    assert after["obs"] == before["obs"]
    adata = as_anndata(query)
    adata.uns["stcontrast"] = {"image_features": dict(toy["table"].uns["stcontrast"]["image_features"])}
    assert stc.tl.find_similar(adata, joint_model, k=3)["match"].tolist() == wanted["match"].tolist()


def test_a_saved_model_finds_the_same(query, joint_model, tmp_path):
    joint_model.save(tmp_path / "model")
    for by in ("image", "gene"):
        pd.testing.assert_frame_equal(
            stc.tl.find_similar(query, tmp_path / "model", by=by), stc.tl.find_similar(query, joint_model, by=by)
        )


def test_methods_that_keep_no_embedding_are_refused(toy, unseen):
    train = parts_of(copied(toy), "donor1", "donor2")
    models = {
        "ridge": stc.tl.fit(train, batch_key="donor", method="ridge"),
        "bleep": stc.tl.fit(train, batch_key="donor", method="bleep", options=CONTRASTIVE["bleep"]),
    }
    before = snapshot(unseen)
    for name, model in models.items():
        with pytest.raises(ValueError, match=rf"{name!r} keeps no joint embedding of its training.* \['stcontrast'\]"):
            stc.tl.find_similar(unseen, model)
        with pytest.raises(ValueError, match=f"{name!r} keeps no joint embedding"):
            model.method.search(np.zeros((1, 16), dtype=np.float32), k=1, by="image")
    assert snapshot(unseen) == before

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import stcontrast as stc
from stcontrast._keys import EMBEDDING, GENE_EMBEDDING, IMAGE_EMBEDDING
from stcontrast._records import read_record
from stcontrast.models import Predictor
from tests.methods.quick import CONTRASTIVE
from tests.tl.conftest import copied
from tests.tl.toy import as_anndata, bare, parts_of, snapshot, with_table

SLOTS = (IMAGE_EMBEDDING, GENE_EMBEDDING)


@pytest.fixture(scope="session")
def joint_model(joint):
    return joint[0]


def changed(sdata, *, rows=None, columns=None):
    """The same slides, the rows and genes of their table in another order or fewer."""
    table = sdata["table"]
    table = table[slice(None) if rows is None else rows, slice(None) if columns is None else columns].copy()
    return with_table(sdata, table, sorted(set(table.obs["region"])))


def without_counts(sdata, rows):
    """The counts of some spots taken away."""
    counts = sparse.lil_matrix(sdata["table"].X)
    counts[rows] = 0
    sdata["table"].X = sparse.csr_matrix(counts)
    return sdata


def test_slots_and_record(unseen, joint_model):
    before = snapshot(unseen)["table"]
    stc.tl.embed(unseen, joint_model, donor_key="donor")
    table = unseen["table"]
    for slot in ("X_stc_image", "X_stc_gene"):
        assert table.obsm[slot].shape == (40, 64)
        assert table.obsm[slot].dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(table.obsm[slot], axis=1), 1, atol=1e-5)
    assert table.uns["stcontrast"]["embedding"] == {
        "slots": ["X_stc_image", "X_stc_gene"], "model_id": joint_model.model_id, "method": "stcontrast",
        "provenance": {"donor3_a": "out-of-donor"}, "version": stc.__version__,
    }  # fmt: skip
    assert table.uns["stcontrast"]["model_id"] == joint_model.model_id
    after = snapshot(unseen)["table"]
    assert set(after["obsm"]) - set(before["obsm"]) == {"X_image", *SLOTS}
    assert {key: after[key] for key in ("obs", "var", "layers", "X")} == {
        key: before[key] for key in ("obs", "var", "layers", "X")
    }


def test_training_slides_get_what_fit_wrote(toy, joint):
    model, train = joint
    again = parts_of(copied(toy), "donor1", "donor2")
    stc.tl.embed(again, model)
    for slot in SLOTS:
        np.testing.assert_allclose(again["table"].obsm[slot], train["table"].obsm[slot], atol=5e-5)
    provenance = again["table"].uns["stcontrast"]["embedding"]["provenance"]
    assert provenance == {"donor1_a": "in-sample", "donor2_a": "in-sample"}


def test_the_same_as_computed_by_hand(unseen, joint_model):
    stc.tl.embed(unseen, joint_model)
    table, parts = unseen["table"], joint_model.method.parts
    xy = unseen.shapes["donor3_a"].loc[table.obs["spot_id"]].get_coordinates().to_numpy()
    spots = joint_model.unseen_spots(table.obsm["X_image"], slide=np.zeros(40, dtype=np.int64), xy=xy)
    image = parts.model.embed_image(parts.scaler.scaled(spots))
    np.testing.assert_allclose(table.obsm["X_stc_image"], image, atol=1e-5)
    full = table.X.toarray().astype(float)
    counts = full[:, table.var_names.get_indexer(joint_model.genes)]
    expression = np.log1p(1e4 * counts / full.sum(axis=1, keepdims=True))
    space = parts.space
    coordinates = ((expression - expression.mean(axis=0)) / space.scale) @ space.axes
    genes = parts.model.embed_genes((coordinates / parts.arrays["deviation"]).astype(np.float32))
    np.testing.assert_allclose(table.obsm["X_stc_gene"], genes, atol=1e-4)


def test_rows_and_genes_may_be_in_any_order(unseen, joint_model):
    order = np.random.default_rng(0).permutation(40)
    stc.tl.embed(unseen, joint_model)
    other = changed(unseen, rows=order, columns=np.random.default_rng(1).permutation(40))
    for slot in SLOTS:
        del other["table"].obsm[slot]
    stc.tl.embed(other, joint_model)
    for slot in SLOTS:
        np.testing.assert_allclose(other["table"].obsm[slot], unseen["table"].obsm[slot][order], atol=1e-5)


def test_a_slide_does_not_depend_on_others(sdata, joint_model):
    alone, listed = parts_of(sdata, "donor3"), parts_of(sdata, "donor3")
    stc.tl.embed(alone, joint_model)
    stc.tl.embed([parts_of(sdata, "donor1"), listed], joint_model)
    stc.tl.embed(sdata, joint_model)
    last = (sdata["table"].obs["donor"] == "donor3").to_numpy()
    for slot in SLOTS:
        np.testing.assert_array_equal(listed["table"].obsm[slot], alone["table"].obsm[slot])
        np.testing.assert_array_equal(sdata["table"].obsm[slot][last], alone["table"].obsm[slot])


def test_one_slide_is_in_memory_at_a_time(sdata, joint_model, monkeypatch):
    sizes = []
    made = Predictor.unseen_spots

    def counted(self, features, **where):
        sizes.append(len(features))
        return made(self, features, **where)

    monkeypatch.setattr(Predictor, "unseen_spots", counted)
    stc.tl.embed(sdata, joint_model)
    assert sizes == [40, 40, 40]


def test_spots_and_slides_without_counts(sdata, joint_model):
    alone = parts_of(sdata, "donor2")
    stc.tl.embed(alone, joint_model)
    gone = np.arange(80, 120)[::3]
    without_counts(sdata, np.r_[0:40, gone])
    stc.tl.embed(sdata, joint_model)
    image, genes = (sdata["table"].obsm[slot] for slot in SLOTS)
    assert np.isfinite(image).all()
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(genes).all(axis=1)), np.r_[0:40, gone])
    assert np.isnan(genes).any(axis=1).sum() == 40 + len(gone)
    np.testing.assert_array_equal(genes[40:80], alone["table"].obsm["X_stc_gene"])


@pytest.mark.parametrize("how", ["no genes", "no counts", "genes=False"])
def test_the_image_side_alone(unseen, joint_model, how):
    stc.tl.embed(unseen, joint_model)
    image = unseen["table"].obsm["X_stc_image"].copy()
    other = bare(unseen) if how == "no genes" else unseen
    if how == "no counts":
        without_counts(other, np.arange(40))
    if how == "genes=False":
        # neither the genes nor the counts are looked at
        other = changed(other, columns=np.arange(3))
        other["table"].X = other["table"].X * 0.5
    stc.tl.embed(other, joint_model, genes=how != "genes=False")
    table = other["table"]
    np.testing.assert_array_equal(table.obsm["X_stc_image"], image)
    # not even that of the last call, which would go with another image side
    assert "X_stc_gene" not in table.obsm
    assert table.uns["stcontrast"]["embedding"]["slots"] == ["X_stc_image"]


def test_counts_in_a_layer(unseen, joint_model):
    stc.tl.embed(unseen, joint_model)
    table = unseen["table"]
    genes = table.obsm["X_stc_gene"].copy()
    table.layers["raw"] = table.X.copy()
    table.X = np.log1p(table.X)
    with pytest.raises(ValueError, match="Raw counts are needed, but `X` holds the value"):
        stc.tl.embed(unseen, joint_model)
    with pytest.raises(KeyError, match=r"No layer 'counts' in the table; its layers are \['raw', 'truth'\]"):
        stc.tl.embed(unseen, joint_model, layer="counts")
    stc.tl.embed(unseen, joint_model, layer="raw")
    np.testing.assert_array_equal(table.obsm["X_stc_gene"], genes)


def test_anndata(unseen, toy, joint_model):
    adata = as_anndata(parts_of(copied(toy), "donor3"))
    adata.uns["stcontrast"] = {"image_features": dict(toy["table"].uns["stcontrast"]["image_features"])}
    stc.tl.embed([adata, unseen], joint_model)
    for slot in SLOTS:
        np.testing.assert_allclose(adata.obsm[slot], unseen["table"].obsm[slot], atol=1e-5)


def test_under_another_name(unseen, joint_model, tmp_path):
    joint_model.save(tmp_path / "model")
    stc.tl.embed(unseen, tmp_path / "model", key_added="X_mine")
    stc.tl.embed(unseen, joint_model)
    table = unseen["table"]
    for end in ("image", "gene"):
        np.testing.assert_array_equal(table.obsm[f"X_mine_{end}"], table.obsm[f"{EMBEDDING}_{end}"])
    ours = table.uns["stcontrast"]
    assert ours["embedding_X_mine"] == {**ours["embedding"], "slots": ["X_mine_image", "X_mine_gene"]}
    # a slot of its own is renewed, also after it has been on disk
    table.write_h5ad(tmp_path / "table.h5ad")
    table.uns["stcontrast"] = ad.read_h5ad(tmp_path / "table.h5ad").uns["stcontrast"]
    assert read_record(table, "embedding", "X_mine")["slots"] == ["X_mine_image", "X_mine_gene"]
    stc.tl.embed(unseen, str(tmp_path / "model"), key_added="X_mine")


@pytest.mark.parametrize(("key", "taken"), [("X_mine", "X_mine_image"), ("X_mine", "X_mine_gene"), ("X", "X_image")])
def test_a_name_that_is_taken_is_refused(unseen, joint_model, key, taken):
    if taken != "X_image":
        unseen["table"].obsm[taken] = np.zeros((40, 2))
    before = snapshot(unseen)
    told = "which is for image features" if taken == "X_image" else "holds something that stcontrast did not write"
    with pytest.raises(ValueError, match=rf"`obsm\['{taken}'\]`.*{told}"):
        stc.tl.embed(unseen, joint_model, key_added=key)
    assert snapshot(unseen) == before


def test_genes_that_are_absent_are_named(unseen, joint_model):
    other = changed(unseen, columns=np.arange(2, 40))
    absent = [gene for gene in joint_model.genes if gene not in set(other["table"].var_names)]
    assert absent
    before = snapshot(other)
    with pytest.raises(
        ValueError, match=rf"lacks {len(absent)} of the .* genes of the model: \['{absent[0]}'.*genes=False"
    ):
        stc.tl.embed([unseen, other], joint_model)
    assert snapshot(other) == before
    assert "X_stc_image" not in unseen["table"].obsm


def test_gene_names_that_are_not_unique_are_refused(unseen, joint_model):
    unseen["table"].var_names = ["GENE1", *unseen["table"].var_names[:-1]]
    with pytest.raises(ValueError, match="gene names that are not unique"):
        stc.tl.embed(unseen, joint_model)


def test_a_model_without_a_joint_embedding_is_refused(toy, unseen, joint_model):
    train = parts_of(copied(toy), "donor1", "donor2")
    ridge = stc.tl.fit(train, batch_key="donor", method="ridge")
    train["table"].X = sparse.csr_matrix(train["table"].shape, dtype=np.float32)
    alone = stc.tl.fit(train, batch_key="donor", label_key="subtype", method="bleep")
    before = snapshot(unseen)
    with pytest.raises(ValueError, match=r"'ridge' learns no joint embedding.*\['bleep', .*'stcontrast'"):
        stc.tl.embed(unseen, ridge)
    with pytest.raises(ValueError, match="trained without counts: it has no joint embedding"):
        stc.tl.embed(unseen, alone)
    with pytest.raises(TypeError, match="found int"):
        stc.tl.embed(unseen, 3)
    with pytest.raises(KeyError, match="no column 'mouse'"):
        stc.tl.embed(unseen, joint_model, donor_key="mouse")
    assert snapshot(unseen) == before


@pytest.mark.parametrize("method", sorted(CONTRASTIVE))
def test_published_methods(toy, method, tmp_path):
    train = parts_of(copied(toy), "donor1", "donor2")
    model = stc.tl.fit(train, batch_key="donor", method=method, options=CONTRASTIVE[method])
    wanted = {slot: train["table"].obsm[slot].copy() for slot in SLOTS}
    model.save(tmp_path / "model")
    stc.tl.embed(train, tmp_path / "model")
    for slot in SLOTS:
        np.testing.assert_allclose(train["table"].obsm[slot], wanted[slot], atol=1e-5)
    three = without_counts(copied(toy), np.arange(80, 120))
    stc.tl.embed(three, model)
    genes = three["table"].obsm["X_stc_gene"]
    np.testing.assert_allclose(genes[:80], wanted["X_stc_gene"], atol=1e-5)
    assert np.isnan(genes[80:]).all()
    np.testing.assert_allclose(np.linalg.norm(three["table"].obsm["X_stc_image"], axis=1), 1, atol=1e-5)


def test_the_gene_space_of_the_vae(toy, unseen, tmp_path):
    train = parts_of(copied(toy), "donor1", "donor2")
    options = {"gene_space": "vae", "n_coordinates": 4, "max_epochs": 5, "vae_epochs": 2}
    model = stc.tl.fit(train, batch_key="donor", options=options)
    wanted = train["table"].obsm["X_stc_gene"].copy()
    model.save(tmp_path / "model")
    stc.tl.embed([train, unseen], tmp_path / "model")
    np.testing.assert_allclose(train["table"].obsm["X_stc_gene"], wanted, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(unseen["table"].obsm["X_stc_gene"], axis=1), 1, atol=1e-5)
    # that is what `embed_genes` is for
    assert "X_stc_vae" not in unseen["table"].obsm

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import stcontrast as stc
from stcontrast.models import BatchAgnosticVAE
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, bare, parts_of, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spatialdata import SpatialData

    from stcontrast.fitted import Predictor

VAE = {"gene_space": "vae", "n_coordinates": 5, "max_epochs": 2, "vae_epochs": 2}
QUICK: dict[str, Any] = {"n_latent": 5, "max_epochs": 5}


@pytest.fixture(autouse=True)
def _no_progress_bar() -> Iterator[None]:
    with stc.settings.override(progress=False):
        yield


def learn(*args: Any, **kwargs: Any) -> BatchAgnosticVAE:
    """A model that was trained here."""
    model = stc.tl.embed_genes(*args, **kwargs)
    assert isinstance(model, BatchAgnosticVAE)
    return model


@pytest.fixture(scope="module")
def trained(toy: SpatialData) -> tuple[BatchAgnosticVAE, SpatialData]:
    """Donors 1 and 2, guided by their subtypes; not to be changed."""
    train = parts_of(copied(toy), "donor1", "donor2")
    model = learn(train, batch_key="donor", label_key=LABELS, n_latent=5, max_epochs=40)
    return model, train


def plain(table: AnnData, **obs: Any) -> AnnData:
    """Counts and names alone: no positions, no pictures."""
    return AnnData(table.X.copy(), obs=pd.DataFrame(obs, index=table.obs_names), var=table.var[[]].copy())


def latent_of(data: SpatialData | AnnData, key: str = "X_stc_vae") -> np.ndarray:
    table = data if isinstance(data, AnnData) else data["table"]
    latent = table.obsm[key]
    assert latent.dtype == np.float32
    return latent


def test_what_is_written(trained: tuple[BatchAgnosticVAE, SpatialData]):
    model, sdata = trained
    assert latent_of(sdata).shape == (80, 5)
    # the model has the spots in an order of its own
    rows = model.adata.obs_names.astype(int)
    np.testing.assert_allclose(latent_of(sdata)[rows], model.get_latent_representation(), atol=1e-5)
    record = sdata["table"].uns["stcontrast"]["embed_genes"]
    assert sorted(record["genes"]) == sorted(sdata["table"].var_names)
    assert record["genes"] == list(model.genes)
    assert record["classes"] == ["fat", "glands", "stroma", "tumour"]
    expected = {
        "batch_key": "donor", "label_key": LABELS, "layer": "X", "seed": 0, "n_latent": 5, "key_added": "X_stc_vae",
        "trained_on_these_spots": True, "class_weight": 50.0, "version": stc.__version__,
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected


def test_nothing_else_of_the_user_s_changes(sdata: SpatialData):
    table, before = sdata["table"], snapshot(sdata)
    counts = table.X.copy()
    stc.tl.embed_genes(sdata, batch_key="donor", label_key=LABELS, **QUICK)
    after = snapshot(sdata)
    assert after["table"].pop("obsm") == sorted([*before["table"].pop("obsm"), "X_stc_vae"])
    assert after["table"].pop("ours") == sorted([*before["table"].pop("ours"), "embed_genes"])
    assert after == before
    assert sdata["table"] is table
    assert (counts != table.X).nnz == 0
    assert not [name for name in [*table.obs, *table.uns] if "scvi" in name]


def test_an_unseen_donor_alone_beside_others_and_in_another_order(
    trained: tuple[BatchAgnosticVAE, SpatialData], toy: SpatialData
):
    model, train = trained
    alone = plain(parts_of(copied(toy), "donor3")["table"])
    assert stc.tl.embed_genes(alone, model=model) is model
    beside, everyone = alone[::-1, ::-1].copy(), copied(toy)
    del beside.obsm["X_stc_vae"]
    stc.tl.embed_genes([everyone, beside], model=model)
    np.testing.assert_allclose(latent_of(beside)[::-1], latent_of(alone), atol=1e-5)
    of_all = pd.DataFrame(latent_of(everyone), index=everyone["table"].obs_names)
    np.testing.assert_allclose(of_all.loc[alone.obs_names], latent_of(alone), atol=1e-5)
    np.testing.assert_allclose(of_all.loc[train["table"].obs_names], latent_of(train), atol=1e-5)
    assert list(alone.obs) == []
    assert alone.uns["stcontrast"]["embed_genes"]["trained_on_these_spots"] is False
    assert "batch_key" not in alone.uns["stcontrast"]["embed_genes"]


def test_guided_it_names_the_subtypes_of_an_unseen_donor(
    trained: tuple[BatchAgnosticVAE, SpatialData], toy: SpatialData
):
    model, _ = trained
    unseen = parts_of(copied(toy), "donor3")["table"]
    unseen = unseen[unseen.obs[LABELS].notna()].copy()
    found = model.predict(plain(unseen, region="a slide"))
    assert (found == unseen.obs[LABELS].to_numpy().astype(str)).mean() > 0.6
    # and the latent tells them apart by itself
    from sklearn.neighbors import KNeighborsClassifier

    stc.tl.embed_genes(unseen, model=model)
    table = trained[1]["table"]
    table = table[table.obs[LABELS].notna()]
    nearest = KNeighborsClassifier(5).fit(latent_of(table), table.obs[LABELS].astype(str))
    assert nearest.score(latent_of(unseen), unseen.obs[LABELS].astype(str)) > 0.6


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_a_model_on_disk(
    trained: tuple[BatchAgnosticVAE, SpatialData], sdata: SpatialData, tmp_path: Path, as_type: Any
):
    trained[0].save(tmp_path / "vae")
    loaded = stc.tl.embed_genes(sdata, model=as_type(tmp_path / "vae"))
    assert isinstance(loaded, BatchAgnosticVAE)
    np.testing.assert_allclose(latent_of(sdata), trained[0].get_latent_representation(sdata["table"]), atol=1e-5)


def test_what_fit_returned_encodes_as_fit_did(sdata: SpatialData, toy: SpatialData, tmp_path: Path):
    train = parts_of(copied(toy), "donor1", "donor2")
    model = stc.tl.fit(train, batch_key="donor", options=VAE)
    again = copied(train)
    assert stc.tl.embed_genes(again, model=model, key_added="again") is model
    np.testing.assert_allclose(latent_of(again, "again"), latent_of(train), atol=1e-5)
    assert again["table"].uns["stcontrast"]["embed_genes_again"]["genes"] == model.genes
    model.save(tmp_path / "model")
    loaded = stc.tl.embed_genes(sdata, model=tmp_path / "model")
    assert not isinstance(loaded, BatchAgnosticVAE)
    assert loaded.model_id == model.model_id
    of_all = pd.DataFrame(latent_of(sdata), index=sdata["table"].obs_names)
    np.testing.assert_allclose(of_all.loc[train["table"].obs_names], latent_of(train), atol=1e-5)
    assert np.isfinite(of_all.to_numpy()).all()


def test_a_guided_method_brings_the_names_of_its_classes(sdata: SpatialData):
    options = {"guided": True, "vae_epochs": 2, "max_epochs": 2}
    model = stc.tl.fit(sdata, batch_key="donor", label_key=LABELS, method="tpirbae", options=options)
    stc.tl.embed_genes(sdata, model=model)
    assert sdata["table"].uns["stcontrast"]["embed_genes"]["classes"] == model.classes


def test_fitting_writes_what_made_the_latent_that_it_replaces(sdata: SpatialData):
    stc.tl.embed_genes(sdata, batch_key="donor", **QUICK)
    assert "model_id" not in sdata["table"].uns["stcontrast"]["embed_genes"]
    model = stc.tl.fit(sdata, batch_key="donor", options=VAE)
    record = sdata["table"].uns["stcontrast"]["embed_genes"]
    assert record["model_id"] == model.model_id
    assert record["n_latent"] == latent_of(sdata).shape[1] == 5
    # the same latent, made by the model from the counts alone
    made_by_fit = latent_of(sdata).copy()
    stc.tl.embed_genes(sdata, model=model)
    np.testing.assert_allclose(latent_of(sdata), made_by_fit, atol=1e-5)


def test_spots_without_counts_and_tables_without_genes(sdata: SpatialData, toy: SpatialData):
    one, two = parts_of(sdata, "donor1"), bare(parts_of(copied(toy), "donor2"))
    counts = one["table"].X.toarray()
    counts[:7] = 0
    one["table"].X = sparse.csr_matrix(counts)
    model = learn([one, two], batch_key="donor", **QUICK)
    for _ in range(2):
        assert np.isnan(latent_of(one)[:7]).all()
        assert np.isfinite(latent_of(one)[7:]).all()
        assert latent_of(two).shape == (40, 5)
        assert np.isnan(latent_of(two)).all()
        # and once more with the model alone
        stc.tl.embed_genes([one, two], model=model)
    assert model.adata.n_obs == 33


def test_anndata_without_positions_in_lists_with_other_genes(toy: SpatialData):
    table = toy["table"]
    one, two = (plain(table[(table.obs["donor"] == name).to_numpy()], who=name) for name in ("donor1", "donor2"))
    two = two[:, ::-1][:, 5:].copy()
    model = learn([one, two], batch_key="who", **QUICK)
    assert set(model.genes) == set(two.var_names)
    assert model.batches == ["donor1", "donor2"]
    for adata in (one, two):
        of_one_slide = plain(adata, slide="one")
        np.testing.assert_allclose(latent_of(adata), model.get_latent_representation(of_one_slide), atol=1e-5)
    with pytest.raises(ValueError, match=r"Slides share a name: \['slide'\].*`batch_key`"):
        stc.tl.embed_genes([one, two], **QUICK)
    for adata, name in ((one, "s1"), (two, "s2")):
        adata.obs["section"] = name
    assert learn([one, two], library_key="section", **QUICK).batches == ["s1", "s2"]


def test_within_slides_a_donor_wide_shift_is_gone(sdata: SpatialData):
    """Every count of a slide tripled for some genes: with the slide as the reference, the latent hardly moves."""
    shifted = copied(sdata)
    table = shifted["table"]
    rows = (table.obs["donor"] == "donor2").to_numpy()
    factor = np.where(np.arange(table.n_vars) % 4 == 0, 3, 1)
    counts = table.X.toarray()
    counts[rows] *= factor
    table.X = sparse.csr_matrix(counts)
    moved = {}
    for within_slide in (True, False):
        model = learn(sdata, batch_key="donor", within_slide=within_slide, **QUICK)
        before = latent_of(sdata)[rows]
        stc.tl.embed_genes(shifted, model=model)
        apart = np.linalg.norm(before - before.mean(0), axis=1).mean()
        moved[within_slide] = np.linalg.norm((latent_of(shifted)[rows] - before).mean(0)) / apart
    assert moved[True] < 0.2 * moved[False]


@pytest.mark.parametrize("batch_key", ["region", "donor", None])
def test_the_model_finds_the_slides_of_the_same_tables_again(sdata: SpatialData, batch_key: str | None):
    model = learn(sdata, batch_key=batch_key, **QUICK)
    assert model.slide_key == "region"
    np.testing.assert_allclose(model.get_latent_representation(sdata["table"]), latent_of(sdata), atol=1e-5)


def test_slides_of_two_objects_stay_apart_where_their_batches_have_one_name(toy: SpatialData):
    table = toy["table"]
    one, two = (plain(table[(table.obs["donor"] == name).to_numpy()], slide="s") for name in ("donor1", "donor2"))
    model = learn([one, two], batch_key="slide", **QUICK)
    assert model.slide_key == "slide_"
    assert model.adata.obs["slide_"].nunique() == 2


def test_every_slide_is_a_batch_by_default(sdata: SpatialData):
    model = learn(sdata, **QUICK)
    assert model.batches == sorted(set(sdata["table"].obs["region"].astype(str)))


def test_counts_in_a_layer(sdata: SpatialData):
    table = sdata["table"]
    stc.tl.embed_genes(sdata, batch_key="donor", **QUICK)
    expected = latent_of(sdata)
    table.layers["counts"], table.X = table.X, table.X.log1p()
    before = snapshot(sdata)
    with pytest.raises(ValueError, match="Raw counts are needed, but `X` holds"):
        stc.tl.embed_genes(sdata, batch_key="donor", **QUICK)
    with pytest.raises(KeyError, match=r"No layer 'umi' in the table; its layers are \['counts', 'truth'\]"):
        stc.tl.embed_genes(sdata, batch_key="donor", layer="umi", **QUICK)
    assert snapshot(sdata) == before
    model = learn(sdata, batch_key="donor", layer="counts", **QUICK)
    np.testing.assert_allclose(latent_of(sdata), expected, atol=1e-5)
    assert table.uns["stcontrast"]["embed_genes"]["layer"] == "counts"
    stc.tl.embed_genes(sdata, model=model, layer="counts")
    np.testing.assert_allclose(latent_of(sdata), expected, atol=1e-5)


def test_the_layer_of_a_model_of_one_s_own_is_the_default(sdata: SpatialData):
    table = sdata["table"].copy()
    table.layers["counts"] = table.X.copy()
    BatchAgnosticVAE.setup_anndata(table, layer="counts", batch_key="donor")
    model = BatchAgnosticVAE(table, n_latent=3, n_hidden=8)
    with pytest.raises(ValueError, match="The model has not been trained"):
        stc.tl.embed_genes(sdata, model=model)
    model.train(max_epochs=1)
    with pytest.raises(KeyError, match="No layer 'counts'"):
        stc.tl.embed_genes(sdata, model=model)
    stc.tl.embed_genes(sdata, model=model, layer="X")
    np.testing.assert_allclose(latent_of(sdata), model.get_latent_representation(), atol=1e-5)


def test_genes_chosen_and_named(sdata: SpatialData):
    few = learn(sdata, batch_key="donor", n_genes=10, **QUICK)
    assert len(few.genes) == 10
    more = learn(sdata, batch_key="donor", n_genes=20, **QUICK)
    assert list(more.genes[:10]) == list(few.genes)
    named = learn(sdata, batch_key="donor", genes=[few.genes[3], few.genes[1], few.genes[3]], **QUICK)
    assert list(named.genes) == [few.genes[3], few.genes[1]]
    both = learn(sdata, batch_key="donor", n_genes=10, genes=[more.genes[15], few.genes[1]], **QUICK)
    assert list(both.genes) == [*few.genes, more.genes[15]]


def test_missing_genes(sdata: SpatialData):
    model = learn(sdata, batch_key="donor", **QUICK)
    less = plain(sdata["table"], region="one")[:, 4:].copy()
    with pytest.raises(ValueError, match="4 of the model's 40 genes are missing"):
        stc.tl.embed_genes(less, model=model)
    assert not less.obsm
    stc.tl.embed_genes(less, model=model, fill_missing=True)
    np.testing.assert_allclose(latent_of(less), model.get_latent_representation(less, fill_missing=True), atol=1e-5)


def test_seeds_and_the_session(toy: SpatialData):
    latents = {}
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for name, seed in (("first", 1), ("second", 1), ("other", 2)):
        adata = plain(toy["table"], donor=toy["table"].obs["donor"].astype(str))
        model = learn(adata, batch_key="donor", seed=seed, **QUICK)
        stc.tl.embed_genes(adata, model=model)
        latents[name] = latent_of(adata)
    np.testing.assert_array_equal(latents["first"], latents["second"])
    assert np.abs(latents["first"] - latents["other"]).max() > 1e-3
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_groups_to_validate_on(sdata: SpatialData):
    model = learn(sdata, batch_key="donor", validation_key="donor", **QUICK)
    held_out = set(model.adata.obs["donor"].iloc[model.validation_indices])
    assert len(held_out) == 1
    assert len(model.validation_indices) == 40
    assert len(model.history["elbo_validation"]) == 5
    # by default nobody is
    assert len(learn(sdata, batch_key="donor", **QUICK).validation_indices) == 0


def test_labels_that_some_spots_lack_and_a_class_named_as_ours(sdata: SpatialData):
    label = sdata["table"].obs[LABELS].astype(object)
    label[label == "fat"] = "unlabelled"
    label.iloc[::2] = None
    sdata["table"].obs["partly"], n_missing = label, int(label.isna().sum())
    model = learn(sdata, batch_key="donor", label_key="partly", **QUICK)
    assert model.classes == ["glands", "stroma", "tumour", "unlabelled"]
    assert sdata["table"].obs["partly"].isna().sum() == n_missing
    assert set(model.predict()) <= set(model.classes)


def test_one_s_own_slots_stay_and_ours_are_replaced(sdata: SpatialData):
    table = sdata["table"]
    table.obsm["X_pca"] = np.zeros((table.n_obs, 2))
    before = snapshot(sdata)
    with pytest.raises(ValueError, match=r"`obsm\['X_pca'\]` holds something that stcontrast did not write"):
        stc.tl.embed_genes(sdata, batch_key="donor", key_added="X_pca", **QUICK)
    assert snapshot(sdata) == before
    model = learn(sdata, batch_key="donor", key_added="mine", **QUICK)
    assert "X_stc_vae" not in table.obsm
    first = latent_of(sdata, "mine").copy()
    latent_of(sdata, "mine")[:] = 0
    stc.tl.embed_genes(sdata, model=model, key_added="mine")
    np.testing.assert_allclose(latent_of(sdata, "mine"), first, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_key": "patient"}, KeyError, "`batch_key`: no column 'patient' in `obs`; its columns are"),
        ({"label_key": "kind"}, KeyError, "`label_key`: no column 'kind'"),
        ({"validation_key": "section"}, KeyError, "`validation_key`: no column 'section'"),
        (
            {"batch_key": "donor", "label_key": "donor"},
            ValueError,
            "cannot be independent of the column that guides it",
        ),
        ({"label_key": "blank"}, ValueError, "column 'blank' is empty in all spots with counts"),
        ({"batch_key": "blank"}, ValueError, "column 'blank' of `obs` is empty for 120 spots"),
        (
            {"genes": ["GENE_X"]},
            KeyError,
            r"1 of the named genes are absent from the counts: \['GENE_X'\]\. Close matches: \['GENE",
        ),
        ({"genes": []}, ValueError, "`genes` must be a list of names"),
        ({"n_genes": 0}, ValueError, "`n_genes` must be a whole number of at least 1, found 0"),
        ({"n_latent": 0}, ValueError, "`n_latent` must be a whole number of at least 1"),
        ({"max_epochs": 0}, ValueError, "`max_epochs` must be a whole number of at least 1"),
        (
            {"label_key": LABELS, "class_weight": -1.0},
            ValueError,
            "`class_weight` must be a finite number of at least 0",
        ),
        ({"table_key": "cells"}, KeyError, "No table 'cells'"),
        ({"model": "nowhere"}, FileNotFoundError, "No model in 'nowhere'"),
        ({"model": 3}, TypeError, "`model` must be a BatchAgnosticVAE, .* found int"),
        (
            {"model": "x", "batch_key": "donor", "n_genes": 10, "genes": ["GENE1"]},
            ValueError,
            r"\['batch_key', 'n_genes', 'genes'\] are used only for training",
        ),
    ],
)
def test_errors_say_what_to_do_and_change_nothing(sdata: SpatialData, arguments: Any, error: Any, message: str):
    sdata["table"].obs["blank"] = pd.Series(None, index=sdata["table"].obs_names, dtype=object)
    before = snapshot(sdata)
    with pytest.raises(error, match=message):
        stc.tl.embed_genes(sdata, **arguments)
    assert snapshot(sdata) == before


def test_objects_that_are_not_to_be_had(sdata: SpatialData):
    with pytest.raises(ValueError, match="an empty list"):
        stc.tl.embed_genes([])
    with pytest.raises(TypeError, match="found str"):
        stc.tl.embed_genes(["path"])
    with pytest.raises(ValueError, match="An object is given twice"):
        stc.tl.embed_genes([sdata, sdata])
    with pytest.raises(ValueError, match="no spot has any counts"):
        stc.tl.embed_genes(bare(sdata), batch_key="donor")
    rare = plain(sdata["table"])
    rare.X = sparse.csr_matrix(np.eye(*rare.shape, dtype=np.float32))
    with pytest.raises(ValueError, match="No gene is seen in 10 % of the spots"):
        stc.tl.embed_genes(rare)
    assert not rare.obsm


def test_models_without_a_gene_latent(fitted: tuple[Predictor, SpatialData], sdata: SpatialData, toy: SpatialData):
    mean = stc.tl.fit(copied(sdata), batch_key="donor", method="mean")
    with pytest.raises(ValueError, match="'mean' has no gene latent"):
        stc.tl.embed_genes(sdata, model=mean)
    with pytest.raises(ValueError, match=r"'stcontrast' has no gene latent.*gene_space"):
        stc.tl.embed_genes(sdata, model=fitted[0])
    without_counts = stc.tl.fit(bare(toy), batch_key="donor", label_key=LABELS, options=VAE)
    with pytest.raises(ValueError, match="'stcontrast' has no gene latent"):
        stc.tl.embed_genes(sdata, model=without_counts)


# scanpy uses functions that its own next release deprecates
@pytest.mark.filterwarnings("ignore::FutureWarning:scanpy")
def test_scanpy_goes_on_from_there(trained: tuple[BatchAgnosticVAE, SpatialData]):
    import scanpy as sc

    table = trained[1]["table"].copy()
    # (umap's weights would be compiled first)
    sc.pp.neighbors(table, use_rep="X_stc_vae", n_neighbors=10, method="gauss")
    sc.tl.leiden(table, flavor="igraph", n_iterations=2, random_state=0)
    assert table.obs["leiden"].nunique() > 1
    # clusters are subtypes more than donors
    purity = pd.crosstab(table.obs["leiden"], table.obs[LABELS]).max(axis=1).sum() / table.n_obs
    assert purity > 0.7


def test_written_to_zarr_and_read_again(trained: tuple[BatchAgnosticVAE, SpatialData], tmp_path: Path):
    import spatialdata

    model, sdata = trained
    sdata.write(tmp_path / "store.zarr")
    again = spatialdata.read_zarr(tmp_path / "store.zarr")
    np.testing.assert_array_equal(latent_of(again), latent_of(sdata))
    before, after = (x["table"].uns["stcontrast"]["embed_genes"] for x in (sdata, again))
    assert after.keys() == before.keys()
    assert list(after["genes"]) == before["genes"]
    assert list(after["classes"]) == before["classes"]
    # what was read is known as ours, and can be replaced
    stc.tl.embed_genes(again, model=model)
    np.testing.assert_allclose(latent_of(again), latent_of(sdata), atol=1e-5)

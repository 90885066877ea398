from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t

import stcontrast as stc
from tests.tl.conftest import copied
from tests.tl.toy import as_anndata, bare, parts_of

GENES = [f"G{i}" for i in range(6)]


def prediction(
    spots: np.ndarray | None = None, slides: np.ndarray | None = None, *, n_held_out: int = 4, n: int = 8, genes=GENES
) -> AnnData:
    """A prediction by hand, of two slides; errors as factors and a rest."""
    rng = np.random.default_rng(0)
    X = rng.uniform(0, 3, size=(n, len(genes))).astype(np.float32)
    obs = pd.DataFrame(
        {"library_id": ["one"] * (n // 2) + ["two"] * (n - n // 2), "stc_in_distribution": True},
        index=[f"s{i}" for i in range(n)],
    )
    table = AnnData(X, obs=obs, var=pd.DataFrame({"stc_held_out_r": 0.5}, index=list(genes)))
    table.layers["lower"], table.layers["upper"] = X - 1, X + 1
    table.uns["stcontrast"] = {"prediction": {"interval": 0.9, "n_held_out": n_held_out}}
    for name, values in (("stc_spot_errors", spots), ("stc_slide_errors", slides)):
        if values is not None:
            table.varm[name] = values.astype(np.float32)
    return table


def errors_of(factors: np.ndarray, rest: np.ndarray) -> np.ndarray:
    return np.column_stack([factors, rest])


RNG = np.random.default_rng(5)
SPOTS, SLIDES = (errors_of(RNG.normal(size=(6, 2)), RNG.uniform(0.1, 1, 6)) for _ in range(2))


def sigma(kept: np.ndarray) -> np.ndarray:
    return kept[:, :-1] @ kept[:, :-1].T + np.diag(kept[:, -1] ** 2)


@pytest.mark.parametrize("genes", [["G0"], ["G1", "G4"], GENES], ids=["one", "two", "all"])
@pytest.mark.parametrize("level", [0.9, 0.5])
def test_closed_form(genes, level):
    pred = prediction(SPOTS, SLIDES)
    pred.uns["stcontrast"]["prediction"]["interval"] = level
    slides = stc.tl.score_genes(pred, {"set": genes})
    w = np.isin(GENES, genes) / len(genes)
    half = norm.ppf((1 + level) / 2) * np.sqrt(w @ sigma(SPOTS) @ w)
    score = pred.X @ w
    np.testing.assert_allclose(pred.obs["score_set"], score, rtol=1e-5)
    np.testing.assert_allclose(pred.obs["score_set_upper"], score + half, rtol=1e-5)
    np.testing.assert_allclose(pred.obs["score_set_lower"], np.maximum(score - half, 0), rtol=1e-5, atol=1e-7)
    half = t.ppf((1 + level) / 2, 4) * np.sqrt(w @ sigma(SLIDES) @ w)
    means = np.array([score[:4].mean(), score[4:].mean()])
    assert list(slides["slide"]) == ["one", "two"]
    assert list(slides["n_spots"]) == [4, 4]
    assert list(slides["n_genes"]) == [len(genes)] * 2
    np.testing.assert_allclose(slides["score"], means, rtol=1e-5)
    np.testing.assert_allclose(slides["upper"], means + half, rtol=1e-5)
    np.testing.assert_allclose(slides["lower"], np.maximum(means - half, 0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (errors_of(np.ones((6, 1)), np.zeros(6)), 1.0),
        (errors_of(np.zeros((6, 1)), np.ones(6)), 1 / np.sqrt(6)),
        (errors_of(np.array([[1.0], [-1]] * 3), np.zeros(6)), 0.0),
    ],
    ids=["go together", "independent", "cancel"],
)
def test_errors_that_go_together_do_not_average_out(errors, expected):
    pred = prediction(errors, errors)
    stc.tl.score_genes(pred, {"set": GENES})
    half = pred.obs["score_set_upper"] - pred.obs["score_set"]
    np.testing.assert_allclose(half, norm.ppf(0.95) * expected, atol=1e-6)


@given(order=st.permutations(range(6)), genes=st.permutations(GENES[1:5]))
def test_the_order_of_genes_does_not_matter(order, genes):
    pred = prediction(SPOTS, SLIDES)
    expected = stc.tl.score_genes(pred, {"set": GENES[1:5]})
    other = pred[:, list(order)].copy()
    found = stc.tl.score_genes(other, {"set": [*genes, genes[0]]})
    pd.testing.assert_frame_equal(found, expected, rtol=1e-6)
    pd.testing.assert_frame_equal(other.obs, pred.obs, rtol=1e-6)


@pytest.fixture(scope="module")
def predicted(model, toy):
    sdata = bare(parts_of(copied(toy), "donor3"))
    stc.tl.predict_expression(sdata, model, donor_key="donor")
    return sdata


def test_a_predicted_slide(predicted, model, tmp_path):
    genes = model.genes[:4]
    (tmp_path / "s.gmt").write_text("A\tna\t" + "\t".join(genes))
    slides = stc.tl.score_genes(predicted, tmp_path / "s.gmt", key_added="sig")
    table = predicted["stc_pred"]
    assert slides.columns.tolist() == ["slide", "gene_set", "score", "lower", "upper", "n_spots", "n_genes"]
    assert slides["slide"].tolist() == ["donor3_a"]
    assert np.isfinite(slides[["lower", "score", "upper"]].to_numpy()).all()
    np.testing.assert_allclose(table.obs["sig_A"], np.asarray(table.X[:, :4]).mean(axis=1), rtol=1e-5)
    one = stc.tl.score_genes(predicted, {g: [g] for g in genes})
    # the normal quantile in place of the conformal one
    half = (one["upper"] - one["score"]).to_numpy()
    assert (half > 0).all()
    ratio = (table.obs[f"score_{genes[0]}_upper"] - table.obs[f"score_{genes[0]}"]) / model.calibration.half_width[0]
    assert 0.7 < ratio.iloc[0] < 1.4


def test_a_saved_model_says_the_same(predicted, model, tmp_path):
    model.save(tmp_path / "m")
    again = stc.models.load(tmp_path / "m")
    np.testing.assert_array_equal(again.calibration.spot_errors, model.calibration.spot_errors)
    state = {k: v for k, v in model.calibration.state().items() if not k.endswith("_errors")}
    again.calibration.restore(state)
    assert again.calibration.spot_errors.shape == (0, 0)


def test_written_and_read(predicted, tmp_path):
    import spatialdata

    stc.tl.score_genes(predicted, {"A": ["GENE1", "GENE2"]})
    predicted.write(tmp_path / "s.zarr")
    again = spatialdata.read_zarr(tmp_path / "s.zarr")["stc_pred"]
    found = stc.tl.score_genes(again, {"A": ["GENE1", "GENE2"]})
    pd.testing.assert_frame_equal(found, stc.tl.score_genes(predicted, {"A": ["GENE1", "GENE2"]}))


def test_a_prediction_on_disk(model, toy, tmp_path):
    sdata = bare(parts_of(copied(toy), "donor3"))
    stc.tl.predict_expression(sdata, model, store=tmp_path / "p.zarr")
    plain = bare(parts_of(copied(toy), "donor3"))
    stc.tl.predict_expression(plain, model)
    found = stc.tl.score_genes(sdata, {"A": model.genes[:5]})
    pd.testing.assert_frame_equal(found, stc.tl.score_genes(plain, {"A": model.genes[:5]}), rtol=1e-4)


def test_many_sets_and_many_objects():
    two = prediction(SPOTS, SLIDES)
    two.obs["library_id"] = two.obs["library_id"].map({"one": "three", "two": "four"})
    objects = [prediction(SPOTS, SLIDES), two]
    sets = {f"S{i}": GENES[i % 5 : i % 5 + 2] for i in range(60)}
    slides = stc.tl.score_genes(objects, sets)
    assert len(slides) == 4 * 60
    assert slides["slide"].unique().tolist() == ["one", "two", "three", "four"]
    with pytest.raises(ValueError, match="Several objects have a slide 'one'"):
        stc.tl.score_genes([objects[0], objects[0]], sets)


def one_warning(caplog) -> str:
    (record,) = [item for item in caplog.records if item.levelno >= logging.WARNING]
    return record.getMessage()


@pytest.mark.parametrize(
    ("change", "message", "spots", "slides"),
    [
        (lambda pred: pred.varm.clear(), "does not say how the errors of genes go together", False, False),
        (lambda pred: pred.layers.pop("upper"), "does not say how the errors", False, False),
        (lambda pred: pred.layers["upper"].fill(np.nan), "the prediction has no interval there", False, False),
        (lambda pred: pred.varm.pop("stc_slide_errors"), "only parts of a slide were held out", True, False),
    ],
    ids=["older prediction", "no layers", "another donor", "one slide"],
)
def test_without_what_an_interval_needs(caplog, change, message, spots, slides):
    pred = prediction(SPOTS, SLIDES)
    change(pred)
    found = stc.tl.score_genes(pred, {"A": GENES[:2], "B": GENES[2:]})
    assert message in one_warning(caplog)
    assert np.isfinite(found["score"]).all()
    assert np.isfinite(found[["lower", "upper"]]).to_numpy().all() == slides
    assert np.isfinite(pred.obs["score_A_upper"]).all() == np.isfinite(pred.obs["score_A_lower"]).all() == spots


def test_slides_without_an_interval_are_named(caplog):
    pred = prediction(SPOTS, SLIDES)
    pred.layers["upper"][:4] = pred.layers["lower"][:4] = np.nan
    found = stc.tl.score_genes(pred, {"A": GENES}).set_index("slide")
    assert "['one']" in one_warning(caplog)
    assert np.isnan(found.loc["one", "upper"])
    assert np.isfinite(found.loc["two", "upper"])
    assert np.isnan(pred.obs["score_A_lower"].iloc[:4]).all()
    assert np.isfinite(pred.obs["score_A_lower"].iloc[4:]).all()


def test_absent_genes_are_warned_of_once(caplog):
    pred = prediction(SPOTS, SLIDES)
    found = stc.tl.score_genes(pred, {"A": [*GENES[:2], "X"], "B": GENES, "C": ["G3", "Y", "Z"]})
    assert "2 of 3 gene sets are predicted" in one_warning(caplog)
    assert "'A' 2 of 3, 'C' 1 of 3" in one_warning(caplog)
    np.testing.assert_allclose(pred.obs["score_A"], pred.X[:, :2].mean(axis=1), rtol=1e-6)
    assert found["n_genes"].tolist() == [2, 2, 6, 6, 1, 1]


@pytest.mark.parametrize(
    ("sets", "arguments", "message"),
    [
        ({"A": ["G1", *"wxyz"]}, {}, r"'A' 1 of 5; `min_share` is 0.25"),
        ({"A": ["G1", "X"]}, {"min_share": 0.6}, "'A' 1 of 2"),
        ({"A": ["X"]}, {"min_share": 0}, "'A' 0 of 1"),
        ({"A": ["g1", "g2", "g3"]}, {}, "differ in upper and lower case"),
        ({"A": ["ENSG00000139618", "ENSG00000012048"]}, {}, "Ensembl ids"),
        ({"A": ["G1"], "A_lower": ["G1"]}, {}, r"two sets would have the columns \['score_A_lower'\]"),
        (["G1"], {}, "`gene_sets` must be a mapping"),
        ({"A": ["G1"]}, {"min_share": 2}, "`min_share` must be"),
        ({"A": ["G1"]}, {"key_added": "a/b"}, "`key_added` must be"),
    ],
    ids=["few", "share", "none", "case", "ids", "columns", "a list", "min_share", "slash"],
)
def test_errors_change_nothing(sets, arguments, message):
    pred = prediction(SPOTS, SLIDES)
    before = pred.obs.copy()
    with pytest.raises(ValueError, match=message):
        stc.tl.score_genes(pred, {"first": GENES, **sets} if isinstance(sets, dict) else sets, **arguments)
    pd.testing.assert_frame_equal(pred.obs, before)


def test_a_column_of_the_user_is_left_alone():
    pred = prediction(SPOTS, SLIDES)
    pred.obs["score_B"] = 1.0
    with pytest.raises(ValueError, match=r"`obs\['score_B'\]` holds something that stcontrast did not write"):
        stc.tl.score_genes(pred, {"A": GENES, "B": GENES})
    assert "score_A" not in pred.obs
    stc.tl.score_genes(pred, {"A": GENES[:1]})
    stc.tl.score_genes(pred, {"A": GENES[1:2]})
    np.testing.assert_allclose(pred.obs["score_A"], pred.X[:, 1], rtol=1e-6)


def test_slides_of_an_anndata(toy, caplog):
    adata = as_anndata(copied(toy))
    model = stc.tl.fit(copied(toy), batch_key="donor", method="ridge", genes=list(adata.var_names[:8]))
    adata.uns["stcontrast"] = {"image_features": dict(toy["table"].uns["stcontrast"]["image_features"])}
    pred = stc.tl.predict_expression(adata, model)
    found = stc.tl.score_genes(pred, {"A": model.genes})
    assert found["slide"].tolist() == ["donor1_a", "donor2_a", "donor3_a"]
    for _, row in found.iterrows():
        here = (adata.obs["library_id"] == row["slide"]).to_numpy()
        assert row["score"] == pytest.approx(float(pred.X[here].mean()), rel=1e-5)
    del pred.obs["library_id"]
    with pytest.raises(ValueError, match=r"made of 3 slides, \['donor1_a'.*no column of `obs` says which spot"):
        stc.tl.score_genes(pred, {"A": model.genes})
    pred.obs["section"] = adata.obs["library_id"]
    assert len(stc.tl.score_genes(pred, {"A": model.genes}, library_key="section")) == 3


def test_what_is_no_prediction(toy):
    with pytest.raises(KeyError, match="No table 'stc_pred'"):
        stc.tl.score_genes(toy, {"A": ["GENE1"]})
    with pytest.raises(TypeError, match="holds no prediction"):
        stc.tl.score_genes(toy["table"], {"A": ["GENE1"]})
    with pytest.raises(KeyError, match="No column 'sample'"):
        stc.tl.score_genes(prediction(SPOTS, SLIDES), {"A": ["G1"]}, library_key="sample")


@pytest.mark.parametrize("method", ["mean", "ridge"])
def test_one_slide_one_donor_gives_no_interval_to_others(toy, method, caplog):
    train = parts_of(copied(toy), "donor1")
    model = stc.tl.fit(train, batch_key="donor", method=method)
    assert model.spec["n_held_out"] == 0
    caplog.clear()
    found = stc.tl.score_genes(train["stc_pred"], {"A": model.genes[:5]})
    assert "only parts of a slide were held out" in one_warning(caplog)
    assert np.isfinite(train["stc_pred"].obs["score_A_upper"]).all()
    assert found["upper"].isna().all()


def test_scanpy_and_decoupler_take_predictions_as_they_are(predicted, model):
    import scanpy as sc

    table = predicted["stc_pred"].copy()
    sc.tl.score_genes(table, model.genes[:5], score_name="scanpy", ctrl_as_ref=False)
    stc.tl.score_genes(table, {"A": model.genes[:5]})
    # scanpy takes the mean of control genes off
    assert np.isfinite(table.obs["scanpy"]).all()
    of_set = np.asarray(table[:, model.genes[:5]].X).mean(axis=1)
    np.testing.assert_allclose(table.obs["score_A"], of_set, rtol=1e-5)
    dc = pytest.importorskip("decoupler", reason="decoupler is not installed")
    net = pd.DataFrame({"source": "A", "target": model.genes[:5], "weight": 1.0})
    dc.mt.ulm(table, net, tmin=2)
    assert table.obsm["score_ulm"].shape == (table.n_obs, 1)

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import balanced_accuracy_score, f1_score

import stcontrast as stc
from tests.methods.quick import QUICK
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, OPTIONS, as_anndata, bare, parts_of, snapshot

METHODS = ["mean", "stcontrast", "ridge", "color"]
COMPARED = {name: OPTIONS if name == "stcontrast" else {} for name in METHODS}


@pytest.fixture(scope="module")
def cv(toy):
    return stc.tl.cross_validate(copied(toy), donor_key="donor", label_key=LABELS, methods=COMPARED, n_score_genes=12)


def test_scores_are_tidy(cv):
    scores = cv.scores
    assert list(scores.columns) == ["method", "donor", "slide", "gene", "metric", "value"]
    assert set(scores["method"]) == {*METHODS, "ceiling"}
    assert set(scores["donor"]) == {"donor1", "donor2", "donor3"}
    of_genes = scores[scores["metric"].isin(["pearson", "rmse"])]
    assert (of_genes.groupby(["method", "donor", "slide", "metric"]).size() == 12).all()
    assert (of_genes["slide"] == of_genes["donor"] + "_a").all()
    classes = scores[scores["metric"] == "macro_f1"]
    assert len(classes) == 4 * 3
    assert set(classes["gene"]) == {""}
    assert classes["value"].between(0, 1).all()
    assert (scores.query("method == 'mean' and metric == 'pearson'")["value"] == 0).all()


def test_scores_by_hand(cv, toy):
    """Correlation and error, from the predictions and the counts."""
    predictions = cv.predictions
    table = toy["table"]
    counts = table.to_df()
    observed = np.log1p(1e4 * counts.div(counts.sum(axis=1), axis=0))
    for row in cv.scores.query("metric in ('pearson', 'rmse') and method == 'ridge'").itertuples():
        here = (predictions.obs["slide"] == row.slide).to_numpy()
        p = predictions[here, row.gene].layers["ridge"].ravel().astype(float)
        o = observed.loc[(table.obs["region"] == row.slide).to_numpy(), row.gene].to_numpy(dtype=float)
        expected = pearsonr(p, o).statistic if row.metric == "pearson" else np.sqrt(((p - o) ** 2).mean())
        assert row.value == pytest.approx(expected, abs=1e-5)


def test_macro_f1_is_over_the_donor_s_annotated_spots(toy):
    sdata = copied(toy)
    cv = stc.tl.cross_validate(sdata, donor_key="donor", label_key=LABELS, methods=["ridge"])
    train, test = parts_of(copied(toy), "donor1", "donor2"), parts_of(copied(toy), "donor3")
    stc.tl.classify(test, stc.tl.fit(train, batch_key="donor", label_key=LABELS, method="ridge"))
    obs = test["table"].obs.dropna(subset=[LABELS])
    expected = f1_score(obs[LABELS].astype(str), obs["stc_class"].astype(str), average="macro")
    found = cv.scores.query("metric == 'macro_f1' and donor == 'donor3'")["value"].item()
    assert found == pytest.approx(expected)


def test_a_fold_is_fit_and_predict(cv, toy):
    """The same path: what `fit` on the other donors predicts."""
    train, test = parts_of(copied(toy), "donor1", "donor2"), parts_of(copied(toy), "donor3")
    for method in ("ridge", "color", "stcontrast"):
        options = OPTIONS if method == "stcontrast" else None
        model = stc.tl.fit(train, batch_key="donor", label_key=LABELS, method=method, options=options)
        stc.tl.predict_expression(test, model)
        held = cv.predictions[(cv.predictions.obs["donor"] == "donor3").to_numpy()]
        np.testing.assert_allclose(held.layers[method], test["stc_pred"][:, held.var_names].X, atol=1e-3)


def test_summary_by_hand(cv):
    summary = cv.summary(seed=5)
    assert list(summary.index) == [*METHODS, "ceiling"]
    scores = cv.scores
    rng = np.random.default_rng(5)
    for metric in ("pearson", "macro_f1"):
        values = scores[scores["metric"] == metric].groupby(["method", "donor"])["value"].mean().unstack("donor")
        for method in METHODS:
            assert summary.loc[method, metric] == pytest.approx(values.loc[method].mean())
            difference = (values.loc[method] - values.loc["ridge"]).to_numpy()
            drawn = [rng.choice(difference, size=3).mean() for _ in range(2000)]
            assert summary.loc[method, f"{metric}_vs_ridge"] == pytest.approx(difference.mean(), abs=1e-12)
            for side, q in (("low", 0.025), ("high", 0.975)):
                assert summary.loc[method, f"{metric}_vs_ridge_{side}"] == pytest.approx(
                    np.quantile(drawn, q), abs=1e-12
                )
    assert (summary.loc["ridge", [c for c in summary if "_vs_" in c]] == 0).all()


def test_another_reference_or_none(cv):
    assert "pearson_vs_mean" in cv.summary(reference="mean")
    with pytest.raises(KeyError, match="the method 'lasso' was not run; these were"):
        cv.summary(reference="lasso")


def test_two_donors_have_no_interval(toy):
    sdata = parts_of(copied(toy), "donor1", "donor2")
    summary = stc.tl.cross_validate(sdata, donor_key="donor", methods=["ridge", "mean"]).summary()
    assert np.isnan(summary.loc["mean", "pearson_vs_ridge_low"])
    assert np.isfinite(summary.loc["mean", "pearson_vs_ridge"])
    assert "macro_f1" not in summary


def test_predictions_are_in_the_order_of_the_spots(cv, toy):
    predictions = cv.predictions
    assert predictions.n_obs == 120
    assert list(predictions.obs["donor"]) == list(toy["table"].obs["donor"].astype(str))
    np.testing.assert_allclose(predictions.obsm["spatial"], toy["table"].obsm["spatial"], atol=1e-6)
    assert set(METHODS) <= set(predictions.layers)
    np.testing.assert_array_equal(predictions.X, predictions.layers["mean"])
    assert np.isfinite(predictions.X).all()


def test_classes_of_every_held_out_spot(cv, toy):
    """Annotated and predicted, in the order of the spots: what the classes and their scores are made of."""
    obs = cv.predictions.obs
    annotated = toy["table"].obs[LABELS].astype(object).to_numpy()
    np.testing.assert_array_equal(obs["annotated"].isna(), pd.isna(annotated))
    known = ~pd.isna(annotated)
    assert 0 < known.sum() < len(known)
    np.testing.assert_array_equal(obs["annotated"][known].astype(str), annotated[known])
    for method in METHODS:
        guessed = obs[f"class_{method}"]
        # spots without annotation are predicted too
        assert guessed.notna().all()
        for donor, table in cv.classes[cv.classes["method"] == method].groupby("donor"):
            here = known & (obs["donor"] == donor).to_numpy()
            np.testing.assert_array_equal(guessed[here].astype(str), table["predicted"])


def test_the_object_is_unchanged_but_for_features(raw):
    before = snapshot(raw)
    stc.tl.cross_validate(raw, donor_key="donor", methods=["mean"])
    after = snapshot(raw)
    assert after["table"].pop("obsm") == sorted([*before["table"].pop("obsm"), "X_image"])
    assert after["table"].pop("ours") == sorted([*before["table"].pop("ours"), "image_features"])
    assert after == before


def test_folds_of_several_donors():
    sdata = stc.datasets.toy(n_donors=4, n_spots=20, n_genes=20)
    cv = stc.tl.cross_validate(sdata, donor_key="donor", methods=["mean"], n_folds=2)
    assert cv.scores["donor"].nunique() == 4
    one, other = (set(donors.split(", ")) for donors in cv.gene_sets["donors"].unique())
    assert len(one) == len(other) == 2
    assert not one & other


def test_a_list_of_what_each_slide_has(toy):
    """Donor 2 has labels only: it is scored on subtypes and helps to learn them."""
    parts = [parts_of(copied(toy), f"donor{i}") for i in (1, 2, 3)]
    parts[1] = bare(parts[1])
    cv = stc.tl.cross_validate(parts, donor_key="donor", label_key=LABELS, methods=["ridge", "mean"])
    scores = cv.scores
    assert set(scores.query("metric == 'pearson'")["donor"]) == {"donor1", "donor3"}
    assert set(scores.query("metric == 'macro_f1'")["donor"]) == {"donor1", "donor2", "donor3"}
    assert list(cv.summary().index) == ["ridge", "mean", "ceiling"]


def test_labels_alone(toy):
    cv = stc.tl.cross_validate(bare(toy), donor_key="donor", label_key=LABELS, methods=["ridge", "mean"])
    assert set(cv.scores["metric"]) == {"macro_f1", "balanced_accuracy", "calibration_error"}
    assert "macro_f1" in cv.summary()
    with pytest.raises(ValueError, match="no slide has counts"):
        _ = cv.predictions


def test_anndata(toy):
    adata = as_anndata(toy)
    cv = stc.tl.cross_validate(adata, donor_key="donor", methods=["ridge", "mean"])
    assert cv.scores["slide"].nunique() == 3


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"donor_key": None}, ValueError, "`donor_key` is needed"),
        ({"n_folds": 1}, ValueError, "`n_folds` must be a whole number of at least 2, found 1"),
        ({"n_folds": 4}, ValueError, "found 4"),
        ({"methods": []}, ValueError, "`methods` must be a list of names of methods"),
        ({"methods": ["lasso"]}, ValueError, "Unknown method 'lasso'"),
        ({"methods": {"stcontrast": {"epochs": 1}}}, ValueError, r"Unknown options \['epochs'\]"),
        ({"donor_key": "mouse"}, KeyError, "no column 'mouse'"),
        ({"label_key": "layer"}, KeyError, "no column 'layer'"),
        ({"genes": ["ACTB"]}, KeyError, "absent from the counts"),
        ({"layer": "truth"}, ValueError, "Raw counts are needed"),
    ],
)
def test_bad_input_is_refused_before_any_work(raw, arguments, kind, message):
    before = snapshot(raw)
    with pytest.raises(kind, match=message):
        stc.tl.cross_validate(raw, **{"donor_key": "donor", **arguments})
    assert snapshot(raw) == before


def test_one_donor_is_an_error_that_says_why(raw):
    with pytest.raises(ValueError, match=r"Only one donor, 'donor1': .* says nothing about a new donor"):
        stc.tl.cross_validate(parts_of(raw, "donor1"), donor_key="donor")


def test_one_donor_with_anything_to_learn_from(toy):
    parts = [parts_of(copied(toy), "donor1"), bare(parts_of(copied(toy), "donor2"))]
    with pytest.raises(ValueError, match=r"Only one donor has counts or labels, \['donor1'\]"):
        stc.tl.cross_validate(parts, donor_key="donor")


def test_rows_by_name_with_options_of_their_own(toy):
    cv = stc.tl.cross_validate(
        copied(toy), donor_key="donor", methods={"near": {"method": "knn"}, "ridge": {}, "weak": {"method": "mlp", "max_epochs": 1}},
        n_genes=8,
    )  # fmt: skip
    assert list(cv.summary().index) == ["near", "ridge", "weak", "ceiling"]
    assert {"near", "ridge", "weak"} <= set(cv.predictions.layers)


def test_each_method_has_the_neighbours_it_takes_by_default(toy):
    cards = {
        (method, given): stc.tl.fit(
            copied(toy), batch_key="donor", method=method, n_neighbors=given, options=QUICK[method]
        ).spec["n_neighbors"]
        for method in ("ridge", "bleep", "color")
        for given in (None, 6)
    }  # fmt: skip
    assert cards == {
        ("ridge", None): 18, ("ridge", 6): 6, ("bleep", None): 0, ("bleep", 6): 6, ("color", None): 0, ("color", 6): 0,
    }  # fmt: skip


def test_completed_targets_are_learnt_from_and_never_scored_against(toy, monkeypatch):
    """Completion sees training spots alone, and what is scored is what was measured."""
    from stcontrast.pp import _completion

    seen = []

    class Filled(_completion.Completer):
        def fit(self, expression, slide, xy):
            seen.append(len(expression))
            return self

        def complete(self, expression, slide, xy):
            return np.where(expression > 0, expression, np.float32(1.5))

    monkeypatch.setattr(_completion, "Completer", Filled)
    quick = {"donor_key": "donor", "methods": ["mean"], "n_genes": 8}
    plain, completed = (stc.tl.cross_validate(copied(toy), complete=flag, **quick) for flag in (False, True))
    n = toy["table"].obs["donor"].value_counts().to_numpy()
    # of each of three outer folds: two inner ones with one donor each, then both donors
    assert sorted(seen) == sorted([*(3 * [2 * n[0]]), *(6 * [n[0]])])
    rmse = [cv.scores.query("metric == 'rmse'")["value"].to_numpy() for cv in (plain, completed)]
    assert (rmse[1] > rmse[0]).mean() > 0.5
    assert stc.tl.fit(copied(toy), batch_key="donor", method="mean", complete=True).spec["completed_targets"]


def test_classes_and_confusion(cv):
    classes = cv.classes
    assert list(classes.columns) == ["method", "donor", "true", "predicted", "confidence"]
    assert set(classes["method"]) == set(METHODS)
    ridge = classes[classes["method"] == "ridge"]
    confusion = cv.confusion("ridge")
    assert confusion.to_numpy().sum() == len(ridge)
    for true in confusion.index:
        for predicted in confusion.columns:
            n = ((ridge["true"] == true) & (ridge["predicted"] == predicted)).sum()
            assert confusion.loc[true, predicted] == n
    of_donor = ridge[ridge["donor"] == "donor2"]
    scores = cv.scores.query("method == 'ridge' and donor == 'donor2'").set_index("metric")["value"]
    assert scores["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(of_donor["true"], of_donor["predicted"])
    )
    with pytest.raises(KeyError, match="'ceiling' predicted no classes; these did"):
        cv.confusion("ceiling")


def test_every_score_to_a_file(cv, tmp_path):
    cv.to_csv(tmp_path / "scores.csv")
    assert len(pd.read_csv(tmp_path / "scores.csv")) == len(cv.scores)


def test_metrics_are_those_of_stc_metrics(cv, toy):
    """One gene of one slide, by the public functions."""
    donor = "donor2"
    table, predicted = toy["table"], cv.predictions
    rows = (table.obs["donor"] == donor).to_numpy()
    here = (predicted.obs["donor"] == donor).to_numpy()
    gene = next(
        g for g in cv.scores.query("donor == @donor and metric == 'pearson'")["gene"] if g in predicted.var_names
    )
    total = np.asarray(table.X.sum(axis=1)).ravel()[rows]
    counts = table[rows, gene].X.toarray()
    observed, ours = np.log1p(1e4 * counts / total[:, None]), predicted[here, gene].layers["ridge"]
    xy = predicted.obsm["spatial"][here]
    expected = {
        "pearson": stc.metrics.gene_correlation(ours, observed)[0],
        "spearman": stc.metrics.gene_rank_correlation(ours, observed)[0],
        "rmse": stc.metrics.rmse(ours, observed)[0],
        "variance_ratio": stc.metrics.variance_ratio(ours, observed)[0],
        "moran_difference": stc.metrics.moran_difference(ours, observed, xy)[0],
    }
    scores = cv.scores.query("method == 'ridge' and donor == @donor and gene == @gene").set_index("metric")["value"]
    for metric, value in expected.items():
        assert scores[metric] == pytest.approx(value, abs=1e-5), metric
    ceiling = cv.scores.query("method == 'ceiling' and donor == @donor")["value"]
    assert ceiling.dropna().between(0, 1).all()


def test_intervals_are_scored_as_they_are_predicted(cv, toy):
    """Coverage and width, from the interval that the model writes."""
    train, test = parts_of(copied(toy), "donor1", "donor2"), parts_of(copied(toy), "donor3")
    stc.tl.predict_expression(test, stc.tl.fit(train, batch_key="donor", label_key=LABELS, method="ridge"))
    predicted = test["stc_pred"]
    counts = test["table"].to_df()
    observed = np.log1p(1e4 * counts.div(counts.sum(axis=1), axis=0))
    scores = cv.scores.query("method == 'ridge' and donor == 'donor3'")
    of_gene = scores.pivot_table(index="gene", columns="metric", values="value")
    for gene, row in of_gene.loc[of_gene.index.isin(predicted.var_names)].iterrows():
        lower, upper = (predicted[:, gene].layers[name].ravel() for name in ("lower", "upper"))
        truth = observed[gene].to_numpy()
        assert row["coverage"] == pytest.approx(((lower <= truth) & (truth <= upper)).mean(), abs=0.04)
        assert row["interval_width"] == pytest.approx((upper - lower).mean(), abs=1e-4)


def test_recall_is_that_of_the_embeddings_of_the_held_out_donor(cv):
    """Methods with a joint space alone; within the slide, compared with chance."""
    recall = cv.scores.query("metric == 'recall_at_10'")
    assert set(recall["method"]) == {"stcontrast"}
    assert len(recall) == 3
    assert recall["value"].between(0, 1).all()
    n_spots = cv.predictions.obs["slide"].value_counts()
    for row in cv.scores.query("metric == 'recall_chance'").itertuples():
        assert row.value == pytest.approx(10 / n_spots[row.slide])
    assert {"recall_at_10", "recall_chance", "coverage", "interval_width"} <= set(cv.summary().columns)


def test_a_fit_that_fails_is_noted_and_the_rest_kept(toy, monkeypatch, caplog):
    from stcontrast.methods.baselines import Ridge

    original = Ridge.fit

    def fit(self, data, folds):
        if type(self) is Ridge and len(data.slide) == (toy["table"].obs["donor"] != "donor2").sum():
            fits.append(1)
            if len(fits) == 2:
                msg = "no luck"
                raise RuntimeError(msg)
        return original(self, data, folds)

    fits: list[int] = []
    monkeypatch.setattr(Ridge, "fit", fit)
    cv = stc.tl.cross_validate(copied(toy), donor_key="donor", methods=["ridge", "mean"])
    assert list(cv.failures["method"]) == ["ridge"]
    assert cv.failures["error"].item() == "RuntimeError: no luck"
    lost = cv.failures["donors"].item()
    assert set(cv.scores.query("method == 'ridge'")["donor"]) == {"donor1", "donor2", "donor3"} - {lost}
    assert f"ridge failed with {lost} held out" in caplog.text
    summary = cv.summary()
    assert summary.loc[["ridge", "mean"], "donors"].tolist() == [2, 3]
    # differences are taken over the donors that both have
    assert np.isfinite(summary.loc["mean", "pearson_vs_ridge"])
    predictions = cv.predictions
    assert predictions.n_obs == toy["table"].n_obs
    of_lost = (predictions.obs["donor"] == lost).to_numpy()
    np.testing.assert_array_equal(np.isnan(predictions.layers["ridge"]).all(axis=1), of_lost)
    assert np.isfinite(predictions.layers["mean"]).all()


def test_where_every_fit_fails_it_says_why(toy, monkeypatch):
    from stcontrast.methods.baselines import Mean

    def fit(self, data, folds):
        msg = "no luck at all"
        raise RuntimeError(msg)

    monkeypatch.setattr(Mean, "fit", fit)
    with pytest.raises(RuntimeError, match="no luck at all"):
        stc.tl.cross_validate(copied(toy), donor_key="donor", methods=["mean"])

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stcontrast as stc
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, bare, kept_fits, parts_of, snapshot

BUILT_IN = ["highly_variable", "highly_expressed", "spatially_variable"]
MARKERS = {**dict.fromkeys(BUILT_IN), "markers": ["GENE40", "GENE1", "GENE7"]}
QUICK = {"donor_key": "donor", "methods": ["ridge", "mean"], "n_genes": 10, "n_score_genes": 6}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("fits")


@pytest.fixture(scope="module")
def cv(toy, directory):
    return stc.tl.cross_validate(copied(toy), label_key=LABELS, gene_sets=MARKERS, directory=directory, **QUICK)


def sets_of(cv, donor):
    table = cv.gene_sets[cv.gene_sets["donors"] == donor]
    return {name: part["gene"].tolist() for name, part in table.groupby("set", sort=False)}


def logged(sdata, *donors):
    """log(1 + counts per 10 000) by slide, and centres, by pandas."""
    table = sdata["table"]
    counts = table.to_df()
    expression = np.log1p(1e4 * counts.div(counts.sum(axis=1), axis=0))
    xy = np.asarray(table.obsm["spatial"])
    return {
        donor: (expression[(rows := (table.obs["donor"] == donor).to_numpy())], counts[rows], xy[rows]) for donor in donors
    }  # fmt: skip


def moran(values, xy):
    """Straight from the formula, weights 1 for the 6 nearest."""
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    weight = np.zeros_like(distance)
    np.put_along_axis(weight, np.argsort(distance, axis=1, kind="stable")[:, :6], 1.0, axis=1)
    z = values - values.mean()
    return len(z) / weight.sum() * (z @ weight @ z) / (z @ z) if np.ptp(values) > 1e-9 else 0.0


def test_a_tidy_table_of_sets(cv, toy):
    table = cv.gene_sets
    assert list(table.columns) == ["donors", "set", "gene"]
    assert set(table["donors"]) == {"donor1", "donor2", "donor3"}
    assert list(table["set"].drop_duplicates()) == list(MARKERS)
    assert not table.duplicated().any()
    assert (table.groupby(["donors", "set"]).size().unstack()[BUILT_IN] == 6).all(axis=None)
    assert sets_of(cv, "donor2")["markers"] == MARKERS["markers"]


def test_the_most_expressed_by_hand(cv, toy):
    slides = logged(toy, "donor1", "donor2")
    mean = (slides["donor1"][0].mean() + slides["donor2"][0].mean()) / 2
    assert sets_of(cv, "donor3")["highly_expressed"] == mean.nlargest(6).index.tolist()


def test_the_most_variable_in_space_by_hand(cv, toy):
    slides = logged(toy, "donor1", "donor2")
    seen = pd.concat([counts > 0 for _, counts, _ in slides.values()]).mean()
    score = pd.Series(
        {
            gene: np.mean([moran(expression[gene].to_numpy(dtype=float), xy) for expression, _, xy in slides.values()])
            for gene in seen.index[seen >= 0.1]
        }
    )
    assert len(score) > 6
    assert sets_of(cv, "donor3")["spatially_variable"] == score.nlargest(6).index.tolist()


def test_all_sets_are_scored_once_and_modelled(cv, directory):
    gene_scores = cv.scores[cv.scores["gene"] != ""]
    assert not gene_scores.duplicated(["method", "slide", "gene", "metric"]).any()
    for donor in ("donor1", "donor2", "donor3"):
        sets = sets_of(cv, donor)
        scored = gene_scores.query("donor == @donor and metric == 'pearson'").groupby("method")["gene"].agg(set)
        assert set(scored.index) == {"ridge", "mean", "ceiling"}
        for of_method in scored:
            assert of_method == {gene for genes in sets.values() for gene in genes}
        modelled = kept_fits(directory)["ridge", "{}", donor]["genes"].tolist()
        assert set(MARKERS["markers"]) <= set(modelled)
        assert len(modelled) == len(set(modelled))


@pytest.mark.parametrize("gene_set", [None, *MARKERS])
def test_a_summary_is_over_the_genes_of_one_set(cv, gene_set):
    name = gene_set or "highly_variable"
    scores = cv.scores
    summary = cv.summary(gene_set=gene_set)
    for method in ("ridge", "mean", "ceiling"):
        of_donors = []
        for donor in ("donor1", "donor2", "donor3"):
            rows = scores.query("method == @method and donor == @donor and metric == 'pearson'")
            of_donors.append(rows[rows["gene"].isin(sets_of(cv, donor)[name])]["value"].mean())
        assert summary.loc[method, "pearson"] == pytest.approx(np.mean(of_donors), abs=1e-12)
    # subtypes have no genes
    pd.testing.assert_series_equal(summary["macro_f1"], cv.summary()["macro_f1"])
    expected = summary.loc["mean", "pearson"] - summary.loc["ridge", "pearson"]
    assert summary.loc["mean", "pearson_vs_ridge"] == pytest.approx(expected)


def test_the_figure_shows_what_the_summary_says(cv):
    for gene_set in (None, "markers"):
        ax = stc.pl.cv_summary(cv, gene_set=gene_set, show=False)
        means = [path.vertices[0, 0] for path in ax.collections[-1].get_paths()]
        np.testing.assert_allclose(means, cv.summary(gene_set=gene_set)["pearson"].to_numpy())
    ax = stc.pl.gene_scores(cv, method="mean", gene_set="markers", show=False)
    assert "of 3 genes" in ax.get_title()


def test_the_first_set_is_the_default_one_alone(toy):
    """With more sets, the most variable genes are chosen as without them."""
    one = stc.tl.cross_validate(copied(toy), **QUICK)
    assert list(one.gene_sets["set"].unique()) == ["highly_variable"]
    pd.testing.assert_frame_equal(one.scores_of("highly_variable"), one.scores)
    more = stc.tl.cross_validate(copied(toy), gene_sets=MARKERS, **QUICK)
    hv = more.gene_sets.query("set == 'highly_variable'").reset_index(drop=True)
    pd.testing.assert_frame_equal(hv, one.gene_sets)


@pytest.mark.parametrize("donor", ["donor1", "donor3"])
def test_sets_do_not_look_at_the_donor_that_is_held_out(cv, toy, donor):
    rng = np.random.default_rng(3)
    sdata = copied(toy)
    rows = np.flatnonzero(sdata["table"].obs["donor"] == donor)
    counts = sdata["table"].X.toarray()
    counts[rows] = rng.poisson(rng.gamma(0.3, 300, size=(1, counts.shape[1])), size=(len(rows), counts.shape[1]))
    sdata["table"].X = sparse.csr_matrix(counts)
    other = stc.tl.cross_validate(sdata, label_key=LABELS, gene_sets=MARKERS, **QUICK)
    assert sets_of(other, donor) == sets_of(cv, donor)
    assert sets_of(other, "donor2") != sets_of(cv, "donor2")


def test_named_genes_come_first_and_the_others_out_of_them(toy):
    genes = ["GENE3", "GENE1", "GENE20", "GENE8"]
    quick = {name: value for name, value in QUICK.items() if name != "n_genes"}
    plain = stc.tl.cross_validate(copied(toy), genes=genes, **quick)
    assert sets_of(plain, "donor1")["genes"] == genes
    pd.testing.assert_frame_equal(plain.scores_of(), plain.scores)
    cv = stc.tl.cross_validate(copied(toy), genes=genes, gene_sets={**MARKERS}, **{**quick, "n_score_genes": 2})
    sets = sets_of(cv, "donor1")
    assert list(sets) == ["genes", *MARKERS]
    assert all(set(sets[name]) <= set(genes) and len(sets[name]) == 2 for name in BUILT_IN)
    assert set(cv.predictions.var_names) == {*genes, *MARKERS["markers"]}


def test_named_genes_beside_the_most_variable(toy):
    """A gene of the user's own is scored, and the others are chosen in every fold on its training spots."""
    quick = {**QUICK, "n_genes": 6}
    plain = stc.tl.cross_validate(copied(toy), **quick)
    chosen = {donor: sets_of(plain, donor)["highly_variable"][:6] for donor in ("donor1", "donor2")}
    other = next(gene for gene in toy["table"].var_names if gene not in {*chosen["donor1"], *chosen["donor2"]})
    cv = stc.tl.cross_validate(copied(toy), genes=[other], **quick)
    for donor in ("donor1", "donor2"):
        assert sets_of(cv, donor)["genes"] == [other]
        assert sets_of(cv, donor)["highly_variable"] == sets_of(plain, donor)["highly_variable"]
        scored = cv.scores[(cv.scores["donor"] == donor) & (cv.scores["metric"] == "pearson")]
        assert set(scored["gene"]) == {other, *chosen[donor]}


def test_labels_alone_have_sets_without_genes(toy):
    cv = stc.tl.cross_validate(bare(toy), label_key=LABELS, gene_sets=MARKERS, **QUICK)
    assert cv.gene_sets.empty
    assert cv.summary(gene_set="markers").equals(cv.summary())


def test_one_name_is_enough(toy):
    sdata = parts_of(copied(toy), "donor1", "donor2")
    cv = stc.tl.cross_validate(sdata, gene_sets="highly_expressed", **QUICK)
    assert set(cv.gene_sets["set"]) == {"highly_expressed"}


def test_an_unknown_set_is_an_error(cv):
    for call in (cv.summary, cv.scores_of):
        with pytest.raises(
            KeyError, match=r"No gene set 'oncogenes'. Valid names are \['highly_variable', .*'markers'\]"
        ):
            call(gene_set="oncogenes")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"gene_sets": ["variable"]}, ValueError, r"Unknown gene set 'variable'.* \['highly_variable', "),
        ({"gene_sets": {"mine": []}}, ValueError, "Unknown gene set 'mine', without genes of its own"),
        ({"gene_sets": {"mine": "GENE1"}}, ValueError, "the genes of 'mine' are the string 'GENE1'"),
        ({"gene_sets": []}, ValueError, "`gene_sets` is empty"),
        ({"gene_sets": {"genes": ["GENE1"]}, "genes": ["GENE2"]}, ValueError, "the name 'genes' is taken"),
        (
            {"gene_sets": {"mine": ["GENE1", *(f"X{i}" for i in range(12))]}},
            KeyError,
            r"12 of the genes of the set 'mine' are absent .*\['X0', .*'X9'\]\. Some that exist: \['GENE1'",
        ),
    ],
)
def test_bad_sets_are_refused_before_any_work(raw, arguments, kind, message):
    before = snapshot(raw)
    with pytest.raises(kind, match=message):
        stc.tl.cross_validate(raw, donor_key="donor", **arguments)
    assert snapshot(raw) == before

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anndata import AnnData

import stcontrast as stc
from stcontrast.methods._base import get_method
from tests.methods.synthetic import training_data

DATA = training_data()
"""Image features of 6 columns, genes gene0 to gene4."""
COLUMNS = ["gene2", "other", "gene0", "another", "gene4", "third"]


def given(**options: Any) -> Any:
    method = get_method("given", options=options)
    method.fit_parts(DATA)
    return method


def test_a_gene_is_matched_by_name():
    found = given(columns=COLUMNS, rescale=False).predict_expression(DATA.unseen())
    for gene, column in ((0, 2), (2, 0), (4, 4)):
        np.testing.assert_array_equal(found[:, gene], DATA.features[:, column])
    # genes that the other model lacks
    mean = get_method("mean")
    mean.fit_parts(DATA)
    absent = [1, 3]
    np.testing.assert_array_equal(found[:, absent], mean.predict_expression(DATA)[:, absent])


def test_rescaling_changes_the_unit_and_no_correlation():
    plain, scaled = (given(columns=COLUMNS, rescale=how).predict_expression(DATA.unseen()) for how in (False, True))
    for gene in (0, 2, 4):
        assert np.corrcoef(plain[:, gene], scaled[:, gene])[0, 1] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(scaled[:, [0, 2, 4]].mean(0), DATA.observed[:, [0, 2, 4]].mean(0), rtol=1e-4)
    np.testing.assert_allclose(scaled[:, [0, 2, 4]].std(0), DATA.observed[:, [0, 2, 4]].std(0), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "needs the genes of the columns"),
        ({"columns": ["gene0", "gene1"]}, "2 `columns`, and the slot of predictions has 6"),
        ({"columns": list("abcdef")}, "none of the 5 modelled genes among its 6 columns"),
        ({"columns": ["gene0", *COLUMNS[1:]]}, "'gene0'. more than once"),
    ],
    ids=["no names", "too few", "none matches", "twice"],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        given(**options)


class StandIn:
    """A predictor of LazySlide's protocol for features (Path2Space): a named array for every gene."""

    features_model_name = "texture"

    def predict(self, features, coords=None):
        del coords
        # of any scale; a gene that is not in the table
        return {"GENE1": 7 * features[:, 0] + 100, "GENE3": features[:, 1], "NOT_THERE": features[:, 2]}


@pytest.fixture
def slides() -> tuple[AnnData, list[str]]:
    table = stc.datasets.toy(n_donors=3, n_spots=30, n_genes=20)["table"]
    data = AnnData(table.X, obs=table.obs[["donor", "slide", "subtype"]], var=table.var[[]])
    data.obsm["spatial"] = table.obsm["spatial"]
    data.obsm["X_texture"] = np.random.default_rng(0).normal(size=(data.n_obs, 4)).astype(np.float32)
    output = StandIn().predict(data.obsm["X_texture"])
    data.obsm["X_other"] = np.column_stack(list(output.values())).astype(np.float32)
    return data, list(output)


@pytest.mark.parametrize("slots", ["X_other", ["X_texture", "X_other"]], ids=["alone", "last of two"])
def test_anothers_predictions_are_a_row_of_a_comparison(slides: tuple[AnnData, list[str]], slots: Any) -> None:
    data, columns = slides
    cv = stc.tl.cross_validate(
        data, donor_key="donor", library_key="slide", use_rep=slots, n_score_genes=20,
        gene_sets={"shared": ["GENE1", "GENE3", "GENE4"]},
        methods={"theirs": {"method": "given", "columns": columns}, "mean": {}},
    )  # fmt: skip
    observed = np.log1p(1e4 * data.to_df().div(data.to_df().sum(axis=1), axis=0))
    r = cv.scores.query("method == 'theirs' and metric == 'pearson'")
    for row in r.itertuples():
        rows = data.obs["slide"] == row.slide
        if row.gene == "GENE4":
            assert row.value == 0
            continue
        theirs = data.obsm["X_other"][rows, columns.index(str(row.gene))]
        predicted = cv.predictions[cv.predictions.obs["slide"] == row.slide].to_df(layer="theirs")[row.gene]
        # (expression below 0 is 0)
        assert np.corrcoef(theirs, predicted)[0, 1] > 0.99
        assert row.value == pytest.approx(np.corrcoef(predicted, observed.loc[rows, row.gene])[0, 1], abs=1e-4)
    assert set(r["gene"]) == {"GENE1", "GENE3", "GENE4"}


def test_a_saved_model_predicts_the_same(slides: tuple[AnnData, list[str]], tmp_path) -> None:
    data, columns = slides
    model = stc.tl.fit(
        data, batch_key="donor", label_key="subtype", library_key="slide", use_rep="X_other", method="given",
        options={"columns": columns},
    )  # fmt: skip
    model.save(tmp_path / "model")
    new = data[data.obs["donor"] == "donor1"].copy()
    found: list[Any] = [
        stc.tl.predict_expression(new, how, library_key="slide") for how in (model, stc.models.load(tmp_path / "model"))
    ]
    np.testing.assert_array_equal(found[0].X, found[1].X)

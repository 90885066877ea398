"""Counts and labels of a held-out donor do not reach the models that predict it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import stcontrast as stc
from stcontrast.methods import _base
from tests.methods.quick import QUICK
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, kept_fits, parts_of

# one step that sees a held-out spot changes what is learnt: more epochs find nothing that one does not
SHORT = {
    name: {key: 1 if key in ("max_epochs", "vae_epochs") else value for key, value in options.items()}
    for name, options in QUICK.items()
}
# without the oracle, which uses the depth of what it predicts (tests/methods/baselines/test_depth.py), and without what
# needs the predictions of another model (tests/methods/baselines/test_given.py)
METHODS = {name: options for name, options in SHORT.items() if name != "depth"} | {
    "nh2st (code)": {"method": "nh2st", **SHORT["nh2st"], "variant": "code"},
    "tpirbae, guided": {"method": "tpirbae", **SHORT["tpirbae"], "guided": True},
}


def predictions(sdata, **kwargs) -> stc.tl.CrossValidation:
    return stc.tl.cross_validate(sdata, donor_key="donor", label_key=LABELS, **kwargs)


@pytest.fixture(scope="module")
def honest(toy):
    cv = predictions(copied(toy), methods=METHODS)
    return cv, cv.predictions


def scrambled(toy, donor: str, seed: int):
    """The same slides with unrelated counts and labels of a donor."""
    rng = np.random.default_rng(seed)
    sdata = copied(toy)
    table = sdata["table"]
    rows = np.flatnonzero(table.obs["donor"] == donor)
    counts = table.X.toarray()
    counts[rows] = rng.poisson(rng.gamma(0.5, 200, size=(1, counts.shape[1])), size=(len(rows), counts.shape[1]))
    counts[rows[: seed % 5]] = 0
    table.X = sparse.csr_matrix(counts)
    table.obs.iloc[rows, table.obs.columns.get_loc(LABELS)] = rng.permutation(table.obs[LABELS].to_numpy()[rows])
    return sdata, rows


def test_no_method_is_forgotten():
    assert {options.get("method", name) for name, options in METHODS.items()} == set(_base.METHODS) - {"depth", "given"}


@pytest.mark.parametrize(
    ("donor", "names"),
    [
        ("donor1", list(METHODS)),
        ("donor3", ["ridge", "stcontrast"]),
        pytest.param("donor3", list(METHODS), marks=pytest.mark.slow),
    ],
)
def test_the_counts_of_a_donor_do_not_change_its_predictions(toy, honest, donor, names):
    sdata, rows = scrambled(toy, donor, 1)
    other = predictions(sdata, methods={name: METHODS[name] for name in names}).predictions
    here = honest[1].obs["donor"] == donor
    assert here.sum() == len(rows)
    genes = honest[1].var_names.intersection(other.var_names)
    for method in names:
        np.testing.assert_array_equal(
            other[here.to_numpy(), genes].layers[method], honest[1][here.to_numpy(), genes].layers[method]
        )
    # predictions of the other donors change: they were made with its counts
    there = ~here.to_numpy()
    assert not np.array_equal(other[there, genes].layers["ridge"], honest[1][there, genes].layers["ridge"])


@pytest.mark.slow
def test_the_counts_of_a_donor_do_not_change_its_subtypes(toy, tmp_path):
    predictions(copied(toy), methods=METHODS, directory=tmp_path / "before")
    predictions(scrambled(toy, "donor2", 3)[0], methods=METHODS, directory=tmp_path / "after")
    before, after = kept_fits(tmp_path / "before"), kept_fits(tmp_path / "after")
    assert before.keys() == after.keys()
    held_out = [key for key in before if key[2] == "donor2"]
    assert len(held_out) == len(METHODS)
    for key in held_out:
        for name in ("classes", "proba"):
            np.testing.assert_array_equal(before[key][name], after[key][name])


@pytest.mark.slow
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000), donor=st.sampled_from(["donor1", "donor2", "donor3"]), n_genes=st.sampled_from([5, 15])
)
def test_genes_are_chosen_on_training_donors(toy, tmp_path_factory, seed, donor, n_genes):
    quick = {"methods": ["ridge"], "n_genes": n_genes, "n_score_genes": 4}
    sdata, _ = scrambled(toy, donor, seed)
    folders = [tmp_path_factory.mktemp("fits") for _ in range(2)]
    one, other = (predictions(s, directory=d, **quick) for s, d in zip((copied(toy), sdata), folders, strict=True))
    scored = [
        cv.scores.query("method == 'ridge' and metric == 'pearson' and donor == @donor")["gene"].tolist()
        for cv in (one, other)
    ]
    assert scored[0] == scored[1]
    assert len(scored[0]) == 4
    one, other = (kept_fits(folder)["ridge", "{}", donor] for folder in folders)
    assert one["genes"].tolist() == other["genes"].tolist()
    assert len(one["genes"]) == n_genes
    np.testing.assert_array_equal(one["expression"], other["expression"])


def test_predicting_another_donor_as_well_changes_no_prediction(fitted, toy):
    """A prediction depends on its own slide alone."""
    alone, both = parts_of(copied(toy), "donor3"), parts_of(copied(toy), "donor1", "donor3")
    for sdata in (alone, both):
        stc.tl.predict_expression(sdata, fitted[0])
    here = (both["stc_pred"].obs["region"] == "donor3_a").to_numpy()
    np.testing.assert_allclose(both["stc_pred"][here].X, alone["stc_pred"].X, atol=1e-5)

"""Nothing of a held-out donor reaches what predicts it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import stcontrast as stc
from tests.methods.quick import QUICK
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, kept_fits

# the oracle is left out: it looks at the depth of what it predicts, and says so (tests/methods/test_depth.py)
METHODS = {name: options for name, options in QUICK.items() if name != "depth"} | {
    "nh2st (code)": {"method": "nh2st", **QUICK["nh2st"], "variant": "code"},
    "tpirbae, guided": {"method": "tpirbae", **QUICK["tpirbae"], "guided": True},
}


def predictions(sdata, **kwargs) -> stc.tl.CrossValidation:
    return stc.tl.cross_validate(sdata, donor_key="donor", label_key=LABELS, **kwargs)


@pytest.fixture(scope="module")
def honest(toy):
    cv = predictions(copied(toy), methods=METHODS)
    return cv, cv.predictions


def scrambled(toy, donor: str, seed: int):
    """The same slides with the donor's counts and labels replaced by something else altogether."""
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


def test_every_method_is_looked_at():
    assert {options.get("method", name) for name, options in METHODS.items()} == set(stc.methods.METHODS) - {"depth"}


@pytest.mark.parametrize("donor", ["donor1", "donor3"])
def test_a_donor_s_counts_do_not_touch_its_predictions(toy, honest, donor):
    sdata, rows = scrambled(toy, donor, 1)
    other = predictions(sdata, methods=METHODS).predictions
    here = honest[1].obs["donor"] == donor
    assert here.sum() == len(rows)
    genes = honest[1].var_names.intersection(other.var_names)
    for method in METHODS:
        np.testing.assert_array_equal(
            other[here.to_numpy(), genes].layers[method], honest[1][here.to_numpy(), genes].layers[method]
        )
    # of the others it does: they have been trained with it
    there = ~here.to_numpy()
    assert not np.array_equal(other[there, genes].layers["ridge"], honest[1][there, genes].layers["ridge"])


@pytest.mark.slow
def test_a_donor_s_counts_do_not_touch_its_subtypes(toy, tmp_path):
    predictions(copied(toy), methods=METHODS, directory=tmp_path / "before")
    predictions(scrambled(toy, "donor2", 3)[0], methods=METHODS, directory=tmp_path / "after")
    before, after = kept_fits(tmp_path / "before"), kept_fits(tmp_path / "after")
    assert before.keys() == after.keys()
    held_out = [key for key in before if key[2] == "donor2"]
    assert len(held_out) == len(METHODS)
    for key in held_out:
        for name in ("classes", "proba"):
            np.testing.assert_array_equal(before[key][name], after[key][name])


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


def test_adding_a_donor_to_predict_changes_no_prediction(fitted, toy):
    """What a model says of a slide depends on that slide alone."""
    from tests.tl.toy import parts_of

    alone, both = parts_of(copied(toy), "donor3"), parts_of(copied(toy), "donor1", "donor3")
    for sdata in (alone, both):
        stc.tl.predict_expression(sdata, fitted[0])
    here = (both["stc_pred"].obs["region"] == "donor3_a").to_numpy()
    np.testing.assert_allclose(both["stc_pred"][here].X, alone["stc_pred"].X, atol=1e-5)

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

import stcontrast as stc
from stcontrast._data import inner_folds
from stcontrast._files import read_state, write_state
from stcontrast.methods import ContrastiveMethod, ContrastiveOptions
from stcontrast.methods._base import METHODS, get_method
from stcontrast.methods._retrieval import combine
from stcontrast.methods.published import Bleep
from stcontrast.metrics import mean_slide_correlation
from stcontrast.nn import HeadPair
from tests.methods.quick import CONTRASTIVE
from tests.methods.synthetic import training_data

ALL = np.arange(90)


def made(name: str, **options):
    return get_method(name, options={**CONTRASTIVE[name], **options})


def without_counts(data):
    nothing = np.zeros((90, 0), dtype=np.float32)
    return replace(data, depth=np.zeros(90), counts=data.counts[:, :0], target=nothing, observed=nothing)


@pytest.fixture(scope="module", params=list(CONTRASTIVE))
def fitted(request):
    data = training_data(n_classes=3)
    data = replace(data, depth=data.depth * (ALL % 11 > 0), label=np.where(ALL % 4, data.label, -1))
    method = made(request.param)
    method.fit_parts(data)
    return method, data


def test_predictions_and_embeddings(fitted):
    method, data = fitted
    view = data.unseen()
    expression, proba = method.predict_expression(view), method.predict_proba(view)
    assert expression.shape == (90, 5)
    assert np.isfinite(expression).all()
    assert proba.shape == (90, 3)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    found = method.embed(data)
    image, gene = found["X_stc_image"], found["X_stc_gene"]
    assert image.shape == gene.shape
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, atol=1e-5)
    assert np.isnan(gene[~data.measured]).all()
    np.testing.assert_allclose(np.linalg.norm(gene[data.measured], axis=1), 1, atol=1e-5)
    assert ("X_stc_vae" in found) == (method.name == "tpirbae")


def test_saved_and_read_again(fitted, tmp_path):
    method, data = fitted
    write_state(tmp_path, method.state())
    again = METHODS[method.name](**method.spec)
    again.restore(read_state(tmp_path))
    view = training_data(seed=1).unseen()
    np.testing.assert_array_equal(again.predict_expression(view), method.predict_expression(view))
    np.testing.assert_array_equal(again.predict_proba(view), method.predict_proba(view))
    for slot, values in method.embed(data).items():
        np.testing.assert_array_equal(again.embed(data)[slot], values)


def test_a_prediction_is_of_its_own_slide_alone(fitted):
    method, data = fitted
    whole = method.predict_expression(data.unseen())
    rows = np.flatnonzero(data.slide == 1)
    np.testing.assert_allclose(method.predict_expression(data.take(rows).unseen()), whole[rows], atol=1e-4)


def test_the_order_of_the_spots_does_not_matter(fitted):
    method, data = fitted
    order = np.random.default_rng(0).permutation(90)
    one, other = (
        method.predict_expression(data.unseen()),
        method.predict_expression(data.take(order).unseen()),
    )
    np.testing.assert_allclose(other, one[order], atol=1e-4)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_held_out_counts_do_not_change_out_of_fold_predictions(name):
    data = training_data()
    folds = inner_folds(data)
    rows = folds[0].held_out
    found = made(name).predict_out_of_fold(data, folds)
    rng = np.random.default_rng(0)
    counts = data.counts.toarray()
    counts[rows] = rng.poisson(50, counts[rows].shape)
    target = data.target.copy()
    target[rows] = 9 * rng.random(target[rows].shape)
    changed = replace(
        data, counts=type(data.counts)(counts), target=target, observed=target, depth=counts.sum(axis=1),
        label=np.where(np.isin(ALL, rows), rng.permutation(data.label), data.label),
    )  # fmt: skip
    again = made(name).predict_out_of_fold(changed, inner_folds(changed))
    np.testing.assert_array_equal(again.expression[rows], found.expression[rows])
    np.testing.assert_array_equal(again.proba[rows], found.proba[rows])
    others = folds[1].held_out
    assert not np.array_equal(again.expression[others], found.expression[others])


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_something_is_learnt(name):
    data, new = training_data(n_spots=60), training_data(n_spots=60, seed=1)
    longer = {"max_epochs": 40, "batch_size": 32, "learning_rate": 2e-3}
    method = get_method(
        name, options={**CONTRASTIVE[name], **longer, **({"vae_epochs": 60} if name == "tpirbae" else {})}
    )
    method.fit_parts(data)
    view = new.unseen()
    # the VAE's decoder takes out depth, which is a part of what these data are made of
    least = 0.4 if name == "tpirbae" else 0.5
    assert mean_slide_correlation(method.predict_expression(view), new.observed, new.slide) > least
    assert (method.predict_proba(view).argmax(axis=1) == new.label).mean() > 0.7


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_labels_alone(name, caplog, tmp_path):
    data = without_counts(training_data())
    method = made(name)
    method.fit_parts(data)
    assert "nothing to align" in caplog.text
    assert (method.predict_proba(data.unseen()).argmax(axis=1) == data.label).mean() > 0.9
    assert method.embed(data) == {}
    with pytest.raises(ValueError, match="without counts"):
        method.predict_expression(data.unseen())
    with pytest.raises(ValueError, match="no neighbours to show"):
        method.neighbors(data.unseen())
    write_state(tmp_path, method.state())
    again = made(name)
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.predict_proba(data.unseen()), method.predict_proba(data.unseen()))


def test_counts_alone():
    method = made("bleep")
    method.fit_parts(replace(training_data(), label=np.full(90, -1)))
    with pytest.raises(ValueError, match="without labels"):
        method.predict_proba(training_data().unseen())


def test_the_neighbours_are_what_the_prediction_is_made_of():
    data = training_data()
    data = replace(data, depth=data.depth * (ALL % 9 > 0))
    method = made("bleep", k=7, weights="similarity")
    method.fit_parts(data)
    found = method.neighbors(data.unseen())
    assert found.ids.shape == (90, 7)
    measured = data.take(np.flatnonzero(data.measured))
    mean, of_spot = measured.slide_means()
    np.testing.assert_allclose(
        combine(found, measured.target - of_spot + mean), method.predict_expression(data.unseen()), atol=1e-6
    )


@pytest.mark.parametrize("decoder", ["retrieval", "regression", "vae"])
def test_decoders(decoder):
    data = training_data()
    method = made("tpirbae", decoder=decoder)
    method.fit_parts(data)
    assert np.isfinite(method.predict_expression(data.unseen())).all()


def test_knn_probe_votes(tmp_path):
    data = training_data()
    method = made("bleep", probe="knn", probe_k=5)
    method.fit_parts(data)
    votes = 5 * method.predict_proba(data.unseen())
    np.testing.assert_allclose(votes, np.round(votes), atol=1e-5)
    write_state(tmp_path, method.state())
    again = made("bleep", probe="knn", probe_k=5)
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.predict_proba(data.unseen()), method.predict_proba(data.unseen()))


@pytest.mark.parametrize("negatives", ["within-slide", "exclude-neighbours"])
def test_negatives(negatives):
    data = training_data()
    one, other = made("bleep"), made("bleep", negatives=negatives)
    for method in (one, other):
        method.fit_parts(data)
    assert not np.array_equal(one.embed(data)["X_stc_image"], other.embed(data)["X_stc_image"])


def test_a_learnt_temperature_is_kept(tmp_path):
    data = training_data()
    method = made("bleep", loss="info_nce", learn_temperature=True, temperature=0.2, learning_rate=0.05)
    method.fit_parts(data)
    learnt = float(method.module.contrast.temperature.detach())
    assert learnt != pytest.approx(0.2, rel=1e-3)
    write_state(tmp_path, method.state())
    again = Bleep(**method.spec)
    again.restore(read_state(tmp_path))
    assert float(again.module.contrast.temperature.detach()) == pytest.approx(learnt)


@pytest.mark.parametrize(("rate", "warned"), [(1e-9, True), (1e-2, False)])
def test_a_warning_where_nothing_is_aligned(rate, warned, caplog):
    options = {"loss": "info_nce", "temperature": 5.0, "normalize": True, "learning_rate": rate, "max_epochs": 12}
    if not warned:
        options |= {"temperature": 0.1}
    made("bleep", **options).fit_parts(training_data())
    assert ("within 2 % of ln(15)" in caplog.text) == warned


def test_the_session_s_random_numbers_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    made("bleep").fit_parts(training_data())
    np.testing.assert_array_equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bleep", {"negatives": "some"}, "Unknown negatives 'some'. Valid options are 'all', 'within-slide'"),
        ("bleep", {"targets": "output"}, "Unknown targets 'output'. Valid options are 'embedding', 'input'"),
        ("bleep", {"metric": "l3"}, "Unknown metric 'l3'"),
        ("bleep", {"weights": "heavy"}, "Unknown weights 'heavy'"),
        ("mclstexp", {"weights": "heavy"}, "Unknown weights 'heavy'"),
        ("bleep", {"decoder": "vae"}, "has no decoder 'vae'. Valid options are 'retrieval', 'regression'"),
        ("bleep", {"max_steps": 0}, "`max_steps` must be a whole number of at least 1, found 0"),
        ("bleep", {"k": 0}, "`k` must be a whole number of at least 1, found 0"),
        ("bleep", {"temperature": 0.0}, "`temperature` must be a finite number above 0"),
        ("bleep", {"dropout": 1.0}, "`dropout` must be a finite number of at least 0 and below 1"),
        (
            "bleep",
            {"epochs": 3},
            r"Unknown options \['epochs'\] of the method 'bleep'. Valid options are .*'max_epochs'",
        ),
        ("nh2st", {"variant": "best"}, "Unknown variant 'best'. Valid options are 'paper', 'code'"),
        ("nh2st", {"n_embedding": 20}, "multiple of twice `n_heads`, found 20 and 8"),
        ("nh2st", {"query_weight": -1.0}, "must be a finite number of at least 0"),
        ("mclstexp", {"max_sequence": 1}, "`max_sequence` must be a whole number of at least 2"),
        ("tpirbae", {"vae_epochs": 0}, "must be a whole number of at least 1"),
    ],
)
def test_options_are_checked_before_any_work(name, options, message):
    with pytest.raises(ValueError, match=message):
        get_method(name, options=options)


def test_a_new_method_is_one_class(tmp_path):
    """It can be fitted, compared, saved and read by name without any other change."""

    @dataclass(frozen=True, kw_only=True)
    class TenthOptions(ContrastiveOptions):
        max_epochs: int = 2
        flavour: str = "plain"

    class Tenth(ContrastiveMethod):
        name: ClassVar[str] = "tenth"
        reference: ClassVar[str] = "this test"
        options_type: ClassVar[type[ContrastiveOptions]] = TenthOptions

        def build(self, *, n_image, n_gene, n_targets):
            del n_targets
            return HeadPair(self.contrast(), n_image=n_image, n_gene=n_gene, n_embedding=8, dropout=0.0)

    try:
        sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=20)
        model = stc.tl.fit(sdata, batch_key="donor", label_key="subtype", method="tenth", options={"flavour": "odd"})
        assert model.spec["method_spec"]["flavour"] == "odd"
        assert {"X_stc_image", "X_stc_gene"} <= set(sdata["table"].obsm)
        model.save(tmp_path / "model")
        new = stc.datasets.toy(n_donors=1, n_spots=40, n_genes=20, seed=1)
        stc.tl.predict_expression(new, stc.models.load(tmp_path / "model"))
        stc.tl.classify(new, model)
        cv = stc.tl.cross_validate(sdata, donor_key="donor", methods=["tenth", "ridge"])
        assert list(cv.summary().index) == ["tenth", "ridge", "ceiling"]
    finally:
        METHODS.pop("tenth")

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

import stcontrast as stc
from stcontrast._files import read_state, write_state
from stcontrast.methods._base import get_method
from stcontrast.methods.published import Bleep
from tests.methods.quick import CONTRASTIVE
from tests.methods.synthetic import training_data


def test_the_published_defaults():
    options = Bleep().options
    assert (options.n_embedding, options.dropout) == (256, 0.1)
    assert (options.loss, options.targets, options.normalize, options.temperature) == (
        "similarity_target", "embedding", False, 1.0,
    )  # fmt: skip
    assert (options.learning_rate, options.weight_decay, options.batch_size) == (1e-3, 1e-3, 512)
    assert (options.decoder, options.k, options.metric, options.weights) == ("retrieval", 50, "cosine", "uniform")


def test_the_repaired_targets_train_other_towers():
    data = training_data()
    common = {"max_epochs": 3, "n_embedding": 8, "temperature": 0.1, "normalize": True}
    one, other = Bleep(**common), Bleep(targets="input", **common)
    for method in (one, other):
        method.fit_parts(data)
    assert not np.array_equal(one.embed(data)["X_stc_image"], other.embed(data)["X_stc_image"])


def test_the_mean_of_the_nearest_by_cosine():
    data = training_data(n_spots=40)
    method = Bleep(max_epochs=3, n_embedding=8, k=11)
    method.fit_parts(data)
    found = method.embed(data)
    order = np.argsort(-(found["X_stc_image"] @ found["X_stc_gene"].T), axis=1)[:, :11]
    mean, of_spot = data.slide_means()
    expected = (data.target - of_spot + mean)[order].mean(axis=1)
    np.testing.assert_allclose(method.predict_expression(data.unseen()), expected, atol=1e-4)


PATHWAYS = {"first": ["gene0", "gene3"], "second": ["gene1", "gene2", "gene1", "absent"]}


def with_pathways(pathways=PATHWAYS, **options):
    return Bleep(**CONTRASTIVE["bleep"], pathways=pathways, **options)


def test_scores_of_pathways_by_hand():
    data = training_data()
    method = with_pathways()
    method.fit_parts(data)
    z = (data.target - data.target.mean(axis=0)) / data.target.std(axis=0)
    scores = np.stack([z[:, [0, 3]].mean(axis=1), z[:, [1, 2]].mean(axis=1)], axis=1)
    expected = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    np.testing.assert_allclose(method.gene_input(data), expected, atol=1e-4)
    assert method.module.gene_head.projection.in_features == 2


def test_genes_outside_the_pathways_do_not_reach_the_gene_embedding():
    data = training_data()
    method = with_pathways()
    method.fit_parts(data)
    before = method.embed(data)["X_stc_gene"]
    for gene, matters in ((4, False), (0, True)):
        target = data.target.copy()
        target[:, gene] += np.arange(90) % 7
        after = method.embed(replace(data, target=target))["X_stc_gene"]
        assert np.array_equal(after, before) != matters


def test_pathways_without_a_modelled_gene(caplog):
    data = training_data()
    with caplog.at_level(logging.WARNING):
        method = with_pathways({"here": ["gene1"], "not here": ["GENE1"]})
        method.fit_parts(data)
    assert "No gene of these pathways is modelled; they are left out: not here." in caplog.text
    assert method.gene_input(data).shape == (90, 1)
    with pytest.raises(ValueError, match=r"No gene of `pathways` is among the 5 genes .* such as gene0, gene1, gene2"):
        with_pathways({"not here": ["GENE1"]}).fit_parts(data)


def test_a_model_with_pathways_is_saved(tmp_path):
    data = training_data()
    method = with_pathways()
    method.fit_parts(data)
    write_state(tmp_path, method.state())
    again = Bleep(**method.spec)
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.predict_expression(data.unseen()), method.predict_expression(data.unseen()))
    np.testing.assert_array_equal(again.embed(data)["X_stc_gene"], method.embed(data)["X_stc_gene"])


def test_pathways_from_slides_to_a_saved_model_and_back(tmp_path):
    sdata = stc.datasets.toy(n_donors=2, n_spots=25, n_genes=20)
    stc.pp.image_features(sdata, encoder="color")
    genes = list(sdata["table"].var_names)
    options = {**CONTRASTIVE["bleep"], "pathways": {"one": genes[:5], "two": tuple(genes[5:9])}}
    model = stc.tl.fit(sdata, batch_key="donor", method="bleep", options=options)
    model.save(tmp_path / "model")
    again = stc.models.load(tmp_path / "model")
    for name, one in (("before", model), ("after", again)):
        stc.tl.predict_expression(sdata, one, key_added=name)
    np.testing.assert_array_equal(sdata["after"].X, sdata["before"].X)


@pytest.mark.parametrize("pathways", [{}, {"one": []}, {"one": "gene1"}, ["gene1"], {"": ["gene1"]}, {"one": [1]}])
def test_what_pathways_may_be(pathways):
    with pytest.raises(ValueError, match="`pathways` must be a mapping from names of pathways to lists of genes"):
        get_method("bleep", options={"pathways": pathways})

"""The data of donors that the reference has not seen."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from stcontrast.models import BatchAgnosticVAE
from tests.models.batch_vae.synthetic import make_adata
from tests.models.batch_vae.test_classes import partly_labelled, trained

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def guided() -> BatchAgnosticVAE:
    from stcontrast import settings

    with settings.override(progress=False):
        return trained(partly_labelled("AB", n_spots=40), max_epochs=8)


def test_a_trained_query_keeps_the_latent_and_decodes_into_its_own_batch(model: BatchAgnosticVAE):
    query = make_adata("D", seed=5)
    expected = model.get_latent_representation(query)
    weight = model.module.decoder.px_decoder.fc_layers[0][0].weight.detach().clone()
    mapped = BatchAgnosticVAE.load_query_data(query, model)
    assert mapped.batches == ["A", "B", "C", "D"]
    errors = []
    for epochs in (1, 40):
        mapped.train(max_epochs=epochs, validation_groups=0, batch_size=32)
        np.testing.assert_allclose(mapped.get_latent_representation(), expected, atol=1e-5)
        measured = query.X.toarray() / query.X.toarray().sum(axis=1, keepdims=True)
        errors.append(np.abs(mapped.decode_latent(expected, transform_batch="D") - measured).mean())
    assert errors[1] < errors[0]
    # the reference is as it was
    assert model.batches == ["A", "B", "C"]
    assert torch.equal(weight, model.module.decoder.px_decoder.fc_layers[0][0].weight)


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_a_reference_on_disk_and_other_genes(
    model: BatchAgnosticVAE, tmp_path: Path, as_type: type, caplog: pytest.LogCaptureFixture
):
    model.save(tmp_path / "model")
    folder = as_type(tmp_path / "model")
    query = make_adata("D", seed=5)[:, 3:].copy()
    assert list(BatchAgnosticVAE.prepare_query_anndata(query, folder, return_reference_var_names=True)) == list(
        model.genes
    )
    prepared = BatchAgnosticVAE.prepare_query_anndata(query, folder, inplace=False)
    assert query.n_vars == 57
    assert BatchAgnosticVAE.prepare_query_anndata(query, folder) is None
    assert list(query.var_names) == list(prepared.var_names) == list(model.genes)
    with caplog.at_level(logging.INFO):
        mapped = BatchAgnosticVAE.load_query_data(query, folder)
    assert "download" not in caplog.text
    mapped.is_trained_ = True
    np.testing.assert_allclose(
        mapped.get_latent_representation(),
        model.get_latent_representation(make_adata("D", seed=5)[:, 3:], fill_missing=True),
        atol=1e-5,
    )


def test_a_guided_query_without_labels(guided: BatchAgnosticVAE):
    query = make_adata("D", seed=5)
    expected, proba = guided.get_latent_representation(query), guided.predict(query, soft=True)
    with pytest.warns(UserWarning, match="Missing labels key label. Filling in with unlabeled category none"):
        mapped = BatchAgnosticVAE.load_query_data(query, guided)
    mapped.train(max_epochs=2, validation_groups=0)
    assert mapped.classes == guided.classes
    np.testing.assert_allclose(mapped.get_latent_representation(), expected, atol=1e-5)
    np.testing.assert_allclose(mapped.predict(soft=True), proba, atol=1e-5)


@pytest.mark.parametrize("freeze", [True, False])
def test_a_guided_query_with_labels(guided: BatchAgnosticVAE, freeze: bool, caplog: pytest.LogCaptureFixture):
    query = make_adata("D", seed=5)
    query.obs["label"] = query.obs["kind"]
    before = guided.module.classifier.weight.detach().clone()
    with caplog.at_level(logging.WARNING, logger="stcontrast"):
        mapped = BatchAgnosticVAE.load_query_data(query, guided, freeze_classifier=freeze)
    # that none of its spots is unlabelled is no surprise
    assert caplog.text == ""
    mapped.train(max_epochs=2, validation_groups=0)
    assert torch.equal(mapped.module.classifier.weight, before) == freeze
    assert torch.equal(guided.module.classifier.weight, before)


def test_a_class_that_the_reference_does_not_know(guided: BatchAgnosticVAE):
    query = make_adata("D", seed=5)
    query.obs["label"] = query.obs["kind"].cat.rename_categories({"kind1": "necrosis"})
    columns, slots = list(query.obs), list(query.uns)
    with pytest.raises(ValueError, match=r"not trained with: \['necrosis'\]. It knows .*'kind1'.* class, 'none'"):
        BatchAgnosticVAE.load_query_data(query, guided)
    assert list(query.obs) == columns
    assert list(query.uns) == slots


def test_a_query_without_its_batch_column(model: BatchAgnosticVAE):
    query = make_adata("D", seed=5)
    query.obs = query.obs.drop(columns=["donor"])
    with pytest.raises(KeyError, match=r"batch_key 'donor' is not in adata\.obs"):
        BatchAgnosticVAE.load_query_data(query, model)


@pytest.mark.parametrize("use", ["load_query_data", "load", "get_normalized_expression"])
@pytest.mark.parametrize(
    ("genes", "told"), [(slice(None, None, -1), "in another order"), ([0, 0], "lacks some")], ids=["order", "others"]
)
def test_genes_that_are_not_in_the_order_of_the_model_are_refused(
    model: BatchAgnosticVAE, use: str, genes: slice | list[int], told: str, tmp_path: Path
) -> None:
    query = make_adata("A", seed=5)
    if isinstance(genes, slice):
        query = query[:, genes].copy()
    else:
        query.var_names = [f"other{i}" for i in range(query.n_vars)]
    folder = tmp_path / "model"
    model.save(folder)
    calls = {
        "load_query_data": lambda: BatchAgnosticVAE.load_query_data(query, model),
        "load": lambda: BatchAgnosticVAE.load(folder, adata=query),
        "get_normalized_expression": lambda: model.get_normalized_expression(query),
    }
    with pytest.raises(ValueError, match=rf"genes .*{told}.*adata\[:, model\.genes\]"):
        calls[use]()


def test_a_query_in_another_order_can_be_prepared(model: BatchAgnosticVAE) -> None:
    query = make_adata("D", seed=5)
    shuffled = query[:, ::-1].copy()
    BatchAgnosticVAE.prepare_query_anndata(shuffled, model)
    mapped = BatchAgnosticVAE.load_query_data(shuffled, model)
    mapped.is_trained = True
    np.testing.assert_allclose(mapped.get_latent_representation(), model.get_latent_representation(query), atol=1e-5)

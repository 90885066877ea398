from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch

from stcontrast.models import BatchAgnosticVAE
from tests.models.batch_vae.synthetic import make_adata

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

KINDS = ["kind0", "kind1", "kind2"]


def partly_labelled(donors: str = "ABC", *, n_spots: int = 80, seed: int = 0, unlabelled: str = "none") -> ad.AnnData:
    """One in three spots has no class."""
    adata = make_adata(donors, n_spots=n_spots, seed=seed)
    label = adata.obs["kind"].astype(str)
    label.iloc[::3] = unlabelled
    adata.obs["label"] = pd.Categorical(label)
    return adata


def trained(adata: ad.AnnData, *, unlabelled: str = "none", max_epochs: int = 30) -> BatchAgnosticVAE:
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor", labels_key="label", unlabeled_category=unlabelled)
    model = BatchAgnosticVAE(adata, n_latent=4, n_hidden=32, class_weight=20.0)
    model.train(max_epochs=max_epochs, validation_groups=0, batch_size=64)
    return model


@pytest.fixture(scope="module")
def guided() -> BatchAgnosticVAE:
    from stcontrast import settings

    with settings.override(progress=False):
        return trained(partly_labelled())


def test_classes_of_an_unseen_donor_that_is_not_set_up(guided: BatchAgnosticVAE, unseen: ad.AnnData):
    before = unseen.copy()
    truth = unseen.obs.pop("kind")
    found = guided.predict(unseen)
    assert found.shape == (80,)
    assert (found == truth.to_numpy().astype(str)).mean() > 0.9
    assert list(unseen.obs) == []
    assert list(unseen.uns) == list(before.uns)
    np.testing.assert_array_equal(unseen.X.toarray(), before.X.toarray())


def test_spots_without_a_class_get_one_of_the_classes(guided: BatchAgnosticVAE):
    hidden = np.arange(0, 240, 3)
    found = guided.predict(indices=hidden)
    assert set(found) <= set(KINDS)
    assert (found == guided.adata.obs["kind"].to_numpy().astype(str)[hidden]).mean() > 0.9


def test_probabilities_by_the_names_of_spots_and_classes(guided: BatchAgnosticVAE, unseen: ad.AnnData):
    proba = guided.predict(unseen, soft=True)
    assert list(proba.index) == list(unseen.obs_names)
    assert set(proba.columns) == set(KINDS) == set(guided.classes)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(proba.idxmax(axis=1).to_numpy(), guided.predict(unseen))
    # the classifier, on the mean of the posterior
    classifier = guided.module.classifier
    latent = guided.get_latent_representation(unseen)
    with torch.no_grad():
        expected = classifier(torch.as_tensor(latent)).softmax(1).numpy()
    np.testing.assert_allclose(proba.to_numpy(), expected, atol=1e-6)


def test_some_spots_in_any_order(guided: BatchAgnosticVAE, unseen: ad.AnnData):
    whole = guided.predict(unseen, soft=True)
    some = guided.predict(unseen, [7, 3, 40], soft=True, batch_size=2)
    pd.testing.assert_frame_equal(some, whole.iloc[[7, 3, 40]], atol=1e-5)
    np.testing.assert_array_equal(guided.predict(unseen, [7, 3, 40]), guided.predict(unseen)[[7, 3, 40]])
    assert guided.predict(unseen, []).shape == (0,)
    assert guided.predict(unseen, [], soft=True).shape == (0, 3)


def test_other_genes_missing_genes_and_a_layer(guided: BatchAgnosticVAE, unseen: ad.AnnData):
    expected = guided.predict(unseen)
    np.testing.assert_array_equal(guided.predict(unseen[:, ::-1]), expected)
    with pytest.raises(ValueError, match="3 of the model's 60 genes are missing"):
        guided.predict(unseen[:, 3:])
    assert (guided.predict(unseen[:, 3:], fill_missing=True) == expected).mean() > 0.8
    unseen.layers["counts"], unseen.X = unseen.X, unseen.X.log1p()
    np.testing.assert_array_equal(guided.predict(unseen, layer="counts"), expected)
    with pytest.raises(ValueError, match=r"does not hold raw counts"):
        guided.predict(unseen)


@pytest.mark.parametrize("name", ["aaa", "kind1b", "zzz"])
def test_classes_have_their_own_names_wherever_that_of_the_others_sorts(name: str, unseen: ad.AnnData):
    model = trained(partly_labelled(unlabelled=name), unlabelled=name)
    assert sorted(model.classes) == KINDS
    assert (model.predict(unseen) == unseen.obs["kind"].to_numpy().astype(str)).mean() > 0.9


def test_the_mode_of_the_module_is_left_as_it_was(guided: BatchAgnosticVAE, unseen: ad.AnnData):
    guided.module.train()
    first = guided.predict(unseen, soft=True)
    assert guided.module.training
    guided.module.eval()
    pd.testing.assert_frame_equal(guided.predict(unseen, soft=True), first)


def test_a_model_loaded_without_its_data_names_classes(guided: BatchAgnosticVAE, unseen: ad.AnnData, tmp_path: Path):
    guided.save(tmp_path / "model")
    loaded = BatchAgnosticVAE.load(tmp_path / "model")
    assert loaded.classes == guided.classes
    pd.testing.assert_frame_equal(loaded.predict(unseen, soft=True), guided.predict(unseen, soft=True), atol=1e-6)
    with pytest.raises(ValueError, match="loaded without its training data; pass the data"):
        loaded.predict()


def test_without_guidance_the_message_says_how_to_get_it(model: BatchAgnosticVAE, unseen: ad.AnnData):
    assert model.classes == []
    with pytest.raises(
        ValueError, match=r"was trained without classes: give labels_key and unlabeled_category.*class_weight"
    ):
        model.predict(unseen)
    with pytest.raises(RuntimeError, match="there is no classifier"):
        model.module.classify(torch.zeros(1, 6))


def test_untrained():
    adata = partly_labelled("A", n_spots=40)
    BatchAgnosticVAE.setup_anndata(adata, labels_key="label", unlabeled_category="none")
    with pytest.raises(RuntimeError, match="train"):
        BatchAgnosticVAE(adata, class_weight=1.0).predict()

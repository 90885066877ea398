from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.module import VAE
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from stcontrast._models.batch_vae import BatchAgnosticVAEModule
from stcontrast.models import BatchAgnosticVAE

if TYPE_CHECKING:
    from pathlib import Path

N_GENES, N_CLASSES, UNLABELED = 12, 3, 3


def make_module(class_weight: float, n_labels: int = N_CLASSES + 1) -> BatchAgnosticVAEModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BatchAgnosticVAEModule(
            N_GENES, n_batch=2, n_labels=n_labels, n_hidden=16, n_latent=4, class_weight=class_weight
        ).eval()


def make_tensors(labels: list[int]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    n = len(labels)
    return {
        REGISTRY_KEYS.X_KEY: torch.poisson(3 * torch.rand(n, N_GENES, generator=generator), generator=generator),
        REGISTRY_KEYS.BATCH_KEY: torch.randint(2, (n, 1), generator=generator),
        REGISTRY_KEYS.LABELS_KEY: torch.tensor(labels)[:, None],
    }


def outputs_of(module: BatchAgnosticVAEModule, tensors: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inference = module.inference(**module._get_inference_input(tensors))
    return inference, module.generative(**module._get_generative_input(tensors, inference))


def loss_of(module: BatchAgnosticVAEModule, tensors: dict[str, torch.Tensor], kl_weight: float = 1.0) -> float:
    return module.loss(tensors, *outputs_of(module, tensors), kl_weight=kl_weight).loss.item()


def entropies(module: BatchAgnosticVAEModule, tensors: dict[str, torch.Tensor]) -> list[float]:
    z = outputs_of(module, tensors)[0]["z"].detach().double().numpy()
    assert module.classifier is not None
    weight, bias = (p.detach().double().numpy() for p in (module.classifier.weight, module.classifier.bias))
    found = []
    for point, label in zip(z, tensors[REGISTRY_KEYS.LABELS_KEY].flatten().tolist(), strict=True):
        logits = weight @ point + bias
        # a spot without a class costs nothing
        found.append(0.0 if label == UNLABELED else float(np.log(np.exp(logits).sum()) - logits[label]))
    return found


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1], [0, 3, 2, 3, 3], [3, 3, 3, 3, 1]])
@pytest.mark.parametrize("class_weight", [0.5, 20.0])
@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
def test_the_loss_is_that_of_scvi_plus_the_mean_cross_entropy(labels, class_weight, kl_weight):
    module, tensors = make_module(class_weight), make_tensors(labels)
    plain = VAE.loss(module, tensors, *outputs_of(module, tensors), kl_weight=kl_weight)
    expected = plain.loss.item() + class_weight * np.mean(entropies(module, tensors))
    assert loss_of(module, tensors, kl_weight) == pytest.approx(expected, rel=1e-5)


def test_the_parts_of_the_likelihood_stay_as_they_are():
    module, tensors = make_module(5.0), make_tensors([0, 1, 3, 2])
    outputs = outputs_of(module, tensors)
    guided, plain = module.loss(tensors, *outputs), VAE.loss(module, tensors, *outputs)
    torch.testing.assert_close(
        guided.reconstruction_loss["reconstruction_loss"], plain.reconstruction_loss["reconstruction_loss"]
    )
    assert torch.equal(guided.kl_local["kl_divergence_z"], plain.kl_local["kl_divergence_z"])
    assert guided.n_obs_minibatch == plain.n_obs_minibatch == 4


def test_spots_without_a_class_add_nothing():
    module, tensors = make_module(5.0), make_tensors([UNLABELED] * 6)
    outputs = outputs_of(module, tensors)
    guided, plain = module.loss(tensors, *outputs), VAE.loss(module, tensors, *outputs)
    assert guided.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)
    guided.loss.backward()
    assert float(module.classifier.weight.grad.abs().max()) == 0
    assert all(bool(p.grad.isfinite().all()) for p in module.z_encoder.parameters() if p.grad is not None)


def test_gradient_of_the_classes_reaches_the_encoder():
    gradients = []
    for labels in ([0, 0, 0], [1, 1, 1]):
        module, tensors = make_module(5.0), make_tensors(labels)
        module.loss(tensors, *outputs_of(module, tensors)).loss.backward()
        gradients.append(module.z_encoder.mean_encoder.weight.grad.clone())
    assert float((gradients[0] - gradients[1]).abs().max()) > 1e-3


def test_without_weight_labels_are_ignored():
    module = make_module(0.0)
    assert module.classifier is None
    assert loss_of(module, make_tensors([0, 1, 2])) == loss_of(module, make_tensors([3, 3, 1]))


def test_a_module_without_classes_has_no_classifier():
    assert make_module(2.0, n_labels=1).classifier is None


def hidden_classes(donors: str = "ABC", n_spots: int = 80, seed: int = 0) -> ad.AnnData:
    """Two classes that differ in six genes a little, under two gradients that move all other genes a lot."""
    rng = np.random.default_rng(seed)
    n = n_spots * len(donors)
    kind, gradients = rng.integers(2, size=n), rng.normal(size=(n, 2))
    loadings = np.random.default_rng(7).normal(size=(2, 40))
    loadings[:, :6] = 0
    log_rate = 1.5 + 0.8 * gradients @ loadings
    log_rate[:, :3] += 0.5 * kind[:, None]
    log_rate[:, 3:6] -= 0.5 * kind[:, None]
    donor = np.repeat(list(donors), n_spots)
    log_rate += np.stack([0.2 * np.random.default_rng(ord(name)).normal(size=40) for name in donor])
    label = np.where(rng.random(n) < 0.3, "none", np.array(["left", "right"])[kind])
    obs = pd.DataFrame(
        {"donor": donor, "truth": kind, "label": pd.Categorical(label)}, index=[f"{d}{i}" for i, d in enumerate(donor)]
    )
    counts = rng.poisson(np.exp(log_rate)).astype(np.float32)
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(40)]))


def trained(adata: ad.AnnData, class_weight: float, max_epochs: int = 40) -> BatchAgnosticVAE:
    adata = adata.copy()
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor", labels_key="label", unlabeled_category="none")
    model = BatchAgnosticVAE(adata, n_latent=2, n_hidden=32, class_weight=class_weight)
    model.train(max_epochs=max_epochs, validation_groups=0, batch_size=32, plan_kwargs={"lr": 5e-3})
    return model


@pytest.fixture(scope="module")
def guided() -> BatchAgnosticVAE:
    return trained(hidden_classes(), 50.0)


def accuracy(model: BatchAgnosticVAE, classifier: Any) -> float:
    """Of a classifier of the latent, on a donor that the model has not seen and whose classes it is not told."""
    train, test = hidden_classes(), hidden_classes("D", n_spots=200, seed=5)
    known = train[train.obs["label"] != "none"]
    classifier.fit(model.get_latent_representation(known.copy()), known.obs["truth"])
    bare = ad.AnnData(test.X, var=test.var)
    return float(classifier.score(model.get_latent_representation(bare), test.obs["truth"]))


@pytest.mark.parametrize("classifier", [LogisticRegression(), KNeighborsClassifier(15)])
def test_guidance_separates_the_classes_of_an_unseen_donor(guided: BatchAgnosticVAE, classifier: Any):
    with_classes, without = accuracy(guided, classifier), accuracy(trained(hidden_classes(), 0.0), classifier)
    assert with_classes > 0.75
    assert with_classes > without + 0.15


def test_the_classifier_knows_the_classes_and_not_the_category_of_those_without(guided: BatchAgnosticVAE):
    assert guided.module.classifier.out_features == 2
    train = hidden_classes()
    latent = torch.as_tensor(guided.get_latent_representation(train))
    predicted = guided.module.classifier(latent).argmax(dim=1).numpy()
    hidden = (train.obs["label"] == "none").to_numpy()
    assert (predicted == train.obs["truth"])[hidden].mean() > 0.65


def test_the_name_of_the_category_of_those_without_a_class_does_not_matter():
    """Whether it sorts before, between or behind the classes, and whether any spot has it."""
    latents = []
    for name in ("aaa", "middle", "zzz"):
        adata = hidden_classes("AB", n_spots=20)
        adata.obs["label"] = adata.obs["label"].cat.rename_categories({"none": name})
        BatchAgnosticVAE.setup_anndata(adata, batch_key="donor", labels_key="label", unlabeled_category=name)
        model = BatchAgnosticVAE(adata, n_latent=2, n_hidden=8, class_weight=10.0)
        assert model.module.classifier.out_features == 2
        model.train(max_epochs=2, validation_groups=0)
        latents.append(model.get_latent_representation())
    np.testing.assert_array_equal(latents[0], latents[1])
    np.testing.assert_array_equal(latents[0], latents[2])


def test_every_spot_may_have_a_class():
    adata = hidden_classes("AB", n_spots=20)
    adata = adata[adata.obs["label"] != "none"].copy()
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor", labels_key="label", unlabeled_category="none")
    model = BatchAgnosticVAE(adata, n_latent=2, n_hidden=8, class_weight=10.0)
    assert model.module.classifier.out_features == 2
    model.train(max_epochs=1, validation_groups=0)
    assert np.isfinite(model.get_latent_representation()).all()


def test_the_truth_of_spots_without_a_class_never_enters():
    latents = []
    for seed in (0, 1):
        adata = hidden_classes("AB", n_spots=30)
        hidden = (adata.obs["label"] == "none").to_numpy()
        truth = adata.obs["truth"].to_numpy().copy()
        truth[hidden] = np.random.default_rng(seed).integers(2, size=hidden.sum())
        adata.obs["truth"] = truth
        latents.append(trained(adata, 10.0, max_epochs=2).get_latent_representation())
    np.testing.assert_array_equal(latents[0], latents[1])


def test_the_classes_do_enter():
    latents = []
    for flip in (False, True):
        adata = hidden_classes("AB", n_spots=30)
        if flip:
            known = np.flatnonzero(adata.obs["label"] != "none")[:10]
            adata.obs.iloc[known, adata.obs.columns.get_loc("label")] = "left"
        latents.append(trained(adata, 10.0, max_epochs=2).get_latent_representation())
    assert np.abs(latents[0] - latents[1]).max() > 1e-4


def test_save_and_load(guided: BatchAgnosticVAE, tmp_path: Path):
    guided.save(tmp_path / "model")
    new = ad.AnnData(hidden_classes("D", n_spots=10).X, var=hidden_classes("D", n_spots=10).var)
    expected = guided.get_latent_representation(new)
    loaded = BatchAgnosticVAE.load(tmp_path / "model")
    assert loaded.module.class_weight == 50.0
    assert torch.equal(loaded.module.classifier.weight, guided.module.classifier.weight)
    np.testing.assert_allclose(loaded.get_latent_representation(new), expected, atol=1e-6)
    again = BatchAgnosticVAE.load(tmp_path / "model", hidden_classes())
    again.train(max_epochs=1, validation_groups=0)
    assert np.isfinite(again.get_latent_representation(new)).all()


@pytest.mark.parametrize("labels_key", [None, "label"])
def test_a_weight_without_classes_is_refused(labels_key):
    adata = hidden_classes("AB", n_spots=20)
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor", labels_key=labels_key)
    with pytest.raises(ValueError, match="class_weight needs classes: give labels_key and unlabeled_category"):
        BatchAgnosticVAE(adata, class_weight=1.0)


def test_a_category_without_a_column_is_refused():
    adata = hidden_classes("AB", n_spots=5)
    with pytest.raises(ValueError, match="unlabeled_category needs labels_key"):
        BatchAgnosticVAE.setup_anndata(adata, batch_key="donor", unlabeled_category="none")


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_must_not_be_negative_or_infinite(weight):
    adata = AnnData(np.ones((6, 3), dtype=np.float32))
    BatchAgnosticVAE.setup_anndata(adata)
    with pytest.raises(ValueError, match="must be a finite number of at least 0"):
        BatchAgnosticVAE(adata, class_weight=weight)


def test_classes_have_to_be_there(caplog):
    adata = AnnData(np.ones((6, 3), dtype=np.float32))
    adata.obs["kind"] = ["none"] * 6
    BatchAgnosticVAE.setup_anndata(adata, labels_key="kind", unlabeled_category="none")
    with pytest.raises(ValueError, match="every spot is unlabelled"):
        BatchAgnosticVAE(adata, class_weight=1.0)
    adata.obs["kind"] = ["a"] * 3 + ["none"] * 3
    BatchAgnosticVAE.setup_anndata(adata, labels_key="kind", unlabeled_category="nonne")
    assert "every spot counts as labelled. Its values are ['a', 'none']" in caplog.text

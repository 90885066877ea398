"""A tower that is trained by the loss of the method itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.special import erf

from stcontrast._data import inner_folds
from stcontrast._models.image_tower import CropRows, TowerOptions
from stcontrast._models.image_tower.batches import SpotBatches, TowerTargets
from stcontrast._models.image_tower.cross_fit import cross_fit
from stcontrast._models.image_tower.encoder import weights_sha256
from stcontrast._models.image_tower.module import PairHeads, TowerBatch
from stcontrast._models.image_tower.training import Task, train_tower
from stcontrast.methods._base import get_method
from tests.models.image_tower.synthetic import QUICK, encoder, spots, store_of, tower

ROWS = np.arange(48)
METHODS: dict[str, dict[str, Any]] = {
    "bleep": {},
    "mclstexp": {"fast": True},
    "tpirbae": {"n_latent": 3, "vae_epochs": 2},
}


def targets_of(name: str, rows: np.ndarray[Any, Any] = ROWS, **options: Any) -> TowerTargets:
    method: Any = get_method(name, options={**METHODS[name], **options})
    return TowerTargets.of_method(spots(), rows, method)


def batch_of(targets: TowerTargets, rows: np.ndarray[Any, Any]) -> TowerBatch:
    parts = (targets.gene, targets.measured, targets.label, targets.slide, targets.lattice)
    return TowerBatch(torch.zeros(len(rows), 0), *(torch.from_numpy(part[rows]) for part in parts))


def heads_of(targets: TowerTargets, **how: Any) -> PairHeads:
    torch.manual_seed(1)
    found = targets.heads(n_features=5, center=True, options=TowerOptions(**{**QUICK, "loss": "method", **how}))
    assert isinstance(found, PairHeads)
    return found.eval()


def projected(head: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A projection head, written with NumPy."""
    (w, b), (w2, b2), (scale, shift) = (
        [part.detach().double().numpy() for part in layer.parameters()]
        for layer in head.modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.LayerNorm)
    )
    p = x @ w.T + b
    h = (p * (1 + erf(p / math.sqrt(2))) / 2) @ w2.T + b2 + p
    return (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5) * scale + shift


def log_softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)


def test_the_loss_of_bleep_is_its_formula_on_centred_features() -> None:
    targets = targets_of("bleep", temperature=20.0)
    rows = np.arange(32)  # two slides, some spots without counts
    heads, given = heads_of(targets), batch_of(targets, rows)
    features = torch.randn(32, 5, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    found = heads.losses(features, given)
    seen = targets.measured[rows]
    x, slide = features.double().numpy()[seen], targets.slide[rows][seen]
    for code in (0, 1):
        x[slide == code] -= x[slide == code].mean(axis=0)
    # (the running statistics of the norm are still 0 and 1)
    x /= math.sqrt(1 + 1e-5)
    pair: Any = heads.pair
    image, gene = projected(pair.image_head, x), projected(pair.gene_head, targets.gene[rows][seen].astype(float))
    logits, wanted = gene @ image.T / 20, np.exp(log_softmax((image @ image.T + gene @ gene.T) / 2 / 20))
    expected = -((wanted * log_softmax(logits)).sum(1) + (wanted.T * log_softmax(logits.T)).sum(1)).mean() / 2
    assert set(found) == {"contrastive"}
    np.testing.assert_allclose(float(found["contrastive"].detach()), expected, rtol=1e-4)
    assert heads.total(found) == found["contrastive"]


@pytest.mark.parametrize("name", ["mclstexp", "tpirbae"])
def test_images_that_are_all_alike_cost_the_logarithm_of_their_number(name: str) -> None:
    targets = targets_of(name)
    rows = np.arange(32)
    with torch.no_grad():
        found = heads_of(targets).losses(torch.ones(32, 5), batch_of(targets, rows))["contrastive"]
    # one direction is at chance; with all images alike, so is the softmax over images; the other is over genes, each of
    # which is as near to every image
    n = int(targets.measured[rows].sum())
    assert n < 32
    logits = _gene_logits(targets, rows, heads_of(targets))
    expected = (math.log(n) - log_softmax(np.tile(logits, (n, 1)))[np.arange(n), np.arange(n)].mean()) / 2
    np.testing.assert_allclose(float(found), expected, rtol=1e-4)


def _gene_logits(targets: TowerTargets, rows: np.ndarray[Any, Any], heads: PairHeads) -> np.ndarray[Any, Any]:
    """Of one image, which all have: its logits with the genes of every spot."""
    batch, pair = batch_of(targets, rows), heads.pair
    seen = batch.measured
    table = replace(targets.table(rows[seen.numpy()]), image=torch.zeros(int(seen.sum()), 5), gene=batch.gene[seen])
    order = torch.arange(len(table))
    with torch.no_grad():
        gene, image = pair.embed_genes(table, order), pair.embed_image(table, order)
        if pair.contrast.normalize:
            gene, image = (torch.nn.functional.normalize(part, dim=1) for part in (gene, image))
        return (gene @ image[0] / pair.contrast.temperature).double().numpy()


def test_the_loss_pulls_on_the_features() -> None:
    for name in METHODS:
        targets = targets_of(name)
        features = torch.randn(32, 5, requires_grad=True)
        batch = batch_of(targets, np.arange(32))
        heads_of(targets).losses(features, batch)["contrastive"].backward()  # type: ignore[no-untyped-call]
        assert features.grad is not None
        moved = features.grad.abs().sum(dim=1) > 0
        assert torch.equal(moved, batch.measured), name


def test_one_pair_has_no_loss() -> None:
    targets = targets_of("bleep")
    batch = batch_of(targets, np.array([1]))
    assert float(heads_of(targets).losses(torch.randn(1, 5), batch)["contrastive"]) == 0


def test_batches_are_those_of_the_method() -> None:
    targets = targets_of("mclstexp")
    rows = np.flatnonzero(targets.measured)
    pair = heads_of(targets).pair
    batches = SpotBatches(rows, 8, seed=0, draw=lambda: pair.batches(targets.table(rows), 8))
    drawn = list(batches)
    assert len(drawn) == len(batches) == 5
    assert all(len(set(targets.slide[part])) == 1 for part in drawn)
    np.testing.assert_array_equal(np.sort(np.concatenate(drawn)), rows)
    np.testing.assert_array_equal(np.concatenate(drawn), np.concatenate(list(batches)))
    batches.set_epoch(1)
    assert not np.array_equal(np.concatenate(drawn), np.concatenate(list(batches)))


@pytest.mark.parametrize("name", ["bleep", "tpirbae"])
def test_the_gene_side_is_fitted_on_the_training_rows_alone(name: str) -> None:
    options = {"pathways": {"one": ["gene0", "gene1"], "two": ["gene4"]}} if name == "bleep" else {}
    rows = np.arange(32)
    before = targets_of(name, rows, **options)
    data = spots()
    counts = data.counts.toarray()
    counts[32:] = np.random.default_rng(0).poisson(50, counts[32:].shape)
    changed = replace(data, counts=sparse.csr_matrix(counts), observed=np.log1p(counts), target=np.log1p(counts))
    method: Any = get_method(name, options={**METHODS[name], **options})
    after = TowerTargets.of_method(changed, rows, method)
    np.testing.assert_array_equal(before.gene[rows], after.gene[rows])
    there = np.flatnonzero(before.measured)
    assert not np.array_equal(before.gene[there[there >= 32]], after.gene[there[there >= 32]])
    assert not before.gene[~before.measured].any()


def test_training_lowers_the_method_s_loss_and_repeats_itself() -> None:
    how = TowerOptions(**{**QUICK, "loss": "method", "epochs": 6, "learning_rate": 3e-3, "batch_norm": "adapted"})
    found = []
    for _ in range(2):
        with store_of(spots()) as store:
            part = tower(how)
            task = Task(CropRows(store, ROWS), targets_of("bleep", temperature=20.0), ROWS, None, center=True, seed=0)
            found.append((train_tower(part, task, how), weights_sha256(part.backbone)))
    [(losses, weights), (_, again)] = found
    assert set(losses[0]) == {"epoch", "contrastive", "loss"}
    assert losses[-1]["contrastive"] < losses[0]["contrastive"]
    assert weights == again


def test_a_fold_without_counts_keeps_its_encoder_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    data = spots()
    folds = inner_folds(data)
    data.depth[16:] = 0
    how = TowerOptions(**{**QUICK, "loss": "method", "epochs": 2, "stop": "held-out"})
    base = encoder()
    with store_of(data) as store:
        found = cross_fit(
            base, CropRows(store, ROWS), data, folds, how, center=True, seed=0,
            method=lambda: get_method("bleep"),  # type: ignore[arg-type,return-value]
        )  # fmt: skip
        untuned = [part.spec["sha256"] == weights_sha256(base._model) for part in (*found.of_fold, found.encoder)]
        holds_out_all = [bool((data.slide[fold.held_out] == 0).any()) for fold in folds]
        assert untuned == [*holds_out_all, False]
        assert sum(untuned) == 1
        name = f"fold{untuned.index(True)}"
        assert f"No counts outside the held-out group of {name}: its encoder stays as it was." in caplog.text
        data.depth[:] = 0
        with pytest.raises(ValueError, match="at least two spots with counts; final has 0"):
            cross_fit(
                base, CropRows(store, ROWS), data, folds, how, center=True, seed=0,
                method=lambda: get_method("bleep"),  # type: ignore[arg-type,return-value]
            )  # fmt: skip

from __future__ import annotations

import pytest
import torch

from stcontrast._models.contrastive import ContrastiveModule
from stcontrast._models.contrastive.module import Batch, ContrastiveConfig
from stcontrast._training import seeded
from stcontrast.nn import info_nce, similarity_target_loss


def module(**hyper):
    with seeded(0):
        made = ContrastiveModule(
            ContrastiveConfig(**{"n_image": 6, "n_gene": 4, "n_targets": 3, "n_classes": 2, "n_embedding": 8, **hyper})
        )
        torch.nn.init.normal_(made.decoder.weight)
    return made.eval()


@pytest.fixture
def batch() -> Batch:
    with seeded(1):
        return Batch(
            torch.randn(5, 6), torch.randn(5, 4), torch.randn(5, 3),
            torch.tensor([True, True, True, False, False]), torch.tensor([0, -1, 1, 1, -1]),
        )  # fmt: skip


@pytest.mark.parametrize("loss", ["info_nce", "similarity_target"])
def test_parts_of_the_loss(batch, loss):
    made = module(loss=loss, contrastive_weight=0.3, subtype_weight=2.0)
    parts = made.losses(batch)
    image, gene = made.image_tower(batch.image), made.gene_tower(batch.gene)
    expected = ((made.decoder(image)[:3] - batch.target[:3]) ** 2).mean()
    torch.testing.assert_close(parts["expression"], expected)
    if loss == "info_nce":
        contrast = info_nce(gene[:3], image[:3], temperature=0.1)
    else:
        inputs = (batch.gene[:3], batch.image[:3])
        contrast = similarity_target_loss(gene[:3], image[:3], temperature=0.1, normalize=True, targets_from=inputs)
    torch.testing.assert_close(parts["contrastive"], contrast)
    labelled = [0, 2, 3]
    log_proba = made.subtype_head(image).log_softmax(dim=1)
    torch.testing.assert_close(parts["subtype"], -log_proba[labelled, batch.label[labelled]].mean())
    total = parts["expression"] + 0.3 * parts["contrastive"] + 2 * parts["subtype"]
    torch.testing.assert_close(made.total(parts), total)


def test_absent_parts_are_left_out(batch):
    nothing = batch._replace(measured=torch.zeros(5, dtype=torch.bool), label=torch.full((5,), -1))
    made = module()
    assert made.losses(nothing) == {}
    assert float(made.total({}).detach()) == 0.0
    one = batch._replace(measured=torch.tensor([True, False, False, False, False]))
    assert "contrastive" not in made.losses(one)
    assert "contrastive" not in module(contrastive_weight=0.0).losses(batch)


def test_every_tower_gets_a_gradient(batch):
    made = module()
    made.total(made.losses(batch)).backward()
    for part in (made.image_tower, made.gene_tower, made.decoder, made.subtype_head):
        assert all(float(p.grad.abs().sum()) > 0 for p in part.parameters())


def test_means_are_weighted_by_spots():
    made = module()
    made.record("train", {"expression": torch.tensor(1.0)}, torch.tensor(2.0), n=3)
    made.record("train", {"expression": torch.tensor(5.0)}, torch.tensor(4.0), n=1)
    assert made.epoch_means() == {"train_expression": 2.0, "train_loss": 2.5}

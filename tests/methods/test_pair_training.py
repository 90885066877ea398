from __future__ import annotations

import numpy as np
import pytest
import torch

from stcontrast._models.contrastive import embed_pairs, train_pairs
from stcontrast._training import seeded
from stcontrast.nn import Contrast, HeadPair, SpotTable


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(48, 5)).astype(np.float32)
    return SpotTable.of(image, np.repeat([0, 1], 24), rng.uniform(size=(48, 2)), gene=image[:, :3])


def made() -> HeadPair:
    with seeded(0):
        return HeadPair(Contrast(), n_image=5, n_gene=3, n_embedding=8, dropout=0.0)


def adam(module):
    return torch.optim.Adam(module.parameters(), lr=1e-2), None


def test_the_contrast_falls_and_is_noted_every_epoch(table):
    module = made()
    with seeded(0):
        history = train_pairs(module, table, batch_size=16, max_epochs=15, optimizer=adam)
    assert list(history["epoch"]) == list(range(1, 16))
    np.testing.assert_allclose(history["chance"], np.log(16))
    assert history["contrastive"].iloc[-1] < 0.7 * history["contrastive"].iloc[0]
    assert not module.training


def test_it_is_the_same_as_a_plain_loop(table):
    module, plain = made(), made()
    with seeded(5):
        train_pairs(module, table, batch_size=64, max_epochs=3, optimizer=adam)
    optimizer = adam(plain)[0]
    with seeded(5):
        for _ in range(3):
            for rows in plain.batches(table, 64):
                optimizer.zero_grad()
                plain.losses(table, rows)["contrastive"].backward()
                optimizer.step()
    for name, value in module.state_dict().items():
        # one batch an epoch, in whatever order
        torch.testing.assert_close(plain.state_dict()[name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("max_steps", [1, 4, 7])
def test_a_number_of_steps_instead_of_epochs(table, max_steps):
    taken = []

    class Counted(torch.optim.SGD):
        def step(self, *args, **kwargs):
            taken.append(1)
            return super().step(*args, **kwargs)

    def counted(module):
        return Counted(module.parameters(), lr=1e-2), None

    # three steps an epoch
    history = train_pairs(made(), table, batch_size=16, max_epochs=50, max_steps=max_steps, optimizer=counted)
    assert len(taken) == max_steps
    assert len(history) == -(-max_steps // 3)


def test_weights_of_the_losses(table):
    class Weighted(HeadPair):
        weights = {"contrastive": 0.0}  # noqa: RUF012

    with seeded(0):
        module = Weighted(Contrast(), n_image=5, n_gene=3, n_embedding=8, dropout=0.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    train_pairs(module, table, batch_size=16, max_epochs=2, optimizer=adam)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_embeddings_come_back_in_the_order_of_the_table(table, monkeypatch):
    module = made()
    monkeypatch.setattr("stcontrast._models.contrastive.training.EMBEDDED_AT_ONCE", 7)
    found = embed_pairs(module, table, module.embed_image)
    torch.testing.assert_close(found, module.embed_image(table, torch.arange(48)).detach())
    with pytest.raises(RuntimeError, match="no regression of its own"):
        embed_pairs(module, table, module.regress)

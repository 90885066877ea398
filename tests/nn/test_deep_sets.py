from __future__ import annotations

import numpy as np
import pytest
import torch

from stcontrast.nn import DeepSets, SpotTable

N_IMAGE, N_TARGETS, N_HIDDEN = 5, 3, 4


def made(n_members: int = 3) -> DeepSets:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = DeepSets(n_image=N_IMAGE, n_targets=N_TARGETS, n_hidden=N_HIDDEN, dropout=0.3, n_members=n_members)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
    return module.eval()


def spots(n_nearest: int = 7) -> SpotTable:
    rng = np.random.default_rng(0)
    xy = np.array([(x, y) for y in range(4) for x in range(5)], dtype=np.float64)
    image, target = (rng.normal(size=(20, n)).astype(np.float32) for n in (N_IMAGE, N_TARGETS))
    return SpotTable.of(image, np.zeros(20, dtype=np.int64), xy, n_nearest=n_nearest, target=target)


def layer(x: np.ndarray, linear: torch.nn.Linear) -> np.ndarray:
    return x @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()


def plain(member, table: SpotTable, row: int) -> np.ndarray:
    image = table.image.numpy()
    own = np.maximum(layer(image[row], member.of_spot[1]), 0)
    others = [np.maximum(layer(image[i], member.of_neighbor[1]), 0) for i in table.near[row].tolist()[1:]]
    hidden = np.maximum(layer(np.concatenate([own, np.max(others, axis=0)]), member.of_both[1]), 0)
    return layer(hidden, member.of_both[3])


@pytest.mark.parametrize("n_members", [1, 2, 3])
def test_the_median_of_deep_sets(n_members):
    module, table, rows = made(n_members), spots(), torch.tensor([4, 0, 19, 7])
    expected = [np.median([plain(m, table, row) for m in module.members], axis=0) for row in rows.tolist()]
    np.testing.assert_allclose(module.regress(table, rows).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_every_member_leaves_out_its_share():
    module, table, rows = made(3), spots(), torch.tensor([4, 0, 19, 7, 8])
    expected = 0.0
    for i, member in enumerate(module.members):
        own = [row for row in rows.tolist() if row % 3 != i]
        errors = [(plain(member, table, row) - table.target[row].numpy()) ** 2 for row in own]
        expected += float(np.mean(errors))
    assert module.losses(table, rows)["expression"].item() == pytest.approx(expected, rel=1e-4)
    loss = module.losses(table, torch.tensor([1, 4, 7]))["expression"]
    loss.backward()
    assert [p.grad is None for p in (m.of_both[3].bias for m in module.members)] == [False, True, False]


def test_one_member_learns_from_all():
    module, table = made(1), spots()
    errors = [(plain(module.members[0], table, row) - table.target[row].numpy()) ** 2 for row in range(20)]
    assert module.losses(table, torch.arange(20))["expression"].item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_the_order_of_the_neighbours_does_not_matter():
    module, table = made(), spots()
    before = module.regress(table, torch.arange(20))
    table.near[:, 1:] = table.near[:, 1:].flip(1)
    torch.testing.assert_close(module.regress(table, torch.arange(20)), before)


def test_a_spot_alone_is_its_own_neighbour():
    module = made()
    table = SpotTable.of(
        np.ones((1, N_IMAGE), dtype=np.float32), np.zeros(1, dtype=np.int64), np.zeros((1, 2)), n_nearest=7
    )
    assert bool(module.regress(table, torch.tensor([0])).isfinite().all())

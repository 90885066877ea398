from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stcontrast.nn import Contrast, MomentumPair, SpotTable, distilled_nce

N_IMAGE, N_GENE, N_TARGETS, N_EMBEDDING = 7, 4, 3, 6


def table() -> SpotTable:
    rng = np.random.default_rng(0)
    xy = np.array([(x, y) for y in range(3) for x in range(4)], dtype=np.float64)
    image, gene, target = (rng.normal(size=(12, n)).astype(np.float32) for n in (N_IMAGE, N_GENE, N_TARGETS))
    return SpotTable.of(image, np.repeat([0, 1], 6), xy, gene=gene, target=target)


def made(**how) -> MomentumPair:
    options = {"momentum": 0.75, "queue_size": 6, "distillation": 0.4, **how}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MomentumPair(
            Contrast(temperature=0.2), n_image=N_IMAGE, n_gene=N_GENE, n_targets=N_TARGETS, n_fields=2,
            n_embedding=N_EMBEDDING, dropout=0.0, n_layers=1, n_heads=2, weights={}, **options,
        )  # fmt: skip


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def moved(module: MomentumPair) -> None:
    with torch.no_grad():
        for parameter in module.heads.parameters():
            parameter.add_(1.0)


def test_the_copies_start_as_the_heads_and_follow_them():
    module = made()
    start = [p.clone() for p in module.heads.parameters()]
    for old, new in zip(module.teachers.parameters(), start, strict=True):
        torch.testing.assert_close(old, new)
    moved(module)
    module.follow()
    for old, new in zip(module.teachers.parameters(), start, strict=True):
        torch.testing.assert_close(old, new + 0.25)
    module.follow()
    for old, new in zip(module.teachers.parameters(), start, strict=True):
        torch.testing.assert_close(old, new + 1 - 0.75**2)


def test_the_copies_have_no_gradient():
    module = made().train()
    torch.stack(list(module.losses(table(), rows(0, 3, 5)).values())).sum().backward()
    assert all(p.grad is None for p in module.teachers.parameters())
    assert all(p.grad is not None for p in module.heads.parameters())


def test_the_queue_holds_the_newest_embeddings_of_the_copies():
    module, spots = made().train(), table()
    module.losses(spots, rows(0, 1, 2, 3))
    assert module.queued.tolist() == [0, 1, 2, 3]
    module.losses(spots, rows(8, 9, 10, 11))
    assert module.queued.tolist() == [8, 9, 10, 11, 0, 1]
    newest = module.teachers["gene"](spots.gene[8:12])
    torch.testing.assert_close(module.queue[0, :4], newest / newest.norm(dim=1, keepdim=True))
    newest = module.teachers["image"](spots.image[8:12])
    torch.testing.assert_close(module.queue[1, :4], newest / newest.norm(dim=1, keepdim=True))


def test_evaluation_moves_nothing():
    module, spots = made().train(), table()
    module.losses(spots, rows(0, 1, 2, 3))
    moved(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.eval().losses(spots, rows(4, 5))
    assert module.queued.tolist() == [0, 1, 2, 3]
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_a_batch_is_compared_with_itself_and_the_queue_without_its_own_earlier_spots():
    module, spots = made().train(), table()
    module.losses(spots, rows(0, 1, 2, 3))
    moved(module)
    module.eval()
    batch = rows(2, 7)

    def unit(of, side):
        return torch.nn.functional.normalize(of[side](getattr(spots, side)[batch]), dim=1)

    # a third of the spots have been seen: a third of the share
    how = {"temperature": 0.2, "share": 0.4 * 4 / 12, "allowed": torch.tensor([[1, 1, 1, 1, 0, 1], [1] * 6]).bool()}
    genes, images = (
        torch.cat([unit(module.teachers, side), module.queue[i]]) for i, side in enumerate(("gene", "image"))
    )
    expected = (
        distilled_nce(unit(module.heads, "image"), genes, unit(module.teachers, "image"), **how)
        + distilled_nce(unit(module.heads, "gene"), images, unit(module.teachers, "gene"), **how)
    ) / 2
    found = module.losses(spots, batch)["contrastive"]
    torch.testing.assert_close(found, expected)
    assert module.chance(spots, batch) == pytest.approx(math.log(5.5))


def test_pseudo_targets_come_in_over_the_first_pass():
    spots = table()
    with_teacher, without = made(queue_size=0).train(), made(queue_size=0, distillation=0.0).train()
    for part in (rows(0, 1, 2, 3, 4, 5), rows(6, 7, 8, 9, 10, 11)):
        found = [module.losses(spots, part)["contrastive"].item() for module in (with_teacher, without)]
        assert (found[0] == pytest.approx(found[1])) == (int(part[0]) == 0)


def test_the_queue_is_no_part_of_what_is_saved():
    module = made().train()
    module.losses(table(), rows(0, 1, 2))
    assert not any("queue" in name for name in module.state_dict())
    again = made()
    again.load_state_dict(module.state_dict())
    spots, all_rows = table(), torch.arange(12)
    torch.testing.assert_close(again.eval().regress(spots, all_rows), module.eval().regress(spots, all_rows))


def test_the_decoder_asks_the_fields():
    module, spots = made().eval(), table()
    batch = rows(1, 5, 9)
    tokens = torch.stack([module.tokens[0](spots.image[batch, :4]), module.tokens[1](spots.image[batch, 4:])], dim=1)
    decoded = module.decoder(module.asked.repeat(3, 1, 1), tokens).reshape(3, -1)
    expected = decoded @ module.expression.weight.T + module.expression.bias
    torch.testing.assert_close(module.regress(spots, batch), expected)
    error = module.losses(spots, batch)["expression"]
    torch.testing.assert_close(error, ((expected - spots.target[batch]) ** 2).mean())

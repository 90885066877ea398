from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stcontrast.nn import (
    Contrast,
    PairModule,
    SpotTable,
    info_nce,
    sigmoid_loss,
    similarity_target_loss,
    soft_target_loss,
    steps_of_epoch,
)


def make_table(xy: list[tuple[float, float]], slide: list[int], **kwargs: Any) -> SpotTable:
    image = np.random.default_rng(0).normal(size=(len(slide), 3)).astype(np.float32)
    gene = np.random.default_rng(1).normal(size=(len(slide), 4)).astype(np.float32)
    return SpotTable.of(image, np.array(slide), np.array(xy, dtype=np.float64), gene=gene, **kwargs)


def two_squares() -> SpotTable:
    """Rows 0 to 8: a square of three by three at a pitch of 100; rows 9 to 11: a line in the same place."""
    square = [(100.0 * x, 100.0 * y) for y in range(3) for x in range(3)]
    return make_table([*square, (0.0, 0.0), (100.0, 0.0), (200.0, 0.0)], [0] * 9 + [1] * 3)


def hexagon() -> SpotTable:
    """Row 0 in the middle, rows 1 to 6 around it, row 7 in the next ring and row 8 two pitches off."""
    ring = [(math.cos(a), math.sin(a)) for a in np.arange(6) * math.pi / 3]
    next_ring = (1.5, math.sqrt(3) / 2)
    xy = [(0.0, 0.0), *ring, next_ring, (-2.0, 0.0)]
    return make_table([(55 * x + 300, 55 * y + 300) for x, y in xy], [4] * 9)


def excluded(contrast: Contrast, table: SpotTable, rows: Tensor) -> set[tuple[int, int]]:
    allowed = contrast.allowed(table, rows)
    assert allowed is not None
    assert torch.equal(allowed, allowed.T)
    assert bool(allowed.diagonal().all())
    return {(int(i), int(j)) for i, j in (~allowed).nonzero() if i < j}


class Towers(PairModule):
    def __init__(self, contrast: Contrast) -> None:
        super().__init__(contrast)
        self.image, self.gene = nn.Linear(3, 2), nn.Linear(4, 2)

    def embed_image(self, table: SpotTable, rows: Tensor) -> Tensor:
        return self.image(table.image[rows])

    def embed_genes(self, table: SpotTable, rows: Tensor) -> Tensor:
        return self.gene(table.gene[rows])


def test_all_pairs_are_compared_by_default():
    table = two_squares()
    assert Contrast().allowed(table, torch.arange(12)) is None


def test_within_slide():
    allowed = Contrast(negatives="within-slide").allowed(two_squares(), torch.arange(12))
    assert torch.equal(allowed, torch.block_diag(torch.ones(9, 9), torch.ones(3, 3)).bool())


def test_eight_neighbours_of_a_square_lattice_are_excluded():
    found = excluded(Contrast(negatives="exclude-neighbours"), two_squares(), torch.arange(12))
    expected = set()
    for i in range(9):
        for j in range(i + 1, 9):
            if abs(i % 3 - j % 3) <= 1 and abs(i // 3 - j // 3) <= 1:
                expected.add((i, j))
    assert found == expected | {(9, 10), (10, 11)}


def test_six_neighbours_of_a_hexagonal_lattice_are_excluded():
    found = excluded(Contrast(negatives="exclude-neighbours"), hexagon(), torch.arange(9))
    assert {pair for pair in found if 0 in pair} == {(0, i) for i in range(1, 7)}
    # the next ring touches two of the first one, the spot two pitches off one (and none of the others of that ring)
    assert {i for i, j in found if j == 7} == {1, 2}
    assert {i for i, j in found if j == 8} == {4}
    assert {pair for pair in found if pair[1] < 7 and 0 not in pair} == {(i, i + 1) for i in range(1, 6)} | {(1, 6)}


@pytest.mark.parametrize("negatives", ["within-slide", "exclude-neighbours"])
def test_the_mask_follows_the_rows_of_the_batch(negatives):
    table, contrast = two_squares(), Contrast(negatives=negatives)
    rows = torch.tensor([10, 4, 0, 8, 9])
    whole = contrast.allowed(table, torch.arange(12))
    assert torch.equal(contrast.allowed(table, rows), whole[rows][:, rows])


def test_chance():
    table, rows = two_squares(), torch.arange(12)
    assert Contrast().chance(table, rows) == pytest.approx(math.log(12))
    expected = (9 * math.log(9) + 3 * math.log(3)) / 12
    assert Contrast(negatives="within-slide").chance(table, rows) == pytest.approx(expected)
    # of 12: a corner loses 3, an edge 5, the middle 8; the ends of the line 1, its middle 2
    left = [9] * 4 + [7] * 4 + [4] + [11, 11, 10]
    expected = sum(map(math.log, left)) / 12
    assert Contrast(negatives="exclude-neighbours").chance(table, rows) == pytest.approx(expected)


@pytest.mark.parametrize("negatives", ["all", "within-slide", "exclude-neighbours"])
def test_chance_is_the_loss_of_collapsed_towers(negatives):
    table, rows, same = two_squares(), torch.arange(12), torch.ones(12, 2)
    contrast = Contrast(negatives=negatives)
    assert float(contrast(same, same, table, rows)) == pytest.approx(contrast.chance(table, rows), abs=1e-6)


@pytest.mark.parametrize("negatives", ["all", "within-slide", "exclude-neighbours"])
@pytest.mark.parametrize("targets", ["embedding", "input"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_contrast_hands_its_options_to_the_loss(negatives, targets, normalize):
    table, rows = two_squares(), torch.tensor([3, 10, 0, 4, 8])
    gene, image = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"normalize": normalize, "temperature": 0.4, "negatives": negatives}
    plain = Contrast(**options)
    common = {"normalize": normalize, "temperature": 0.4, "allowed": plain.allowed(table, rows)}
    assert float(plain(gene, image, table, rows)) == pytest.approx(float(info_nce(gene, image, **common)), abs=1e-6)
    soft = Contrast(loss="similarity_target", targets=targets, target_temperature=0.25, **options)
    inputs = None
    if targets == "input":
        # less the mean of the batch
        inputs = tuple(part - part.sum(dim=0) / 5 for part in (table.gene[rows], table.image[rows]))
    expected = similarity_target_loss(gene, image, targets_from=inputs, target_temperature=0.25, **common)
    assert float(soft(gene, image, table, rows)) == pytest.approx(float(expected), abs=1e-6)


def test_a_learnt_temperature_gets_a_gradient_and_starts_where_told():
    contrast = Contrast(temperature=0.3, learn_temperature=True)
    assert contrast.temperature.item() == pytest.approx(0.3)
    assert [name for name, p in contrast.named_parameters() if p.requires_grad] == ["log_inverse_temperature"]
    gene, image = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    contrast(gene, image, two_squares(), torch.arange(5)).backward()
    assert float(contrast.log_inverse_temperature.grad.abs()) > 0


def test_a_learnt_temperature_does_not_fall_below_a_hundredth():
    contrast = Contrast(temperature=0.3, learn_temperature=True)
    with torch.no_grad():
        contrast.log_inverse_temperature.fill_(20.0)
    assert contrast.temperature.item() == pytest.approx(0.01)


@pytest.mark.parametrize("temperature", [0.1, 0.005, 2.0])
def test_a_fixed_temperature_is_not_trained_and_not_bounded(temperature):
    contrast = Contrast(temperature=temperature)
    assert not [p for p in contrast.parameters() if p.requires_grad]
    assert contrast.temperature.item() == pytest.approx(temperature)


def test_the_temperature_is_saved_with_the_weights():
    contrast = Contrast(temperature=0.3)
    contrast.load_state_dict(Contrast(temperature=0.7).state_dict())
    assert contrast.temperature.item() == pytest.approx(0.7)


def test_a_table_from_arrays():
    table = two_squares()
    assert len(table) == 12
    assert table.image.shape == (12, 3)
    assert table.gene.shape == (12, 4)
    assert table.target.shape == (12, 0)
    assert table.near.tolist() == [[row] for row in range(12)]
    assert table.slide.tolist() == [0] * 9 + [1] * 3
    expected = [[x, y] for y in range(3) for x in range(3)] + [[0, 0], [1, 0], [2, 0]]
    assert table.lattice.tolist() == expected
    moved = table.to(torch.device("cpu"))
    assert all(torch.equal(getattr(moved, name), getattr(table, name)) for name in SpotTable.__slots__)


def test_a_table_of_images_alone_with_neighbours():
    xy = np.array([[0.0, 0], [9, 0], [18, 0]])
    table = SpotTable.of(np.ones((3, 2), dtype=np.float64), np.zeros(3, dtype=int), xy, n_nearest=2)
    assert table.gene.shape == table.target.shape == (3, 0)
    assert table.image.dtype == torch.float32
    assert table.near.tolist() == [[0, 1], [1, 0], [2, 1]]


@pytest.mark.parametrize(
    ("batch_size", "lengths"),
    [(4, [4, 4, 4]), (5, [4, 4, 4]), (7, [6, 6]), (11, [11]), (12, [12]), (13, [12]), (99, [12])],
)
def test_training_batches_are_full_or_as_equal_as_can_be(batch_size, lengths):
    parts = Towers(Contrast()).batches(two_squares(), batch_size)
    assert [len(part) for part in parts] == lengths
    rows = torch.cat(parts).tolist()
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(12))


@given(n_spots=st.integers(1, 5000), batch_size=st.integers(1, 600))
def test_few_spots_are_left_out_of_an_epoch_and_no_batch_is_more_than_full(n_spots, batch_size):
    n_steps = steps_of_epoch(n_spots, batch_size)
    left_out = n_spots - n_steps * batch_size
    # equal parts of all, or full batches and few spots left over
    assert n_spots <= n_steps * batch_size or 0 < left_out <= n_spots / 10
    assert n_steps in (n_spots // batch_size, -(-n_spots // batch_size))


def test_training_batches_are_shuffled_and_leave_out_others_each_time():
    module = Towers(Contrast())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        seen = [torch.cat(module.batches(two_squares(), 11)).tolist() for _ in range(30)]
    assert len(set(map(tuple, seen))) == 30
    assert set().union(*seen) == set(range(12))


@pytest.mark.parametrize("batch_size", [1, 5, 12, 99])
def test_evaluation_batches_hold_every_row_once_and_in_order(batch_size):
    parts = Towers(Contrast()).evaluation_batches(two_squares(), batch_size)
    assert torch.cat(parts).tolist() == list(range(12))
    assert max(map(len, parts)) <= batch_size


def test_the_loss_of_two_towers_is_that_of_their_embeddings():
    module, table, rows = Towers(Contrast(temperature=0.5)), two_squares(), torch.tensor([3, 1, 10])
    (name, loss), *others = module.losses(table, rows).items()
    assert (name, others) == ("contrastive", [])
    expected = info_nce(module.embed_genes(table, rows), module.embed_image(table, rows), temperature=0.5)
    assert loss.item() == pytest.approx(expected.item())
    assert module.regress(table, rows) is None


def test_a_learnt_temperature_can_rise_from_its_bound():
    contrast = Contrast(temperature=0.001, learn_temperature=True)
    assert float(contrast.temperature.detach()) == pytest.approx(0.01)
    contrast.temperature.backward()
    assert contrast.log_inverse_temperature.grad != 0


@pytest.mark.parametrize("negatives", ["all", "within-slide", "exclude-neighbours"])
def test_chance_of_the_sigmoid_loss_in_closed_form(negatives):
    """Embeddings at right angles tell nothing: every pair has the odds of one spot among those compared."""
    table, rows = two_squares(), torch.arange(12)
    contrast = Contrast(loss="sigmoid", negatives=negatives)
    allowed = contrast.allowed(table, rows)
    counts = [12] * 12 if allowed is None else allowed.sum(dim=1).tolist()
    expected = sum(-math.log(1 / n) - (n - 1) * math.log(1 - 1 / n) for n in counts) / 12
    assert contrast.chance(table, rows) == pytest.approx(expected)
    gene, image = torch.tensor([[1.0, 0]]).expand(12, 2), torch.tensor([[0.0, 1]]).expand(12, 2)
    assert float(contrast(gene, image, table, rows)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("negatives", ["all", "within-slide"])
def test_chance_of_soft_targets_is_the_loss_of_collapsed_towers(negatives):
    table, rows, same = two_squares(), torch.arange(12), torch.ones(12, 2)
    contrast = Contrast(loss="soft_target", negatives=negatives)
    assert float(contrast(same, same, table, rows)) == pytest.approx(contrast.chance(table, rows), abs=1e-6)


def test_soft_targets_come_from_the_gene_side_of_the_batch_less_its_mean():
    table, rows = two_squares(), torch.tensor([3, 10, 0, 4, 8])
    gene, image = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    centered = table.gene[rows] - table.gene[rows].sum(dim=0) / 5
    for targets in ("embedding", "input"):
        contrast = Contrast(loss="soft_target", temperature=0.4, targets=targets, target_temperature=0.25)
        expected = soft_target_loss(gene, image, targets_from=centered, temperature=0.4, target_temperature=0.25)
        assert float(contrast(gene, image, table, rows)) == pytest.approx(float(expected), abs=1e-6)
    found = Contrast(loss="sigmoid", temperature=0.4, negatives="within-slide")(gene, image, table, rows)
    allowed = Contrast(negatives="within-slide").allowed(table, rows)
    expected = sigmoid_loss(gene, image, temperature=0.4, allowed=allowed)
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


def test_the_least_loss_of_soft_targets_is_their_entropy():
    table, rows = two_squares(), torch.tensor([3, 10, 0, 4, 8])
    for negatives in ("all", "within-slide"):
        contrast = Contrast(loss="soft_target", temperature=0.3, target_temperature=0.3, negatives=negatives)
        # embeddings whose similarities are the targets themselves
        best = table.gene[rows] - table.gene[rows].mean(dim=0)
        assert contrast.least(table, rows) == pytest.approx(float(contrast(best, best, table, rows)), abs=1e-5)
    for loss in ("info_nce", "similarity_target", "sigmoid"):
        assert Contrast(loss=loss).least(table, rows) == 0.0

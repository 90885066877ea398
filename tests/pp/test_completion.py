from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stcontrast.pp._completion import Completer, _Spots, masked_mse, median_complete
from tests.synthetic import hexagonal, square


def planted(seed: int = 0, sizes: tuple[tuple[int, int], ...] = ((14, 14), (12, 12)), n_genes: int = 40):
    """Few programmes: half of them smooth over the slide, half of them each spot's own. A third is missing."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(0, 0.5, (6, n_genes))
    parts = []
    for size in sizes:
        xy = hexagonal(*size, 100.0)
        waves = np.stack([np.sin(xy @ rng.normal(0, 0.005, 2) + rng.uniform(0, 6)) for _ in range(3)], axis=1)
        programmes = np.hstack([1.4 * waves, rng.normal(0, 1, (len(xy), 3))])
        parts.append((np.abs(3 + programmes @ loadings + rng.normal(0, 0.1, (len(xy), n_genes))), xy))
    truth = np.concatenate([part[0] for part in parts]).astype(np.float32)
    slide = np.repeat(np.arange(len(sizes)), [len(part[1]) for part in parts])
    expression = np.where(rng.random(truth.shape) < 1 / 3, 0, truth).astype(np.float32)
    return truth, expression, slide, np.concatenate([part[1] for part in parts])


def sparse_noise(seed: int, n_spots: int, n_genes: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    expression = rng.gamma(2, 1, (n_spots, n_genes)) * (rng.random((n_spots, n_genes)) < 0.4)
    return expression.astype(np.float32), np.zeros(n_spots, dtype=np.int64), rng.uniform(0, 1000, (n_spots, 2))


@cache
def quick() -> Completer:
    """A network that has seen little: the invariances are not learnt."""
    _, expression, slide, xy = planted()
    return Completer(n_model=16, max_steps=10, batch_size=64).fit(expression, slide, xy)


@cache
def trained() -> Completer:
    _, expression, slide, xy = planted()
    return Completer(n_model=64, max_steps=300, batch_size=64, learning_rate=2e-3).fit(expression, slide, xy)


@pytest.mark.slow
def test_planted_programmes_are_recovered():
    truth, expression, slide, xy = planted()
    missing = expression == 0
    mean = np.broadcast_to(expression.sum(axis=0) / (expression > 0).sum(axis=0), truth.shape)

    def error(completed: np.ndarray) -> float:
        return float(((completed - truth)[missing] ** 2).mean())

    completed = error(trained().complete(expression, slide, xy))
    median = error(median_complete(expression, slide, xy))
    assert median < 0.9 * error(mean)
    assert completed < 0.7 * median


@pytest.mark.slow
def test_a_slide_that_was_not_trained_on():
    truth, expression, slide, xy = planted(sizes=((14, 14), (12, 12), (10, 10)))
    new = slide == 2
    missing = expression[new] == 0
    completed, median = (
        fill(expression[new], slide[new], xy[new]) for fill in (trained().complete, median_complete)
    )  # fmt: skip
    assert ((completed - truth[new])[missing] ** 2).mean() < 0.9 * ((median - truth[new])[missing] ** 2).mean()


@given(st.integers(0, 99))
@settings(max_examples=10)
def test_what_was_measured_stays_bit_by_bit(seed):
    _, expression, slide, xy = planted(seed)
    expression *= np.float32(1 / 3)
    before = expression.copy()
    for completed in (quick().complete(expression, slide, xy), median_complete(expression, slide, xy)):
        assert completed.dtype == np.float32
        np.testing.assert_array_equal(completed[expression > 0], expression[expression > 0])
        assert np.isfinite(completed).all()
        assert (completed >= 0).all()
        assert (completed[expression == 0] > 0).mean() > 0.9
    np.testing.assert_array_equal(expression, before)


@pytest.mark.parametrize("lattice", [hexagonal, square])
@given(seed=st.integers(0, 99))
@settings(max_examples=5)
def test_order_of_spots_does_not_matter_on_a_lattice(lattice, seed):
    _, expression, slide, _ = planted()
    xy = np.concatenate([lattice(14, 14), lattice(12, 12)])
    order = np.random.default_rng(seed).permutation(len(slide))
    for fill in (quick().complete, median_complete):
        one, other = fill(expression, slide, xy), fill(expression[order], slide[order], xy[order])
        np.testing.assert_allclose(one[order], other, rtol=1e-5, atol=1e-6)


@given(angle=st.floats(0, 6.28), scale=st.floats(0.01, 100), shift=st.floats(-1e4, 1e4))
@settings(max_examples=8)
def test_units_and_orientation_of_the_positions_do_not_matter(angle, scale, shift):
    _, expression, slide, xy = planted()
    c, s = np.cos(angle), np.sin(angle)
    moved = scale * xy @ np.array([[c, -s], [s, c]]) + shift
    np.testing.assert_array_equal(median_complete(expression, slide, moved), median_complete(expression, slide, xy))
    np.testing.assert_allclose(
        quick().complete(expression, slide, moved), quick().complete(expression, slide, xy), atol=1e-4
    )


def test_training_does_not_depend_on_units_and_orientation():
    _, expression, slide, xy = planted()
    turned = 0.37 * xy @ np.array([[0.6, -0.8], [0.8, 0.6]]) + 1e4
    one, other = (Completer(n_model=8, max_steps=5).fit(expression, slide, where) for where in (xy, turned))
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-4)


@given(st.integers(0, 99))
@settings(max_examples=5)
def test_other_slides_and_their_numbers_do_not_matter(seed):
    _, expression, slide, xy = planted(seed)
    # the other slide lies on top of this one
    here = slide == 1
    for fill in (quick().complete, median_complete):
        together = fill(expression, slide, xy)[here]
        alone = fill(expression[here], slide[here] + 6, xy[here])
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 99))
@settings(max_examples=10)
def test_median_by_brute_force(seed):
    expression, slide, xy = sparse_noise(seed, 60)
    completed = median_complete(expression, slide, xy, 3)
    for i, g in zip(*np.nonzero(expression == 0), strict=True):
        distance = np.hypot(*(xy - xy[i]).T)
        distance[i] = np.inf
        for rows in (np.argsort(distance)[:3], np.argsort(distance)[:12], slice(None)):
            seen = expression[rows, g][expression[rows, g] > 0]
            if len(seen):
                break
        assert completed[i, g] == pytest.approx(np.median(seen), rel=1e-6)


def test_a_gene_that_nobody_has_stays_zero():
    _, expression, slide, xy = planted()
    expression[:, 3] = 0
    completer = Completer(n_model=8, max_steps=2).fit(expression, slide, xy)
    assert (median_complete(expression, slide, xy)[:, 3] == 0).all()
    assert (completer.complete(expression, slide, xy)[:, 3] == 0).all()
    # nor is it made up where only another slide has it
    expression[slide == 0, 3] = 1
    assert (completer.complete(expression, slide, xy)[slide == 1, 3] == 0).all()


@pytest.mark.parametrize("n", [1, 2, 5, 18])
def test_small_slides(n):
    _, expression, slide, xy = planted()
    alone = quick().complete(expression[:n], slide[:n], xy[:n])
    assert np.isfinite(alone).all()
    assert median_complete(expression[:n], slide[:n], xy[:n]).shape == (n, 40)
    fitted = Completer(n_model=8, max_steps=2).fit(expression[:n], slide[:n], xy[:n])
    assert fitted.complete(expression[:n], slide[:n], xy[:n]).shape == (n, 40)


def test_many_spots_at_one_place():
    _, expression, slide, xy = planted()
    assert np.isfinite(quick().complete(expression, slide, np.zeros_like(xy))).all()


def test_the_loss_asks_for_nothing_but_masked_entries():
    rng = np.random.default_rng(0)
    predicted, target = (torch.tensor(rng.normal(size=(6, 4)), dtype=torch.float64) for _ in range(2))
    asked = torch.tensor(rng.random((6, 4)) < 0.4)
    predicted.requires_grad_(requires_grad=True)
    loss = masked_mse(predicted, target, asked)
    loss.backward()
    pairs = list(zip(*np.nonzero(asked.numpy()), strict=True))
    by_hand = [float(predicted[i, j].detach() - target[i, j]) for i, j in pairs]
    assert loss.item() == pytest.approx(np.mean(np.square(by_hand)))
    expected = np.zeros((6, 4))
    for (i, j), difference in zip(pairs, by_hand, strict=True):
        expected[i, j] = 2 * difference / len(pairs)
    np.testing.assert_allclose(predicted.grad.numpy(), expected, atol=1e-12)
    assert masked_mse(predicted, target, torch.zeros_like(asked)).item() == 0


def test_training_asks_for_a_share_of_what_was_measured(monkeypatch):
    _, expression, slide, xy = planted()
    seen = []

    def watch(self, network, rows, asked, device):
        seen.append((rows, asked))
        return loss(self, network, rows, asked, device)

    loss = _Spots.loss
    monkeypatch.setattr(_Spots, "loss", watch)
    Completer(n_model=8, max_steps=19, batch_size=64, mask_fraction=0.25).fit(expression, slide, xy)
    shares = []
    for rows, asked in seen:
        known = expression[rows.numpy()] > 0
        assert not (asked.numpy() & ~known).any()
        shares.append(asked.numpy().sum() / known.sum())
    assert np.mean(shares) == pytest.approx(0.25, abs=0.01)
    assert len({asked.numpy().tobytes() for _, asked in seen}) == len(seen)
    # spots that are watched are never trained on
    watched = set(seen[-1][0].tolist())
    assert len(watched) == len(slide) // 10
    assert not watched & {row for rows, _ in seen[:-1] for row in rows.tolist()}


@given(seed=st.integers(0, 99), spot=st.integers(0, 59))
@settings(max_examples=20)
def test_what_is_asked_for_is_nowhere_in_the_input(seed, spot):
    """Neither at the centre nor in what fills the neighbours' holes."""
    expression, slide, xy = sparse_noise(seed, 60)
    expression[spot] = 1.0
    changed = expression.copy()
    changed[spot] = 50.0
    mean = np.ones(5, dtype=np.float32)
    network = quick_network(5)
    rows, asked = torch.tensor([spot]), torch.ones((1, 5), dtype=torch.bool)
    outputs = []
    for values in (expression, changed):
        spots = _Spots(values, slide, xy, mean, 4)
        outputs.append(network(spots.values[rows], asked, *spots.around(rows)).detach().numpy())
    np.testing.assert_array_equal(*outputs)


def quick_network(n_genes: int):
    rng = np.random.default_rng(0)
    expression = rng.gamma(2, 1, (30, n_genes)).astype(np.float32)
    return Completer(n_model=8, max_steps=1).fit(expression, np.zeros(30, dtype=int), rng.random((30, 2)))._network


def test_neighbours_have_no_holes():
    expression, slide, xy = sparse_noise(0, 60)
    spots = _Spots(expression, slide, xy, np.zeros(5, dtype=np.float32), 18)
    around, absent = spots.around(torch.arange(60))
    assert (around[~absent] > 0).all()


def test_the_same_seed_gives_the_same_and_the_session_s_numbers_go_on():
    _, expression, slide, xy = planted()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    n_threads = torch.get_num_threads()
    one, again, other = (
        Completer(n_model=8, max_steps=5, seed=seed).fit(expression, slide, xy) for seed in (1, 1, 2)
    )  # fmt: skip
    assert torch.equal(torch.rand(4), expected)
    assert torch.get_num_threads() == n_threads
    assert one.losses == again.losses != other.losses
    np.testing.assert_array_equal(one.complete(expression, slide, xy), again.complete(expression, slide, xy))


def test_training_stops_where_nothing_gets_better():
    rng = np.random.default_rng(0)
    expression = rng.gamma(4, 1, (60, 4)).astype(np.float32)
    noise = Completer(n_model=8, max_steps=1000, learning_rate=0.05)
    noise.fit(expression, np.zeros(60, dtype=int), rng.random((60, 2)))
    assert 100 < len(noise.losses) < 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_neighbors": 0}, "`n_neighbors` must be at least 1"),
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
        ({"mask_fraction": 1.0}, "`mask_fraction` must lie between"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Completer(**options)


def test_wrong_input():
    _, expression, slide, xy = planted()
    with pytest.raises(ValueError, match="not fitted"):
        Completer().complete(expression, slide, xy)
    with pytest.raises(ValueError, match="fitted on 40 genes, found 39"):
        quick().complete(expression[:, 1:], slide, xy)
    with pytest.raises(ValueError, match="do not match"):
        Completer().fit(expression, slide[1:], xy)
    with pytest.raises(ValueError, match="Nothing to learn from"):
        Completer().fit(np.zeros_like(expression), slide, xy)
    for odd in (-1.0, np.nan, np.inf):
        broken = expression.copy()
        broken[2, 2] = odd
        with pytest.raises(ValueError, match="finite and not negative"):
            Completer().fit(broken, slide, xy)

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stcontrast._data import lattice_coordinates, nearest_spots, sequences


def square(n_rows: int, n_columns: int) -> np.ndarray:
    return np.array([(float(x), float(y)) for y in range(n_rows) for x in range(n_columns)])


def hexagonal(n_rows: int, n_columns: int) -> np.ndarray:
    return np.array([(x + 0.5 * (y % 2), y * math.sqrt(3) / 2) for y in range(n_rows) for x in range(n_columns)])


LATTICES = {"square": square, "hexagonal": hexagonal}


def one_slide(xy: np.ndarray) -> np.ndarray:
    return np.zeros(len(xy), dtype=np.int64)


def two_slides() -> tuple[np.ndarray, np.ndarray]:
    """A square slide and a hexagonal one of another scale, in the same place, their rows interleaved."""
    xy = np.concatenate([square(5, 6), 30 * hexagonal(6, 5)])
    slide = np.repeat([7, 3], 30)
    order = np.random.default_rng(0).permutation(60)
    return xy[order], slide[order]


def brute_nearest(lattice: np.ndarray, slide: np.ndarray, n_nearest: int) -> np.ndarray:
    lattice = lattice.astype(np.float64)
    rows = []
    for i in range(len(slide)):
        ranked = []
        for j in range(len(slide)):
            if slide[j] == slide[i] and j != i:
                dx, dy = lattice[j] - lattice[i]
                ranked.append((round(math.hypot(dx, dy), 3), round(dy, 3), round(dx, 3), j))
        found = [i, *(entry[-1] for entry in sorted(ranked))][:n_nearest]
        rows.append(found + [i] * (n_nearest - len(found)))
    return np.array(rows)


@pytest.mark.parametrize("kind", LATTICES)
@pytest.mark.parametrize("pitch", [0.01, 1.0, 137.5])
def test_the_unit_is_the_pitch(kind, pitch):
    lattice = LATTICES[kind](6, 7)
    found = lattice_coordinates(pitch * lattice + [40.0, -3.0], one_slide(lattice))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, lattice, atol=1e-4)


def test_every_slide_has_a_pitch_and_a_corner_of_its_own():
    xy, slide = two_slides()
    found = lattice_coordinates(xy, slide)
    for code, expected in ((7, square(5, 6)), (3, hexagonal(6, 5))):
        here = found[slide == code]
        assert found[slide == code].min() == 0
        assert sorted(map(tuple, here.round(3).tolist())) == sorted(
            map(tuple, expected.astype(np.float32).round(3).tolist())
        )


def test_missing_spots_do_not_change_the_pitch():
    lattice = square(8, 8)
    kept = lattice[np.random.default_rng(0).random(64) < 0.7]
    np.testing.assert_allclose(lattice_coordinates(50 * kept, one_slide(kept)), kept - kept.min(axis=0), atol=1e-5)


def test_a_spot_alone_is_at_the_corner():
    np.testing.assert_array_equal(lattice_coordinates(np.array([[40.0, 9.0]]), np.array([2])), [[0, 0]])
    np.testing.assert_array_equal(lattice_coordinates(np.full((3, 2), 5.0), np.zeros(3, dtype=int)), np.zeros((3, 2)))


def test_spots_at_the_same_place_do_not_change_the_pitch():
    lattice = square(4, 4)
    doubled = np.concatenate([lattice, lattice[:3]])
    np.testing.assert_allclose(lattice_coordinates(20 * doubled, one_slide(doubled)), doubled, atol=1e-5)


@given(
    kind=st.sampled_from(sorted(LATTICES)),
    scale=st.floats(1e-2, 1e4),
    shift=st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)),
    seed=st.integers(0, 99),
    n_nearest=st.integers(1, 12),
)
def test_scale_place_and_order_of_the_spots_do_not_matter(kind, scale, shift, seed, n_nearest):
    rng = np.random.default_rng(seed)
    xy = LATTICES[kind](5, 5)
    xy = xy[rng.permutation(25)[:20]]
    slide = one_slide(xy)
    order = rng.permutation(20)
    moved = (scale * xy + shift)[order]
    lattice, other = lattice_coordinates(xy, slide), lattice_coordinates(moved, slide)
    np.testing.assert_allclose(other, lattice[order], atol=1e-4)
    near = lattice[nearest_spots(lattice, slide, n_nearest=n_nearest)]
    other_near = other[nearest_spots(other, slide, n_nearest=n_nearest)]
    np.testing.assert_allclose(other_near, near[order], atol=1e-4)


@pytest.mark.parametrize("n_nearest", [1, 2, 5, 9, 13, 30, 40])
def test_nearest_spots_are_those_of_a_loop(n_nearest):
    xy, slide = two_slides()
    lattice = lattice_coordinates(xy, slide)
    np.testing.assert_array_equal(
        nearest_spots(lattice, slide, n_nearest=n_nearest), brute_nearest(lattice, slide, n_nearest)
    )


def test_of_equally_near_spots_the_upper_then_the_left_one_comes_first():
    lattice = square(3, 3).astype(np.float32)
    near = nearest_spots(lattice, one_slide(lattice), n_nearest=9)
    # rows of the square: 0 1 2 / 3 4 5 / 6 7 8
    assert near[4].tolist() == [4, 1, 3, 5, 7, 0, 2, 6, 8]
    assert near[0].tolist() == [0, 1, 3, 4, 2, 6, 5, 7, 8]


def test_the_spot_comes_first_and_slides_never_mix():
    xy, slide = two_slides()
    lattice = lattice_coordinates(xy, slide)
    near = nearest_spots(lattice, slide, n_nearest=9)
    np.testing.assert_array_equal(near[:, 0], np.arange(60))
    np.testing.assert_array_equal(slide[near], np.repeat(slide[:, None], 9, axis=1))
    assert all(len(set(row)) == 9 for row in near.tolist())


def test_small_slides_repeat_the_spot():
    lattice = np.array([[0, 0], [1, 0], [0, 0], [5, 5]], dtype=np.float32)
    near = nearest_spots(lattice, np.array([0, 0, 1, 0]), n_nearest=5)
    assert near.tolist() == [[0, 1, 3, 0, 0], [1, 0, 3, 1, 1], [2, 2, 2, 2, 2], [3, 1, 0, 3, 3]]


@pytest.mark.parametrize("n", [2, 5, 12])
def test_spots_at_the_same_place_each_come_first(n):
    lattice = np.concatenate([np.zeros((n, 2)), square(4, 4)]).astype(np.float32)
    near = nearest_spots(lattice, one_slide(lattice), n_nearest=4)
    np.testing.assert_array_equal(near[:, 0], np.arange(n + 16))
    assert all(len(set(row)) == 4 for row in near.tolist())


slides = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30, unique=True),
    min_size=1,
    max_size=4,
)


def stacked(parts: list) -> tuple[np.ndarray, np.ndarray]:
    xy = np.array([spot for part in parts for spot in part], dtype=np.float32)
    return xy, np.repeat(np.arange(len(parts)), [len(part) for part in parts])


@given(parts=slides, max_length=st.integers(1, 12))
def test_sequences_are_disjoint_complete_and_short(parts, max_length):
    lattice, slide = stacked(parts)
    cut = sequences(lattice, slide, max_length=max_length)
    assert sorted(np.concatenate(cut).tolist()) == list(range(len(slide)))
    assert all(1 <= len(rows) <= max_length for rows in cut)
    assert all(len(set(slide[rows])) == 1 for rows in cut)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_slide_is_halved_across_its_longer_side(axis):
    lattice = square(20, 4).astype(np.float32)[:, :: 1 if axis == 0 else -1]
    lattice = lattice[np.random.default_rng(0).permutation(len(lattice))]
    first, second = sequences(lattice, one_slide(lattice), max_length=40)
    longer = int(np.argmax(np.ptp(lattice, axis=0)))
    assert lattice[first, longer].max() < lattice[second, longer].min()


@given(parts=slides, max_length=st.integers(1, 12), seed=st.integers(0, 99))
def test_how_a_slide_is_cut_depends_on_that_slide_alone(parts, max_length, seed):
    lattice, slide = stacked(parts)
    alone = set()
    for code, part in enumerate(parts):
        here = np.array(part, dtype=np.float32)
        for rows in sequences(here, one_slide(here), max_length=max_length):
            alone.add((code, frozenset(map(tuple, here[rows].tolist()))))
    order = np.random.default_rng(seed).permutation(len(slide))
    mixed, codes = lattice[order], slide[order]
    # other names put the slides into another order
    together = {
        (codes[rows[0]], frozenset(map(tuple, mixed[rows].tolist())))
        for rows in sequences(mixed, 100 - codes, max_length=max_length)
    }
    assert together == alone


def test_a_slide_that_fits_is_one_sequence():
    xy, slide = two_slides()
    cut = sequences(lattice_coordinates(xy, slide), slide, max_length=30)
    assert [rows.tolist() for rows in cut] == [np.flatnonzero(slide == code).tolist() for code in (3, 7)]


def test_a_long_slide_is_halved_across_its_longer_side():
    lattice = square(3, 8).astype(np.float32)
    cut = sequences(lattice, one_slide(lattice), max_length=12)
    assert [sorted(set(lattice[rows, 0])) for rows in cut] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [len(rows) for rows in cut] == [12, 12]


def test_doubled_spots_have_the_pitch_of_their_places():
    xy = np.repeat([[0.0, 0.0], [100.0, 0.0], [200.0, 0.0]], 2, axis=0)
    np.testing.assert_allclose(lattice_coordinates(xy, np.zeros(6, dtype=np.int64))[:, 0], [0, 0, 1, 1, 2, 2])


def test_the_spot_comes_first_however_many_share_its_place():
    lattice = np.zeros((40, 2), dtype=np.float32)
    near = nearest_spots(lattice, np.zeros(40, dtype=np.int64), n_nearest=3)
    np.testing.assert_array_equal(near[:, 0], np.arange(40))

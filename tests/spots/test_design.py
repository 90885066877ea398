from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stcontrast
from stcontrast._data import (
    MAX_RANGED,
    SlideMoments,
    block_of_column,
    build_design,
    design_of_some,
    neighbor_means,
    neighbor_ranges,
)
from tests.synthetic import hexagonal, square


def spots(n: int, seed: int, n_features: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_features)).astype(np.float32), rng.uniform(0, 1000, (n, 2))


def slides(seed: int, sizes: tuple[int, ...] = (25, 30, 8)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = [spots(n, seed + i) for i, n in enumerate(sizes)]
    features = np.concatenate([part[0] + 3 * i for i, part in enumerate(parts)])
    return features, np.repeat(np.arange(len(sizes)), sizes), np.concatenate([part[1] for part in parts])


@given(n=st.integers(2, 40), k=st.integers(1, 20), seed=st.integers(0, 99))
def test_neighbor_means_by_brute_force(n, k, seed):
    features, xy = spots(n, seed)
    expected = np.empty_like(features)
    for i in range(n):
        distance = np.hypot(*(xy - xy[i]).T)
        distance[i] = np.inf
        expected[i] = features[np.argsort(distance)[: min(k, n - 1)]].mean(axis=0)
    np.testing.assert_allclose(neighbor_means(features, xy, n_neighbors=k), expected, atol=1e-5)


def test_a_lone_spot_is_its_own_neighbourhood():
    features, xy = spots(1, 0)
    np.testing.assert_array_equal(neighbor_means(features, xy, n_neighbors=6), features)


def test_two_spots_at_one_place_are_each_other_s_neighbour():
    features = np.array([[1.0], [2.0], [30.0], [40.0]], dtype=np.float32)
    xy = np.array([[0.0, 0.0], [0.0, 0.0], [9.0, 0.0], [9.0, 1.0]])
    means = neighbor_means(features, xy, n_neighbors=1)
    np.testing.assert_array_equal(means.ravel(), [2.0, 1.0, 40.0, 30.0])


def test_many_spots_at_one_place():
    features, _ = spots(60, 0)
    means = neighbor_means(features, np.zeros((60, 2)), n_neighbors=4)
    assert np.isfinite(means).all()


@pytest.mark.parametrize(("lattice", "n_around"), [(hexagonal, 18), (square, 20)])
def test_rings_of_a_lattice_are_whole(lattice, n_around):
    """18 are two rings of a hexagonal lattice; of the spots that are equally far, none is left out."""
    xy = lattice(9, 9)
    centre = np.argmin(np.hypot(*(xy - xy.mean(axis=0)).T))
    is_other = np.arange(81) != centre
    distance = np.hypot(*(xy - xy[centre]).T)
    around = is_other & (distance <= np.sort(distance)[18] + 1e-6)
    assert around.sum() == n_around
    features, _ = spots(81, 0)
    means = neighbor_means(features, xy, n_neighbors=18)
    np.testing.assert_allclose(means[centre], features[around].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("lattice", [hexagonal, square])
def test_on_a_lattice_neither_order_nor_rotation_matters(lattice):
    xy = lattice(7, 8, 100.0)
    features, _ = spots(len(xy), 0)
    means = neighbor_means(features, xy, n_neighbors=18)
    order = np.random.default_rng(1).permutation(len(xy))
    np.testing.assert_allclose(neighbor_means(features[order], xy[order], n_neighbors=18), means[order], atol=1e-6)
    c, s = np.cos(0.3), np.sin(0.3)
    turned = xy @ np.array([[c, -s], [s, c]]) * 0.37 + 1e4
    np.testing.assert_allclose(neighbor_means(features, turned, n_neighbors=18), means, atol=1e-6)


# --- extremes of the neighbours


@given(n=st.integers(2, 40), k=st.integers(1, 20), seed=st.integers(0, 99))
def test_neighbor_ranges_by_brute_force(n, k, seed):
    features, xy = spots(n, seed)
    expected = np.empty((n, 6), dtype=np.float32)
    for i in range(n):
        distance = np.hypot(*(xy - xy[i]).T)
        distance[i] = np.inf
        around = features[np.argsort(distance)[: min(k, n - 1)]]
        expected[i] = [*(around.max(axis=0) - features[i]), *(features[i] - around.min(axis=0))]
    found = neighbor_ranges(features, xy, n_neighbors=k)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_a_lone_spot_has_no_range():
    features, xy = spots(1, 0)
    np.testing.assert_array_equal(neighbor_ranges(features, xy, n_neighbors=6), np.zeros((1, 6)))


@pytest.mark.parametrize(("lattice", "n_around"), [(hexagonal, 6), (square, 8)])
def test_the_first_ring_of_a_lattice_is_whole(lattice, n_around):
    xy = lattice(9, 9)
    centre = np.argmin(np.hypot(*(xy - xy.mean(axis=0)).T))
    distance = np.hypot(*(xy - xy[centre]).T)
    around = np.flatnonzero((distance > 0) & (distance <= np.sort(distance)[6] + 1e-6))
    assert len(around) == n_around
    # each neighbour in turn is the one that stands out
    for spot in around:
        features = np.zeros((81, 1), dtype=np.float32)
        features[spot] = 2
        np.testing.assert_array_equal(neighbor_ranges(features, xy, n_neighbors=6)[centre], [2, 0])
        np.testing.assert_array_equal(neighbor_ranges(-features, xy, n_neighbors=6)[centre], [0, 2])
    features = np.ones((81, 1), dtype=np.float32)
    features[[centre, *around]] = 0
    np.testing.assert_array_equal(neighbor_ranges(features, xy, n_neighbors=6)[centre], [0, 0])


@pytest.mark.parametrize("lattice", [hexagonal, square])
@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100), angle=st.floats(0, 6.28))
def test_ranges_know_neither_order_nor_orientation_nor_unit(lattice, seed, scale, angle):
    xy = lattice(6, 7, 100.0)
    features, _ = spots(len(xy), seed)
    ranges = neighbor_ranges(features, xy, n_neighbors=6)
    order = np.random.default_rng(seed).permutation(len(xy))
    np.testing.assert_array_equal(neighbor_ranges(features[order], xy[order], n_neighbors=6), ranges[order])
    c, s = np.cos(angle), np.sin(angle)
    turned = scale * xy @ np.array([[c, -s], [s, c]])
    np.testing.assert_array_equal(neighbor_ranges(features, turned, n_neighbors=6), ranges)


# --- the design


@pytest.mark.parametrize(
    ("width", "n_neighbors", "times"),
    [(3, 0, 1), (3, 1, 4), (3, 18, 4), (MAX_RANGED, 18, 4), (MAX_RANGED + 1, 18, 2), (MAX_RANGED + 1, 0, 1)],
)
def test_extremes_are_left_out_where_features_are_many(width, n_neighbors, times):
    features, xy = spots(9, 0, width)
    design = build_design(features, np.zeros(9, dtype=np.int64), xy, n_neighbors=n_neighbors)
    assert design.shape == (9, times * width)
    assert np.isfinite(design).all()


@pytest.mark.parametrize("n_neighbors", [0, 6])
def test_extremes_are_those_of_narrow_blocks(n_neighbors):
    wide, narrow = MAX_RANGED + 1, (3, 2)
    features, xy = spots(9, 0, wide + sum(narrow))
    blocks = (narrow[0], wide, narrow[1])
    slide = np.zeros(9, dtype=np.int64)
    design = build_design(features, slide, xy, blocks=blocks, n_neighbors=n_neighbors)
    block = block_of_column(blocks, n_neighbors)
    assert design.shape == (9, len(block))
    start = 0
    for i, width in enumerate(blocks):
        # the columns of a block are the design of that block alone
        alone = build_design(features[:, start : start + width], slide, xy, n_neighbors=n_neighbors)
        np.testing.assert_array_equal(design[:, block == i], alone)
        start += width


@given(seed=st.integers(0, 99), n_neighbors=st.sampled_from([0, 1, 6, 18]), cut=st.integers(1, 2))
def test_narrow_blocks_do_not_change_the_design(seed, n_neighbors, cut):
    features, slide, xy = slides(seed)
    one = build_design(features, slide, xy, n_neighbors=n_neighbors)
    two = build_design(features, slide, xy, blocks=(cut, 3 - cut), n_neighbors=n_neighbors)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("n_neighbors", "ring"), [(2, 2), (6, 6), (18, 6)])
def test_the_parts_of_the_design(n_neighbors, ring):
    features, slide, xy = slides(0)
    design = build_design(features, slide, xy, n_neighbors=n_neighbors, standardize="none")
    for code in range(3):
        here, at = features[slide == code], xy[slide == code]
        parts = [
            here, neighbor_means(here, at, n_neighbors=n_neighbors), neighbor_ranges(here, at, n_neighbors=ring),
        ]  # fmt: skip
        np.testing.assert_array_equal(design[slide == code], np.concatenate(parts, axis=1))


@given(
    seed=st.integers(0, 99), scale=st.floats(0.01, 100), angle=st.floats(0, 6.28), shift=st.floats(-1e4, 1e4),
    standardize=st.sampled_from(["slide", "none"]),
)  # fmt: skip
def test_units_and_orientation_of_the_positions_do_not_matter(seed, scale, angle, shift, standardize):
    features, slide, xy = slides(seed)
    c, s = np.cos(angle), np.sin(angle)
    moved = scale * xy @ np.array([[c, -s], [s, c]]) + shift
    one = build_design(features, slide, xy, n_neighbors=6, standardize=standardize)
    other = build_design(features, slide, moved, n_neighbors=6, standardize=standardize)
    np.testing.assert_allclose(one, other, atol=1e-4)


@given(seed=st.integers(0, 99), standardize=st.sampled_from(["slide", "none"]))
def test_order_of_spots_and_names_of_slides_do_not_matter(seed, standardize):
    features, slide, xy = slides(seed)
    order = np.random.default_rng(seed).permutation(len(slide))
    renamed = np.array([7, 2, 5])[slide]
    one = build_design(features, slide, xy, n_neighbors=6, standardize=standardize)
    other = build_design(features[order], renamed[order], xy[order], n_neighbors=6, standardize=standardize)
    np.testing.assert_allclose(one[order], other, atol=1e-5)


@given(seed=st.integers(0, 99), standardize=st.sampled_from(["slide", "none"]))
def test_a_slide_s_design_is_its_own(seed, standardize):
    features, slide, xy = slides(seed)
    together = build_design(features, slide, xy, standardize=standardize)
    alone = slide == 1
    np.testing.assert_array_equal(
        together[alone], build_design(features[alone], slide[alone], xy[alone], standardize=standardize)
    )


@given(seed=st.integers(0, 99), gain=st.floats(0.1, 10), offset=st.floats(-10, 10))
def test_stain_is_standardised_away(seed, gain, offset):
    features, slide, xy = slides(seed)
    stained = np.where(slide[:, None] == 1, gain * features + offset, features).astype(np.float32)
    np.testing.assert_allclose(build_design(stained, slide, xy), build_design(features, slide, xy), atol=2e-3)


def test_standardised_columns():
    features, slide, xy = slides(0)
    design = build_design(features, slide, xy)
    assert design.dtype == np.float32
    assert design.shape == (63, 12)
    for code in range(3):
        np.testing.assert_allclose(design[slide == code].mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(design[slide == code].std(axis=0), 1, atol=1e-5)


def test_as_they_are():
    features, slide, xy = slides(0)
    design = build_design(features, slide, xy, n_neighbors=0, standardize="none")
    np.testing.assert_array_equal(design, features)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -3e-9])
def test_a_constant_feature_becomes_zero(value):
    features, slide, xy = slides(0)
    features[slide == 0, 1] = value
    design = build_design(features, slide, xy)
    np.testing.assert_array_equal(design[slide == 0][:, [1, 4, 7, 10]], 0.0)
    assert np.isfinite(design).all()


def test_a_slide_of_one_spot_is_zero():
    features, slide, xy = slides(0, sizes=(10, 1))
    np.testing.assert_array_equal(build_design(features, slide, xy)[slide == 1], 0.0)


def test_the_features_are_left_alone():
    features, slide, xy = slides(0)
    before = features.copy()
    build_design(features, slide, xy)
    np.testing.assert_array_equal(features, before)


@pytest.mark.parametrize("unit", [1e-8, 1e-3, 1e5])
def test_whether_a_column_is_constant_is_judged_in_its_own_unit(unit):
    block = np.random.default_rng(0).normal(3, 2, (30, 5))
    expected = SlideMoments.of(block).standardized(block)
    np.testing.assert_allclose(SlideMoments.of(block * unit).standardized(block * unit), expected, atol=1e-5)


@given(seed=st.integers(0, 10_000), cut=st.integers(1, 29))
def test_moments_of_two_parts_are_those_of_the_whole(seed, cut):
    block = np.random.default_rng(seed).normal(3, 2, (30, 5)).astype(np.float32)
    block[:, 4] = 7
    whole, merged = SlideMoments.of(block), SlideMoments.of(block[:cut]).merged(SlideMoments.of(block[cut:]))
    assert merged.n == whole.n == 30
    np.testing.assert_allclose(whole.mean, block.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(merged.mean, whole.mean, atol=1e-12)
    np.testing.assert_allclose(merged.squares, whole.squares, atol=1e-9)
    np.testing.assert_array_equal(merged.largest, np.abs(block).max(axis=0))
    scaled = merged.standardized(block)
    np.testing.assert_allclose(scaled[:, :4].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled[:, :4].std(axis=0), 1, atol=1e-5)
    # a constant column says nothing
    assert not scaled[:, 4].any()


@pytest.mark.parametrize("n_neighbors", [0, 1, 18])
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_a_part_of_the_spots_keeps_its_neighbours_and_the_moments_of_its_slide(n_neighbors, seed, share):
    features, slide, xy = slides(seed)
    rng = np.random.default_rng(seed)
    some = rng.permutation(np.flatnonzero(rng.random(len(slide)) < share))
    whole = build_design(features, slide, xy, n_neighbors=n_neighbors, standardize="none")
    of_slides = [np.flatnonzero(slide == code) for code in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        # a slide in several parts
        patch.setattr(stcontrast._data.design, "SPOTS_AT_ONCE", 7)
        design, moments = design_of_some(features, xy, of_slides, some, n_neighbors=n_neighbors)
    np.testing.assert_allclose(design, whole[some], atol=1e-5)
    for found, rows in zip(moments, of_slides, strict=True):
        expected = SlideMoments.of(whole[rows])
        assert found.n == len(rows)
        np.testing.assert_allclose(found.mean, expected.mean, atol=1e-6)
        np.testing.assert_allclose(found.squares, expected.squares, rtol=1e-4, atol=1e-4)

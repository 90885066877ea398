from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stcontrast._files import read_state, write_state
from stcontrast._genespace import PrincipalSpace
from tests.methods.synthetic import training_data, with_gene_side

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast.methods import Spots


def fitted(spots: Spots, k: int = 2) -> PrincipalSpace:
    return PrincipalSpace(n_coordinates=k).fit(spots)


def uneven(seed: int = 0, **sizes: int) -> Spots:
    """Donors of two slides each, with very different numbers of spots; some spots are not measured."""
    data = training_data(donors=3, slides=2, n_spots=20, seed=seed, **sizes)
    rng = np.random.default_rng(seed)
    kept = np.flatnonzero(rng.random(len(data)) < np.array([1.0, 0.9, 0.5, 0.6, 0.3, 1.0])[data.slide])
    data = data.take(kept)
    measured = np.arange(len(data)) % 7 > 0
    return replace(
        data,
        depth=data.depth * measured,
        target=np.where(measured[:, None], data.target, np.float32(777)),
    )


def independent(spots: Spots) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues, axes and scale, spot by spot: the mean covariance of donors, each of the same total variance."""
    covariances = []
    for donor in sorted(set(spots.donor[spots.measured])):
        rows = [i for i in range(len(spots)) if spots.donor[i] == donor and spots.measured[i]]
        total = np.zeros((spots.n_genes, spots.n_genes))
        for i in rows:
            slide = (spots.slide == spots.slide[i]) & spots.measured
            deviation = spots.target[i].astype(np.float64) - spots.target[slide].astype(np.float64).mean(axis=0)
            total += np.outer(deviation, deviation)
        covariances.append(total / len(rows))
    scale = np.sqrt(np.mean([np.diag(one) for one in covariances], axis=0))
    scale[scale < 1e-9] = 1
    correlations = [one / np.outer(scale, scale) for one in covariances]
    mean = sum(one / np.trace(one) for one in correlations if np.trace(one) > 0) / len(covariances)
    values, vectors = np.linalg.eigh(mean)
    return values[::-1], vectors[:, ::-1], scale


def plane(space: PrincipalSpace) -> NDArray[np.float32]:
    """The projection onto the axes: it has no sign and no order."""
    return space.axes @ space.axes.T


@given(seed=st.integers(0, 10_000), k=st.integers(1, 4))
def test_axes_are_those_of_an_independent_computation(seed, k):
    data = uneven(seed, n_genes=6)
    values, vectors, scale = independent(data)
    space = fitted(data, k)
    np.testing.assert_allclose(space.scale, scale, rtol=1e-4)
    np.testing.assert_allclose(space.axes.T @ space.axes, np.eye(k), atol=1e-5)
    assume(np.min(values[:k] - values[1 : k + 1]) > 0.02)
    np.testing.assert_allclose(np.abs(space.axes.T @ vectors[:, :k]), np.eye(k), atol=1e-3)
    # the gene that weighs most points up
    assert (space.axes[np.abs(space.axes).argmax(axis=0), np.arange(k)] > 0).all()
    np.testing.assert_allclose(space.mean, data.slide_means()[0], atol=1e-6)


def test_donors_count_alike_whatever_their_number_of_spots_and_their_noise():
    data = uneven()
    of_one = np.flatnonzero(data.donor == "1")
    doubled = data.take(np.concatenate([np.arange(len(data)), of_one, of_one]))
    one, other = fitted(data), fitted(doubled)
    np.testing.assert_allclose(other.axes, one.axes, atol=1e-5)
    np.testing.assert_allclose(other.scale, one.scale, rtol=1e-5)
    np.testing.assert_allclose(other.mean, one.mean, atol=1e-5)


def test_the_noisiest_donor_does_not_set_the_axes():
    """Ten times the deviation of all genes of a donor: scale and total variance take it out again."""
    data = training_data(donors=2, n_spots=200, n_genes=6)
    rng = np.random.default_rng(0)
    loadings = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    state = rng.normal(size=(400, 6)) * np.array([3, 1.5, 1, 0.5, 0.5, 0.5])
    target = (state @ loadings.T).astype(np.float32)
    # the second donor has the same programmes in another order
    target[200:] = (state[200:][:, [1, 0, 2, 3, 4, 5]] @ loadings.T).astype(np.float32)
    quiet = replace(data, target=target)
    loud = replace(data, target=np.where((data.donor == "1")[:, None], 10 * target, target))
    turned = independent(loud)[1][:, :2]
    np.testing.assert_allclose(plane(fitted(loud)), turned @ turned.T, atol=1e-3)
    # in a plain principal component analysis it would set them: here both donors' programmes are there
    for space in (fitted(quiet), fitted(loud)):
        both = loadings[:, :2] / space.scale[:, None]
        both /= np.linalg.norm(both, axis=0)
        assert np.linalg.norm(plane(space) @ both, axis=0).min() > 0.9


@given(seed=st.integers(0, 10_000))
def test_a_slide_s_level_and_the_order_of_spots_do_not_matter(seed):
    data = uneven(seed)
    values = independent(data)[0]
    assume(values[1] - values[2] > 0.02)
    rng = np.random.default_rng(seed)
    space = fitted(data)
    shift = rng.normal(size=(6, 5)).astype(np.float32)[data.slide]
    shifted = replace(data, target=data.target + shift)
    np.testing.assert_allclose(plane(fitted(shifted)), plane(space), atol=1e-3)
    np.testing.assert_allclose(space.encode(shifted), space.encode(data), atol=1e-3)
    order = rng.permutation(len(data))
    moved = fitted(data.take(order))
    np.testing.assert_allclose(plane(moved), plane(space), atol=1e-4)
    moved_rows = np.flatnonzero(data.measured[order])
    row = np.cumsum(data.measured) - 1
    np.testing.assert_allclose(space.encode(data.take(order)), space.encode(data)[row[order[moved_rows]]], atol=1e-4)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 5))
def test_decoding_what_was_encoded_is_the_projection(seed, k):
    data = uneven(seed)
    space = fitted(data, k)
    _, of_spot = data.slide_means()
    centered = (data.target - of_spot)[data.measured]
    decoded = space.decode(space.encode(data))
    assert decoded.dtype == np.float32
    expected = centered / space.scale @ plane(space) * space.scale + space.mean
    np.testing.assert_allclose(decoded, expected, atol=1e-4)
    if k == 5:
        np.testing.assert_allclose(decoded, centered + space.mean, atol=1e-4)
    coordinates = np.random.default_rng(seed).normal(size=(4, k)).astype(np.float32)
    back = (space.decode(coordinates) - space.mean) / space.scale @ space.axes
    np.testing.assert_allclose(back, coordinates, atol=1e-4)


def test_units_of_genes_do_not_matter():
    data = uneven()
    units = np.float32([1, 10, 0.1, 3, 0.5])
    space, scaled = fitted(data), fitted(replace(data, target=data.target * units))
    np.testing.assert_allclose(scaled.axes, space.axes, atol=1e-4)
    np.testing.assert_allclose(scaled.scale, space.scale * units, rtol=1e-4)


def test_fewer_genes_than_axes():
    data = uneven()
    space = fitted(data, 8)
    assert space.axes.shape == (5, 5)
    assert space.encode(data).shape == (data.measured.sum(), 5)
    _, of_spot = data.slide_means()
    expected = (data.target - of_spot)[data.measured] + space.mean
    np.testing.assert_allclose(space.decode(space.encode(data)), expected, atol=1e-4)


def test_a_gene_that_does_not_vary_has_no_weight_and_keeps_its_level():
    data = uneven()
    target = data.target.copy()
    target[:, 2] = 1.5
    space = fitted(replace(data, target=target), 3)
    np.testing.assert_allclose(space.axes[2], 0, atol=1e-6)
    assert space.scale[2] == 1
    coordinates = 100 * np.ones((2, 3), dtype=np.float32)
    np.testing.assert_allclose(space.decode(coordinates)[:, 2], 1.5, atol=1e-4)
    rest = data.with_genes(np.array([0, 1, 3, 4]))
    rest = replace(rest, target=data.target[:, [0, 1, 3, 4]])
    np.testing.assert_allclose(space.axes[[0, 1, 3, 4]], fitted(rest, 3).axes, atol=1e-4)


@pytest.mark.parametrize("slides", [1, 2])
def test_one_donor_alone(slides):
    data = training_data(donors=1, slides=slides)
    _, vectors, _ = independent(data)
    np.testing.assert_allclose(np.abs(fitted(data).axes.T @ vectors[:, :2]), np.eye(2), atol=1e-4)


def test_a_donor_of_one_spot_says_nothing():
    data = training_data()
    lone = data.take(np.r_[0:60, 60])
    np.testing.assert_allclose(fitted(lone).axes, fitted(data.take(np.arange(60))).axes, atol=1e-5)


def test_spots_without_counts_are_not_learnt_from():
    data = uneven()
    other = replace(data, target=np.where(data.measured[:, None], data.target, np.float32(-5)))
    np.testing.assert_array_equal(fitted(other).axes, fitted(data).axes)
    np.testing.assert_array_equal(fitted(other).encode(data), fitted(data).encode(data))


def test_the_gene_side_has_a_part_in_the_axes():
    data = training_data(donors=4)
    both = with_gene_side(data, 2, 3)
    assert len(both) == 60
    np.testing.assert_allclose(fitted(both.with_counts()).axes, fitted(data).axes, atol=1e-5)
    np.testing.assert_allclose(fitted(both.with_counts()).mean, fitted(data).mean, atol=1e-5)
    assert not np.allclose(fitted(both).axes, fitted(data).axes, atol=1e-2)


def test_saved_and_read_again(tmp_path):
    data = uneven()
    space = fitted(data)
    write_state(tmp_path, space.state())
    again = PrincipalSpace(n_coordinates=2)
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.encode(data), space.encode(data))
    np.testing.assert_array_equal(again.decode(space.encode(data)), space.decode(space.encode(data)))

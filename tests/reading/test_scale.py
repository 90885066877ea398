from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stcontrast._reading import lattice_pitch, scale_from_spots
from tests.synthetic import hexagonal, square


def rotated(xy: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return xy @ np.array([[c, s], [-s, c]])


@given(
    st.floats(0.5, 500), st.floats(0, 2 * np.pi), st.floats(-1e4, 1e4), st.sampled_from([(hexagonal, 6), (square, 4)])
)
def test_a_lattice_is_known_wherever_it_lies(pitch: float, angle: float, shift: float, kind: tuple) -> None:
    lattice, neighbors = kind
    found, count = lattice_pitch(rotated(lattice(8, 9, pitch), angle) + shift)
    assert found == pytest.approx(pitch, rel=1e-6)
    assert count == neighbors


@given(st.integers(0, 1000))
def test_jitter_does_not_bias_the_pitch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for lattice, neighbors in ((hexagonal, 6), (square, 4)):
        found, count = lattice_pitch(lattice(20, 20, 100.0) + rng.normal(0, 3.0, (400, 2)))
        assert found == pytest.approx(100.0, rel=0.01)
        assert count == neighbors


def test_a_lattice_with_holes_is_still_one() -> None:
    keep = np.random.default_rng(0).random(400) > 0.05
    assert lattice_pitch(hexagonal(20, 20, 7.0)[keep]) == pytest.approx((7.0, 6))


def test_row_order_and_repeated_spots_do_not_matter() -> None:
    xy = hexagonal(10, 10, 30.0)
    order = np.random.default_rng(0).permutation(100)
    assert lattice_pitch(xy[order]) == pytest.approx((30.0, 6))
    assert lattice_pitch(np.repeat(xy, 2, axis=0)) == pytest.approx((30.0, 6))


@pytest.mark.parametrize("xy", [hexagonal(2, 3), np.zeros((20, 2)), np.empty((0, 2))])
def test_too_few_distinct_spots_are_no_lattice(xy: np.ndarray) -> None:
    pitch, neighbors = lattice_pitch(xy)
    assert np.isnan(pitch)
    assert neighbors == 0
    assert scale_from_spots(xy, 1.0) is None


def test_scattered_cells_are_no_lattice() -> None:
    xy = np.random.default_rng(0).uniform(0, 1000, (500, 2))
    assert scale_from_spots(xy, 10.0) is None


@pytest.mark.parametrize("diameter_px", [10.0, 60.0, float("nan")])
def test_a_hexagonal_lattice_is_visium_whatever_the_diameter(diameter_px: float) -> None:
    scale = scale_from_spots(hexagonal(10, 10, 137.0), diameter_px)
    assert scale is not None
    assert scale.um_per_px == pytest.approx(100 / 137)
    assert "Visium" in scale.source


@pytest.mark.parametrize("fill", [0.36, 0.5, 0.64])
def test_a_square_lattice_half_filled_is_legacy_st(fill: float) -> None:
    scale = scale_from_spots(square(10, 10, 72.0), 72.0 * fill)
    assert scale is not None
    assert scale.um_per_px == pytest.approx(200 / 72)
    assert "legacy ST" in scale.source


@pytest.mark.parametrize("fill", [0.2, 0.34, 0.66, 0.7, 1.0, float("nan")])
def test_any_other_square_lattice_is_not_guessed(fill: float) -> None:
    # bins of Visium HD touch: 2, 8 or 16 µm, nobody knows
    assert scale_from_spots(square(10, 10, 30.0), 30.0 * fill) is None


def test_a_known_diameter_settles_it() -> None:
    scale = scale_from_spots(square(3, 3, 30.0), 30.0, spot_diameter_um=8.0)
    assert scale is not None
    assert scale.um_per_px == pytest.approx(8 / 30)
    assert "8 µm" in scale.source


@pytest.mark.parametrize("diameter_px", [float("nan"), 0.0, -1.0])
def test_a_known_diameter_needs_one_in_pixels(diameter_px: float) -> None:
    assert scale_from_spots(hexagonal(10, 10, 30.0), diameter_px, spot_diameter_um=55.0) is None

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from stcontrast._reading import find_lattice
from stcontrast.pp._tissue import Geometry, lattice_points, tissue_fraction

GEOMETRIES = st.sampled_from(["visium", "square"])


@given(st.floats(50, 400), st.floats(50, 400), st.floats(3, 15), GEOMETRIES)
def test_neighbours_are_one_pitch_apart_and_the_lattice_fills_the_middle(
    width: float, height: float, pitch: float, geometry: Geometry
) -> None:
    centers, array = lattice_points(width, height, pitch=pitch, geometry=geometry)
    if min(width, height) > 8 * pitch:
        found = find_lattice(centers)
        assert found is not None
        assert found.pitch == pytest.approx(pitch, rel=1e-9)
        assert found.neighbors == (6 if geometry == "visium" else 4)
    nearest = cKDTree(centers).query(centers, k=2)[0][:, 1]
    np.testing.assert_allclose(nearest, pitch, rtol=1e-9)
    low, high = centers.min(axis=0), (width, height) - centers.max(axis=0)
    np.testing.assert_allclose(low, high, rtol=1e-9, atol=1e-9)
    # no room for another row or column
    assert (low >= 0).all()
    assert (low <= pitch).all()
    assert len(np.unique(array, axis=0)) == len(array)


def test_odd_rows_are_shifted_by_half_a_pitch() -> None:
    centers, array = lattice_points(45, 40, pitch=10, geometry="visium")
    assert array[:5].tolist() == [[0, 0], [0, 2], [0, 4], [0, 6], [1, 1]]
    np.testing.assert_allclose(centers[4] - centers[0], (5, 10 * np.sqrt(0.75)))
    assert lattice_points(5, 5, pitch=10, geometry="square").centers.shape == (0, 2)


@given(st.floats(-30, 130), st.floats(2, 40), st.integers(1, 5), GEOMETRIES)
def test_fraction_at_a_straight_edge(x: float, diameter: float, downsampling: int, geometry: Geometry) -> None:
    # tissue is what lies left of 60; the segment of a disc, or the strip of a square, in closed form
    mask = np.zeros((120 // downsampling, 120 // downsampling), dtype=bool)
    mask[:, : 60 // downsampling] = True
    (found,) = tissue_fraction(
        np.array([[x, 60.0]]), mask, downsampling=downsampling, diameter=diameter, geometry=geometry
    )

    def left_of(edge: float) -> float:
        t = np.clip(2 * (edge - x) / diameter, -1, 1)
        return (t + 1) / 2 if geometry == "square" else 1 - (np.arccos(t) - t * np.sqrt(1 - t**2)) / np.pi

    edge = 60 // downsampling * downsampling
    assert found == pytest.approx(left_of(edge) - left_of(0), abs=0.1)


def test_a_million_spots_take_seconds() -> None:
    start = time.perf_counter()
    centers, _ = lattice_points(60_000, 60_000, pitch=64, geometry="visium")
    assert len(centers) > 1_000_000
    mask = np.ones((2000, 2000), dtype=bool)
    assert tissue_fraction(centers, mask, downsampling=30, diameter=40, geometry="visium").min() == 1
    assert time.perf_counter() - start < 60

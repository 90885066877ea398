from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stcontrast._reading import find_lattice, middle_spots, scale_from_spots, spot_distance
from stcontrast._reading.scale import bin_side_um
from tests.lattices import CELLS, PLATFORMS, RELAXED, draw
from tests.synthetic import hexagonal, square

KNOWN = ("Visium", "legacy ST")


def rotated(xy: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return xy @ np.array([[c, s], [-s, c]])


@given(
    st.floats(0.5, 500), st.floats(0, 2 * np.pi), st.floats(-1e4, 1e4), st.sampled_from([(hexagonal, 6), (square, 4)])
)
def test_a_lattice_is_known_wherever_it_lies(pitch: float, angle: float, shift: float, kind: tuple) -> None:
    sites, neighbors = kind
    found = find_lattice(rotated(sites(8, 9, pitch), angle) + shift)
    assert found is not None
    assert found.pitch == pytest.approx(pitch, rel=1e-6)
    assert found.neighbors == neighbors
    assert found.jitter < 1e-6


@pytest.mark.parametrize(("wide", "high"), [(12, 5), (5, 12), (9, 9)])
def test_the_longer_side_of_a_lattice_is_counted_in_sites(wide: int, high: int) -> None:
    found = find_lattice(square(wide, high, 200.0) + 1e4)
    assert found is not None
    assert found.side == max(wide, high)


@given(st.integers(0, 1000))
def test_jitter_does_not_bias_the_pitch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for sites, neighbors in ((hexagonal, 6), (square, 4)):
        found = find_lattice(sites(20, 20, 100.0) + rng.normal(0, 3.0, (400, 2)))
        assert found is not None
        assert found.pitch == pytest.approx(100.0, rel=0.002)
        assert found.neighbors == neighbors
        assert found.jitter == pytest.approx(0.03, rel=0.15)


@pytest.mark.situation(
    "µm per pixel",
    "Any array, with holes and jitter, rotated and mirrored",
    "derived correctly, or an error asks for it",
)
@given(st.integers(0, 2**32), st.sampled_from([*PLATFORMS, RELAXED, CELLS]))
@example(seed=3650, platform="cells near a hexagonal lattice")  # 29 cells that lie near it by chance
def test_a_scale_is_right_or_asked_for(seed: int, platform: str) -> None:
    spots = draw(np.random.default_rng(seed), [platform])
    found = scale_from_spots(spots.centers, spots.width_px)
    if platform not in KNOWN:
        assert found.um_per_px is None
    elif found.um_per_px is not None:
        assert found.um_per_px == pytest.approx(spots.um_per_px, rel=0.02)


@pytest.mark.parametrize(("sites", "width", "near", "far"), [(hexagonal, 55.0, 0.03, 0.05), (square, 50.0, 0.05, 0.08)])
def test_few_spots_must_lie_nearer_to_their_sites(sites, width, near, far) -> None:
    """Jitter is estimated without bias, and what may be a chance finding among few spots is asked for."""
    known = {}
    for side in (5, 20):
        for jitter in (near, far):
            drawn = [
                sites(side, side, 100.0) + np.random.default_rng(i).normal(0, 100 * jitter, (side**2, 2))
                for i in range(40)
            ]
            found = [find_lattice(xy) for xy in drawn]
            estimates = [lattice.jitter for lattice in found if lattice is not None]
            if jitter == near:
                assert np.sqrt(np.mean(np.square(estimates))) == pytest.approx(jitter, rel=0.04)
            known[side, jitter] = np.mean([scale_from_spots(xy, width).um_per_px is not None for xy in drawn])
    assert known[20, near] == 1
    assert 0.5 < known[5, near] <= 1
    assert known[5, far] == known[20, far] == 0


@pytest.mark.parametrize("holes", [0.0, 0.1, 0.3, 0.5, 0.6])
@pytest.mark.parametrize("platform", KNOWN)
def test_holes_do_not_make_it_a_question(platform: str, holes: float) -> None:
    # scverse/squidpy#339
    sites, pitch_um, widths, _ = PLATFORMS[platform]
    for seed in range(5):
        xy = sites(15, 15, pitch_um / 2)[np.random.default_rng(seed).random(225) >= holes]
        for width in widths:
            assert scale_from_spots(xy, width / 2).um_per_px == pytest.approx(2.0)


def test_a_tissue_of_several_pieces_keeps_its_lattice() -> None:
    xy = hexagonal(40, 40, 50.0)
    x, y = (xy / 50.0).T
    apart = xy[((x < 8) & (y < 9)) | ((x > 25) & (y > 22)) | ((x > 30) & (y < 6))]
    assert scale_from_spots(apart, 32.5).um_per_px == pytest.approx(2.0)


@pytest.mark.parametrize(("step", "width"), [(2, 55.0), (2, 65.0), (3, 65.0)])
def test_every_second_spot_is_not_taken_for_another_platform(step: int, width: float) -> None:
    i, j = np.mgrid[:30:step, :30:step]
    xy = 50.0 * np.column_stack([(j + i / 2).ravel(), (i * np.sqrt(0.75)).ravel()])
    assert scale_from_spots(xy, width / 2).um_per_px is None


def test_row_order_and_repeated_spots_do_not_matter() -> None:
    xy = hexagonal(10, 10, 30.0)
    order = np.random.default_rng(0).permutation(100)
    for same in (xy[order], np.repeat(xy, 2, axis=0)):
        found = find_lattice(same)
        assert found is not None
        assert (found.pitch, found.neighbors) == pytest.approx((30.0, 6))
    assert spot_distance(np.repeat(xy, 2, axis=0)) == pytest.approx(30.0)


@pytest.mark.parametrize(
    "xy",
    [hexagonal(2, 3), hexagonal(1, 40), np.zeros((20, 2)), np.empty((0, 2))],
    ids=["six", "a row", "a place", "none"],
)
def test_too_few_distinct_spots_are_no_lattice(xy: np.ndarray) -> None:
    assert find_lattice(xy) is None
    assert scale_from_spots(xy, 0.65).um_per_px is None


@pytest.mark.parametrize(
    "stretched", [square(12, 12, 30.0) * [1.0, 1.1], hexagonal(12, 12, 30.0) * [1.04, 1.0]], ids=["square", "hexagonal"]
)
def test_a_stretched_lattice_is_none(stretched: np.ndarray) -> None:
    assert find_lattice(stretched) is None


@pytest.mark.situation(
    "µm per pixel", "No platform, or more than one, fits the lattice and the width of the spots", "an error asks for it"
)
@pytest.mark.parametrize(
    ("sites", "width", "why"),
    [
        (hexagonal(10, 10, 30.0), np.nan, "width is not known"),
        (hexagonal(10, 10, 30.0), 30.0 * 0.60, "hexagonal lattice (30.0 px between neighbours) and are 0.60 of that wide"),
        (hexagonal(10, 10, 30.0), 30.0 * 100 / 150, "0.67 of that wide: no platform"),
        (square(10, 10, 30.0), 30.0 * 0.55, "square lattice (30.0 px between neighbours) and are 0.55"),
        (square(10, 10, 30.0), 30.0, "bins that touch"),
        (square(40, 20, 30.0), 15.0, "no platform"),
        (hexagonal(130, 120, 30.0), 19.5, "no platform"),
        (np.random.default_rng(0).uniform(0, 900, (500, 2)), 19.5, "no regular lattice"),
    ],
    ids=[
        "no width", "no Visium width", "150 µm array", "pooled squares", "bins", "more than legacy ST has",
        "more than Visium has", "cells",
    ],
)  # fmt: skip
def test_what_is_asked_for_says_why(sites: np.ndarray, width: float, why: str) -> None:
    found = scale_from_spots(sites, width)
    assert found.um_per_px is None
    assert why in found.source


def test_spots_of_many_sizes_are_cells() -> None:
    found = scale_from_spots(hexagonal(10, 10, 30.0), 19.5, one_size=False)
    assert found.um_per_px is None
    assert "as cells do" in found.source


@pytest.mark.parametrize(
    ("sites", "width", "um", "assumed"),
    [(hexagonal, 0.55, 100, False), (hexagonal, 0.65, 100, False), (square, 0.5, 200, True)],
    ids=["Visium as printed", "Visium of Space Ranger", "legacy ST"],
)
def test_known_platforms(sites: object, width: float, um: float, assumed: bool) -> None:
    found = scale_from_spots(sites(10, 10, 137.0), 137.0 * width)  # type: ignore[operator]
    assert found.um_per_px == pytest.approx(um / 137)
    assert found.assumed is assumed


@pytest.mark.parametrize(
    ("names", "side"),
    [
        (["square_008um"], 8.0), (["S1_square_016um"], 16.0), (["HD_square_002um_labels"], 2.0),
        (["table", "s_008um_00010_00042-1"], 8.0), (["table", "s_016um_00010_00042-1-A"], 16.0),
        (["table", None, "AAAC-1"], None), (["squares_008um"], None), (["square_8"], None), (["les_008um"], None),
    ],
)  # fmt: skip
def test_the_side_of_the_bins_is_in_their_names(names: list[str | None], side: float | None) -> None:
    assert bin_side_um(names) == side


def test_a_million_bins_are_looked_at_around_the_middle() -> None:
    xy = square(1000, 1000, 5.0)
    found = find_lattice(xy[np.random.default_rng(0).random(len(xy)) < 0.5])
    assert found is not None
    assert (found.pitch, found.neighbors) == pytest.approx((5.0, 4))
    assert len(middle_spots(xy)) == 4000
    # around the median of each axis, wherever the slide lies
    for shift in ((0, 0), (1e5, 0), (0, -1e5)):
        np.testing.assert_allclose(middle_spots(xy + shift)[0], np.median(xy, axis=0) + shift, atol=5.0)
    np.testing.assert_array_equal(middle_spots(xy[:50]), middle_spots(np.repeat(xy[:50], 3, axis=0)))

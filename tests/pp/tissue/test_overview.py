from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stcontrast._reading import SlideImage
from stcontrast.pp._tissue import detect as _detect
from stcontrast.pp._tissue import overview
from tests.synthetic import picture, smooth_picture


def lazy(pixels: np.ndarray) -> SlideImage:
    return SlideImage("he", (da.from_array(np.moveaxis(pixels, -1, 0), chunks=(3, 32, 32)),), (1.0,))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(5, 40))
def test_tiles_fit_together(height: int, width: int, tile: int) -> None:
    pixels = picture(height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_detect, "TILE_PX", tile)
        np.testing.assert_array_equal(overview(lazy(pixels), 1), pixels)


@pytest.mark.parametrize("downsampling", [2, 3, 8])
def test_each_pixel_is_the_average_of_what_it_covers(downsampling: int) -> None:
    pixels = smooth_picture(240)
    n = 240 // downsampling
    expected = pixels.reshape(n, downsampling, n, downsampling, 3).mean(axis=(1, 3))
    found = overview(lazy(pixels), downsampling)
    assert found.shape == (n, n, 3)
    inner = np.abs(found - expected)[1:-1, 1:-1]
    # the filter reaches one pixel further, and waves are 40 pixels long
    assert inner.mean() < 0.5 + 0.06 * downsampling**2

"""What lies beyond the border of an image."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from stcontrast._reading import SlideImage
from stcontrast.pp._crops import background_color


def slide(pixels: np.ndarray, *more: np.ndarray) -> SlideImage:
    levels = tuple(da.from_array(np.moveaxis(part, -1, 0), chunks=(3, 64, 64)) for part in (pixels, *more))
    return SlideImage("he", levels, tuple(len(pixels) / len(part) for part in (pixels, *more)))


def section(glass: int, tissue: tuple[int, int, int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    pixels = np.clip(rng.normal(glass, 1.5, (200, 240, 3)), 0, 255).astype(np.uint8)
    pixels[40:160, 40:200] = np.clip(rng.normal(tissue, 25, (120, 160, 3)), 0, 255)
    return pixels


@pytest.mark.parametrize("glass", [250, 228, 0])
def test_it_is_the_glass_around_the_tissue_or_the_mask(glass: int) -> None:
    assert np.abs(background_color(slide(section(glass, (190, 120, 170)))).astype(int) - glass).max() <= 1


def test_tissue_that_is_cut_off_does_not_count() -> None:
    pixels = section(240, (190, 120, 170))
    # three quarters of the frame are tissue
    cropped = pixels[60:, 60:180]
    assert np.abs(background_color(slide(cropped)).astype(int) - 240).max() <= 3


def test_it_is_looked_for_in_the_coarsest_level() -> None:
    fine, coarse = np.full((128, 128, 3), 200, np.uint8), np.full((32, 32, 3), 230, np.uint8)
    assert background_color(slide(fine, coarse)).tolist() == [230, 230, 230]


def test_only_the_frame_is_read() -> None:
    read = 0

    def counted(block: np.ndarray) -> np.ndarray:
        nonlocal read
        read += 1
        return block

    pixels = np.full((3, 640, 640), 240, np.uint8)
    level = da.from_array(pixels, chunks=(3, 64, 64)).map_blocks(
        counted, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    assert background_color(SlideImage("he", (level,), (1.0,))).tolist() == [240, 240, 240]
    # of a hundred chunks those at the rim, corners from two sides
    assert read == 40

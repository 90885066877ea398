from __future__ import annotations

from typing import TYPE_CHECKING

import dask.array as da
import numpy as np
import pytest

from stcontrast._reading import image_from_array
from stcontrast._reading.pixels import as_bytes
from tests.synthetic import picture

if TYPE_CHECKING:
    from collections.abc import Callable

# glass is bright
PICTURE = np.moveaxis(picture(200, 160), -1, 0)
PICTURE[:, :20] = 250


def converted(pixels: np.ndarray) -> np.ndarray:
    levels = [da.from_array(pixels, chunks=(3, 64, 64)), da.from_array(pixels[:, ::2, ::2], chunks=(3, 64, 64))]
    fine, coarse = as_bytes(levels, "he")
    assert fine.dtype == coarse.dtype == np.uint8
    np.testing.assert_array_equal(coarse.compute(), fine.compute()[:, ::2, ::2])
    return np.asarray(fine.compute())


KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uint8": lambda p: p,
    "8 bits in uint16": lambda p: p.astype(np.uint16),
    "10 bits in uint16": lambda p: np.rint(p * (1023 / 255)).astype(np.uint16),
    "12 bits in uint16": lambda p: np.rint(p * (4095 / 255)).astype(np.uint16),
    "12 bits, shifted": lambda p: p.astype(np.uint16) * 16,
    "14 bits in uint16": lambda p: np.rint(p * (16383 / 255)).astype(np.uint16),
    "16 bits": lambda p: p.astype(np.uint16) * 257,
    "8 bits in int16": lambda p: p.astype(np.int16),
    "8 bits in int64": lambda p: p.astype(np.int64),
    "16 bits in int32": lambda p: p.astype(np.int32) * 257,
    "0 to 1, float32": lambda p: p.astype(np.float32) / 255,
    "0 to 1, float64": lambda p: p / 255,
    "0 to 1, float16": lambda p: (p / 255).astype(np.float16),
    "0 to 255, float32": lambda p: p.astype(np.float32),
    "overshooting": lambda p: np.where(p == p.max(), 1.02, np.where(p == p.min(), -0.01, p / 255)),
}


@pytest.mark.situation("Images", "Pixels are stored in another type or range than uint8", "works")
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_brought_to_bytes(kind: str) -> None:
    # scverse/spatialdata-plot#520
    found = converted(KINDS[kind](PICTURE)).astype(int)
    assert np.abs(found - PICTURE).max() <= (5 if kind == "overshooting" else 1)


@pytest.mark.situation(
    "Images", "Whole numbers use a part of the range of their type", "warning", "white is taken to be"
)
def test_an_unusual_range_is_said(caplog: pytest.LogCaptureFixture) -> None:
    converted(PICTURE.astype(np.uint16) * 16)
    assert "Image 'he': uint16 that holds values up to 4095: white is taken to be 4095" in caplog.text
    caplog.clear()
    converted(PICTURE.astype(np.uint16) * 257)
    converted(PICTURE / 255)
    assert caplog.text == ""


@pytest.mark.situation("Images", "No range fits the pixels", "error")
@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (PICTURE.astype(np.uint16) * 30, "'he' .uint16. holds values from 0 to 7650: what is white"),
        (PICTURE.astype(np.float32) / 128 - 1, "from -1 to 0.992.*Negative values are no brightness"),
        (PICTURE.astype(np.float32) - 100, "Negative values"),
        (PICTURE.astype(np.int16) - 100, "Negative values"),
        (PICTURE.astype(np.float32) * 16, "holds values from 0 to 4080"),
        (PICTURE.astype(np.float64) / 128, "holds values from 0 to 1.99"),
        (PICTURE > 100, "pixels of type bool"),
        (PICTURE.astype(np.complex64), "pixels of type complex64"),
    ],
    ids=[
        "between 12 and 14 bits",
        "-1 to 1",
        "negative floats",
        "negative whole",
        "12 bits in float",
        "0 to 2",
        "bool",
        "complex",
    ],
)
def test_pixels_of_unknown_range_are_refused(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        converted(pixels)


def test_a_dark_image_of_16_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="what is white"):
        converted((PICTURE.astype(np.uint16) * 3).clip(0, 400))


def test_a_range_that_the_overview_did_not_show_is_refused() -> None:
    pixels = np.full((3, 2000, 2000), 200, dtype=np.uint16)
    pixels[:, 70:380, 70:380] = 40_000  # between the windows
    with pytest.raises(ValueError, match="holds 40000, more than 255"):
        as_bytes([da.from_array(pixels, chunks=(3, 256, 256))], "he")[0].compute()


def test_a_hole_in_a_floating_image_is_white() -> None:
    pixels = PICTURE / 255
    pixels[:, 30:60, 30:60] = np.nan
    assert (converted(pixels)[:, 30:60, 30:60] == 255).all()
    assert (converted(np.full((3, 40, 40), np.nan)) == 255).all()


@pytest.mark.parametrize("kind", ["0 to 1, float32", "8 bits in uint16", "uint8"])
def test_an_image_in_memory_is_converted_too(kind: str) -> None:
    found = image_from_array(np.moveaxis(KINDS[kind](PICTURE), 0, -1), "lib/hires").levels[0]
    np.testing.assert_array_equal(found.compute(), PICTURE)

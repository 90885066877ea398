from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, sobel
from skimage.color import rgb2hed

from stcontrast.pp import ColorEncoder, TextureEncoder
from stcontrast.pp._encoders import N_COLOR, encoder_from_spec, resolve_encoder
from stcontrast.pp._encoders.plain import FLOOR

CROPS = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
# places among the nine of a channel
BANDS, SKEWS, GRADIENT, COHERENCE, MIDDLE = [0, 2, 4], [1, 3, 5], 6, 7, 8


def texture(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nine of each of haematoxylin, eosin and density (n, 3, 9), and how the stains go together (n,)."""
    found = TextureEncoder(crops.shape[1])(crops)[:, N_COLOR:]
    return found[:, :27].reshape(-1, 3, 9), found[:, 27]


def grey(pattern: Any) -> np.ndarray:
    """One crop in grey, of a pattern of values in [0, 255]."""
    return np.repeat(np.round(pattern).astype(np.uint8)[None, ..., None], 3, axis=-1)


def smooth(crops: np.ndarray, sigma: float) -> np.ndarray:
    blurred = gaussian_filter(crops.astype(np.float32), (0, sigma, sigma, 0))
    return np.clip(128 + 2 * sigma * (blurred - 128), 0, 255).astype(np.uint8)


def test_the_shape_and_the_part_of_colour() -> None:
    for size_px in (16, 18, 64):
        crops = CROPS[:, :size_px, :size_px]
        found = TextureEncoder(size_px)(crops)
        assert found.shape == (6, 63)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found[:, :35], ColorEncoder(size_px)(crops))


def by_hand(values: np.ndarray) -> list[float]:
    """The nine of one channel of one crop, with scipy's filters and in double precision."""
    coarser = [gaussian_filter(values, sigma, mode="nearest") for sigma in (1, 2, 4)]
    nine = []
    for one, other in zip([values, *coarser], coarser, strict=False):
        band = one - other
        nine += [np.log(band.std() + FLOOR), ((band - band.mean()) ** 3).mean() / (band.std() + FLOOR) ** 3]
    down, across = (sobel(coarser[0], axis=axis) for axis in (0, 1))
    tensor = np.array([[(a * b).mean() for a in (down, across)] for b in (down, across)])
    low, high = np.linalg.eigvalsh(tensor)
    q = len(values) // 4
    middle = values[q:-q, q:-q].mean() - values.mean()
    return [*nine, np.log(np.sqrt(low + high) + FLOOR), (high - low) / (low + high + FLOOR**2), middle]


@pytest.mark.parametrize("sigma", [0.0, 2.0, 6.0])
@pytest.mark.parametrize("size_px", [16, 34, 64])
def test_the_statistics_by_hand(sigma: float, size_px: int) -> None:
    crops = (smooth(CROPS, sigma) if sigma else CROPS)[:3, :size_px, :size_px]
    nine, together = texture(crops)
    for i, crop in enumerate(crops):
        half = crop.reshape(size_px // 2, 2, size_px // 2, 2, 3).mean(axis=(1, 3)) / 255
        stains = rgb2hed(half)
        density = -np.log10(np.maximum(half, 1 / 255)).mean(axis=-1)
        expected = [by_hand(values) for values in (stains[..., 0], stains[..., 1], density)]
        np.testing.assert_allclose(nine[i], expected, atol=1e-4)
        h, e = (stains[..., j] - stains[..., j].mean() for j in range(2))
        np.testing.assert_allclose(together[i], (h * e).mean() / (h.std() * e.std() + FLOOR**2), atol=1e-4)


def test_a_crop_does_not_see_the_others_of_its_batch() -> None:
    encoder = TextureEncoder()
    alone = np.concatenate([encoder(crop[None]) for crop in CROPS])
    np.testing.assert_allclose(encoder(CROPS), alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encoder(CROPS[::-1]), alone[::-1], rtol=1e-5, atol=1e-6)


@given(
    seed=st.integers(0, 999), half=st.integers(8, 20), lowest=st.integers(0, 250), span=st.integers(1, 256),
    sigma=st.sampled_from([0.0, 1.0, 3.0]),
)  # fmt: skip
def test_turns_and_mirrors_do_not_matter(seed: int, half: int, lowest: int, span: int, sigma: float) -> None:
    rng = np.random.default_rng(seed)
    crops = rng.integers(lowest, min(lowest + span, 256), (2, 2 * half, 2 * half, 3), dtype=np.uint8)
    if sigma:
        crops = smooth(crops, sigma)
    encoder = TextureEncoder(2 * half)
    expected = encoder(crops)
    for turned in (np.rot90(crops, quarters, axes=(1, 2)) for quarters in range(4)):
        np.testing.assert_allclose(encoder(turned), expected, atol=1e-4)
        np.testing.assert_allclose(encoder(turned[:, ::-1]), expected, atol=1e-4)


@pytest.mark.parametrize("value", [0, 1, 77, 255, (200, 120, 180)])
def test_a_flat_crop_has_no_texture(value: Any) -> None:
    nine, together = texture(np.broadcast_to(np.uint8(value), (2, 64, 64, 3)))
    np.testing.assert_allclose(nine[..., [*BANDS, GRADIENT]], np.log(FLOOR), atol=1e-3)
    np.testing.assert_allclose(nine[..., [*SKEWS, COHERENCE, MIDDLE]], 0, atol=1e-5)
    np.testing.assert_allclose(together, 0, atol=1e-5)


@pytest.mark.parametrize("angle", [0, 30, 45, 90, 110])
def test_stripes_are_coherent_and_noise_is_not(angle: int) -> None:
    y, x = np.mgrid[:64, :64]
    direction = np.deg2rad(angle)
    stripes = grey(128 + 80 * np.sin(2 * np.pi / 12 * (np.cos(direction) * x + np.sin(direction) * y)))
    assert texture(stripes)[0][0, [0, 2], COHERENCE].min() > 0.9
    noise = np.random.default_rng(angle).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    assert texture(noise)[0][..., COHERENCE].max() < 0.3


def test_a_period_lies_in_its_band() -> None:
    y, x = np.mgrid[:64, :64]
    fine = grey(128 + 60 * (-1.0) ** (x // 2 + y // 2))
    slow = grey(128 + 60 * np.sin(2 * np.pi * x / 64))
    for crop, band in ((fine, 0), (slow, 2)):
        bands = texture(crop)[0][0, :, BANDS].T
        for of_channel in bands[[0, 2]]:
            assert of_channel.argmax() == band
            assert np.sort(of_channel)[-1] - np.sort(of_channel)[-2] > 0.5
    # what is finer than half the resolution is not seen
    invisible, _ = texture(grey(128 + 60 * (-1.0) ** (x + y)))
    np.testing.assert_allclose(invisible[..., BANDS], np.log(FLOOR), atol=1e-3)


def test_the_skew_of_dark_dots_and_of_holes() -> None:
    y, x = np.mgrid[:64, :64]
    dots = 150 * ((x % 16 < 4) & (y % 16 < 4))
    dark, bright = texture(grey(220 - dots))[0], texture(grey(50 + dots))[0]
    assert (dark[0, 2, SKEWS[:2]] > 0.5).all()
    assert (bright[0, 2, SKEWS[:2]] < -0.5).all()


def test_the_middle_against_the_whole() -> None:
    crop = np.full((64, 64), 100)
    crop[16:48, 16:48] = 200
    bright, dark = texture(grey(crop))[0][0], texture(grey(300 - crop))[0][0]
    # a quarter of the area: the middle is 3/4 of the step away from the mean
    np.testing.assert_allclose(bright[2, MIDDLE], -0.75 * np.log10(2), atol=1e-4)
    np.testing.assert_allclose(dark[2, MIDDLE], 0.75 * np.log10(2), atol=1e-4)
    assert bright[0, MIDDLE] < 0 < dark[0, MIDDLE]


def test_stains_together_and_apart() -> None:
    """Where eosin is strong, haematoxylin is strong too; or the other way round."""
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    wave = 0.03 * np.sin(2 * np.pi * np.arange(64) / 16)[:, None] * np.ones(64)
    for sign in (1, -1):
        amounts = np.stack([0.07 + wave, 0.07 + sign * wave], axis=-1)
        rgb = np.exp(np.log(1e-6) * (amounts @ stains))
        _, together = texture(np.round(255 * rgb[None]).astype(np.uint8))
        assert sign * together[0] > 0.95


@pytest.mark.parametrize("size_px", [0, 8, 15, 17, 63, -64])
def test_an_odd_or_too_small_side_is_refused(size_px: int) -> None:
    with pytest.raises(ValueError, match=f"`size_px` must be an even whole number of at least 16, found {size_px}"):
        TextureEncoder(size_px)


@pytest.mark.parametrize("size_px", [None, 32])
def test_name_and_record(size_px: int | None) -> None:
    encoder = resolve_encoder("texture", size_px=size_px)
    assert encoder == TextureEncoder(size_px or 64)
    assert encoder.spec == {"kind": "texture", "name": "texture", "size_px": size_px or 64}
    assert encoder_from_spec(encoder.spec) == encoder
    with pytest.raises(ValueError, match="must be an even"):
        resolve_encoder("texture", size_px=33)

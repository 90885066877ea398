from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import hed2rgb, rgb2hed
from torchvision.transforms.v2 import functional

from stcontrast._models.image_tower.augment import augment, hed_to_rgb, jitter_color, jitter_stain, rgb_to_hed, turn


@pytest.fixture
def crops() -> torch.Tensor:
    return torch.rand(8, 2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_turn_applies_every_symmetry_of_the_square(crops: torch.Tensor) -> None:
    same = crops[:1].expand(8, -1, -1, -1, -1)
    turned = turn(same, torch.arange(8))
    expected = [np.rot90(crops[0].numpy(), k, axes=(2, 3)) for k in range(4)]
    expected += [np.flip(part, axis=3) for part in expected]
    np.testing.assert_array_equal(turned.numpy(), np.stack(expected))
    assert len({part.numpy().tobytes() for part in turned}) == 8


def test_color_jitter_is_that_of_torchvision_spot_by_spot(crops: torch.Tensor) -> None:
    factors = torch.empty(3, 8).uniform_(0.6, 1.4, generator=torch.Generator().manual_seed(1))
    found = jitter_color(crops, *factors)
    for i, (brightness, contrast, saturation) in enumerate(factors.T.tolist()):
        expected = functional.adjust_brightness(crops[i], brightness)
        expected = functional.adjust_contrast(expected, contrast)
        expected = functional.adjust_saturation(expected, saturation)
        torch.testing.assert_close(found[i], expected, atol=2e-4, rtol=0)


def test_stain_jitter_by_nothing_changes_nothing_and_by_more_darkens(crops: torch.Tensor) -> None:
    one, zero = torch.ones(8, 3), torch.zeros(8, 3)
    torch.testing.assert_close(jitter_stain(crops, one, zero), crops, atol=1e-4, rtol=1e-4)
    assert jitter_stain(crops, one, zero + 0.02).mean() < crops.mean() - 0.01


def test_augmented_crops_are_valid_images_and_depend_on_the_seed_only(crops: torch.Tensor) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(augment(crops, stain=0.3, color=0.3))
    assert found[0].shape == crops.shape
    assert float(found[0].min()) >= 0
    assert float(found[0].max()) <= 1
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)
    assert not torch.allclose(found[0], found[2])
    # spots differ, the fields of a spot do not
    same = augment(crops[:1, :1].expand(8, 2, -1, -1, -1), stain=0.3, color=0.3)
    torch.testing.assert_close(same[:, 0], same[:, 1])
    assert len({part.numpy().tobytes() for part in same}) == 8


@given(seed=st.integers(0, 2**16), leading=st.sampled_from([(), (2,), (2, 3)]))
def test_stains_are_those_of_skimage_and_the_way_back_is_lossless(seed: int, leading: tuple[int, ...]) -> None:
    rgb = np.random.default_rng(seed).uniform(0, 1, (*leading, 3, 4, 5))
    hed = rgb_to_hed(torch.from_numpy(rgb))
    expected = np.moveaxis(rgb2hed(np.moveaxis(rgb, -3, -1)), -1, -3)
    np.testing.assert_allclose(hed.clamp_min(0).numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(hed_to_rgb(hed).numpy(), rgb, atol=1e-10)


def test_mixed_stains_give_the_picture_of_skimage() -> None:
    hed = np.random.default_rng(0).uniform(-0.05, 0.2, (3, 6, 7))
    expected = np.moveaxis(hed2rgb(np.moveaxis(hed, 0, -1)), -1, 0)
    np.testing.assert_allclose(hed_to_rgb(torch.from_numpy(hed)).numpy(), expected, atol=1e-10)

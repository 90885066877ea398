from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import hed2rgb, rgb2hed

from stcontrast._models.image_tower.augment import hed_to_rgb, rgb_to_hed


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

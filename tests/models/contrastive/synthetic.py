"""Pairs with a planted signal: one hidden state shows in image and gene coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pairs(n: int = 240, *, seed: int = 0) -> dict[str, NDArray]:
    """Arrays of four slides of spots; the maps from the hidden state are the same for every seed."""
    truth = np.random.default_rng(1234)
    to_image, to_gene = truth.normal(size=(4, 10)), truth.normal(size=(4, 5)) / 2
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(n, 4))
    image = state @ to_image / 2 + 0.15 * rng.normal(size=(n, 10))
    return {
        "image": image.astype(np.float32),
        "gene": (state @ to_gene).astype(np.float32),
        "slide": np.arange(n) * 4 // n,
    }

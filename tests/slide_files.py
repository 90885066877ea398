"""Small whole-slide files: tiled pyramidal TIFF without loss, as a scanner would write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["halved", "write_slide"]


def halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The next level of a pyramid, averaged; a last odd row or column is left out."""
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return blocks.mean(axis=(1, 3)).round().astype(pixels.dtype)


def write_slide(path: Path, levels: Sequence[NDArray[np.uint8]], *, um_per_px: float | None) -> Path:
    """Write levels (height, width, 3), the finest first, into tiles of 64 pixels."""
    tifffile = pytest.importorskip("tifffile")
    scale = {"resolution": (1e4 / um_per_px,) * 2, "resolutionunit": "CENTIMETER"} if um_per_px else {}
    with tifffile.TiffWriter(path) as file:
        for i, level in enumerate(levels):
            file.write(
                level, tile=(64, 64), photometric="rgb", compression="deflate", subfiletype=int(i > 0), **scale
            )  # fmt: skip
    return path

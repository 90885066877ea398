"""Encoders without weights: statistics of colour, stain and texture, or a given function."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._arguments import Rule, check_fields, whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


__all__ = [
    "N_COLOR",
    "PLAIN",
    "CallableEncoder",
    "ColorEncoder",
    "TextureEncoder",
    "color_statistics",
    "texture_statistics",
]

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
# red, green, blue, haematoxylin, eosin: mean, deviation and quantiles
N_COLOR: Final = 5 * (2 + len(QUANTILES))
# Gaussians that the bands lie between, in pixels at half resolution
SIGMAS: Final = (1, 2, 4)
# in optical density: below it lies the noise of compression and of enlarged images
FLOOR: Final = 2e-3
EVEN: Final = Rule("an even whole number of at least 16", lambda value: whole(16).holds(value) and value % 2 == 0)


def color_statistics(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean, deviation and quantiles (n, 35) of colours and stains of crops (n, size_px, size_px, 3)."""
    colors = np.moveaxis(crops, -1, 1).reshape(len(crops), 3, -1)
    levels = np.arange(256) / 255
    # ascending pixels of each channel: (n, 5, n_pixels)
    pixels = np.concatenate([levels.astype(np.float32)[colors], _stains(colors, levels)], axis=1)
    pixels.sort(axis=-1)
    place = np.array(QUANTILES) * (pixels.shape[-1] - 1)
    below = place.astype(np.intp)
    lower, upper = pixels[..., below], pixels[..., np.minimum(below + 1, pixels.shape[-1] - 1)]
    quantiles = lower + (upper - lower) * (place - below).astype(np.float32)
    statistics = [pixels.mean(axis=-1), pixels.std(axis=-1), *np.moveaxis(quantiles, -1, 0)]
    return np.concatenate(statistics, axis=1)


def texture_statistics(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bands, gradients and layout (n, 28) of stains and density of crops (n, size_px, size_px, 3)."""
    n, half = len(crops), crops.shape[1] // 2
    # four pixels make one; their sum is one of 1021 levels
    colors = np.moveaxis(crops, -1, 1).reshape(n, 3, half, 2, half, 2).astype(np.uint16)
    colors = colors[:, :, :, 0] + colors[:, :, :, 1]
    colors = colors[..., 0] + colors[..., 1]
    levels = np.arange(4 * 255 + 1) / (4 * 255)
    stains = _stains(colors, levels)
    density = (-np.log10(np.maximum(levels, 1 / 255))).astype(np.float32)[colors].mean(axis=1)
    statistics = [part for channel in (stains[:, 0], stains[:, 1], density) for part in _of_channel(channel)]
    both = stains.reshape(n, 2, -1)
    both = both - both.mean(axis=-1, keepdims=True)
    together = (both[:, 0] * both[:, 1]).mean(axis=-1) / (both.std(axis=-1).prod(axis=-1) + FLOOR**2)
    return np.stack([*statistics, together], axis=1).astype(np.float32)


def _stains(colors: NDArray[np.unsignedinteger], levels: NDArray[np.float64]) -> NDArray[np.float32]:
    """Haematoxylin and eosin (n, 2, ...) of colours (n, 3, ...), given as indices of levels in [0, 1].

    They are those of :func:`skimage.color.rgb2hed`, whose logarithm is taken of the levels instead of every pixel.
    """
    from skimage.color import hed_from_rgb

    density = (np.log(np.maximum(levels, 1e-6)) / np.log(1e-6)).astype(np.float32)
    red, green, blue = (density[colors[:, channel]] for channel in range(3))
    r, g, b = hed_from_rgb.astype(np.float32)[:, :2, *(None,) * (colors.ndim - 1)]
    unmixed = [r[i] * red + g[i] * green + b[i] * blue for i in range(2)]
    return np.maximum(np.stack(unmixed, axis=1), np.float32(0))


def _of_channel(channel: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Statistics (n,) of one channel (n, side, side)."""
    smoothers, slope, across_slope = _operators(channel.shape[-1])
    quarter = channel.shape[-1] // 4
    # no statistic knows the level; without it nothing of a flat crop is left to rounding
    level = finer = channel - channel.mean(axis=(1, 2), keepdims=True)
    middle = level[:, quarter:-quarter, quarter:-quarter].mean(axis=(1, 2))
    statistics = []
    for smoother in smoothers:
        coarser = smoother @ level @ smoother.T
        band = (finer - coarser).reshape(len(channel), -1)
        centered = band - band.mean(axis=-1, keepdims=True)
        square = centered * centered
        deviation = np.sqrt(square.mean(axis=-1))
        third = (square * centered).mean(axis=-1)
        statistics += [np.log(deviation + FLOOR), third / (deviation + FLOOR) ** 3]
        finer = coarser
    across, down = across_slope @ level @ slope.T, slope @ level @ across_slope.T
    xx, yy, xy = ((one * other).mean(axis=(1, 2)) for one, other in ((across, across), (down, down), (across, down)))
    energy = xx + yy
    coherence = np.sqrt((xx - yy) ** 2 + 4 * xy**2) / (energy + FLOOR**2)
    return [*statistics, np.log(np.sqrt(energy) + FLOOR), coherence, middle]


@cache
def _operators(side: int) -> tuple[list[NDArray[np.float32]], NDArray[np.float32], NDArray[np.float32]]:
    """Matrices (side, side) that work along one axis as scipy's filters do, the pixels at the rim repeated.

    Returns
    -------
    The Gaussians; Sobel's difference, and Sobel's mean across it, both after the first Gaussian.
    """
    from scipy.ndimage import correlate1d, gaussian_filter1d

    one = np.eye(side)
    smoothers = [gaussian_filter1d(one, sigma, axis=0, mode="nearest") for sigma in SIGMAS]
    slope, across_slope = (correlate1d(smoothers[0], kernel, axis=0) for kernel in ([-1, 0, 1], [1, 2, 1]))
    *smoothers, slope, across_slope = (matrix.astype(np.float32) for matrix in (*smoothers, slope, across_slope))
    return smoothers, slope, across_slope


@dataclass(frozen=True)
class ColorEncoder:
    """Colour and stain statistics of a crop, without weights and without a network.

    Red, green, blue and the optical densities of haematoxylin and eosin each have seven statistics: mean, standard
    deviation, and the quantiles 5, 25, 50, 75, 95 %. This gives 35 features. Stains are separated by
    :func:`skimage.color.rgb2hed` (Ruifrok and Johnston 2001).

    Parameters
    ----------
    size_px
        Side of the crops in pixels.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> stc.pp.ColorEncoder()(np.zeros((2, 64, 64, 3), dtype=np.uint8)).shape
    (2, 35)
    """

    size_px: int = 64

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def spec(self) -> dict[str, Any]:
        """Identity of the encoder."""
        return {"kind": "color", "name": "color", "size_px": self.size_px}

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Statistics (n, 35) of crops (n, size_px, size_px, 3)."""
        return color_statistics(crops)


@dataclass(frozen=True)
class TextureEncoder:
    """Statistics of colour, stain and texture of a crop, without weights and without a network.

    Texture is measured at half the resolution of the crop, in haematoxylin, eosin and optical density. The features
    are spread and skewness of the bands between Gaussians of 0, 1, 2 and 4 pixels (difference of Gaussians), strength
    and direction of gradients (coherence of the structure tensor), the middle of the crop compared with the whole
    crop, and the correlation of the stains. A floor suppresses bands that hold only the noise of an enlarged image. No
    feature changes if a crop is mirrored or rotated by a right angle.

    Parameters
    ----------
    size_px
        Side of the crops in pixels: even, at least 16.

    Raises
    ------
    ValueError
        If the side is odd or less than 16.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> stc.pp.TextureEncoder()(np.zeros((2, 64, 64, 3), dtype=np.uint8)).shape
    (2, 63)

    References
    ----------
    Stains: Ruifrok and Johnston 2001. Structure tensor: Bigün and Granlund 1987.
    """

    size_px: int = 64

    def __post_init__(self) -> None:
        check_fields(self, size_px=EVEN)

    @property
    def spec(self) -> dict[str, Any]:
        """Identity of the encoder."""
        return {"kind": "texture", "name": "texture", "size_px": self.size_px}

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Statistics (n, 63) of crops (n, size_px, size_px, 3), those of colour first."""
        return np.concatenate([color_statistics(crops), texture_statistics(crops)], axis=1)


# encoders that need no weights
PLAIN: Final[dict[str, type[ColorEncoder | TextureEncoder]]] = {"color": ColorEncoder, "texture": TextureEncoder}


@dataclass(frozen=True)
class CallableEncoder:
    """A given function on a batch of crops. It is not saved with a model and must be given again."""

    function: Callable[[NDArray[np.uint8]], Any]
    size_px: int = 224

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def spec(self) -> dict[str, Any]:
        """Identity of the encoder: its name is all that is known."""
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return {"kind": "callable", "name": name, "size_px": self.size_px}

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of crops (n, size_px, size_px, 3)."""
        features = self.function(crops)
        if hasattr(features, "detach"):
            features = features.detach().float().cpu().numpy()
        features = np.asarray(features, dtype=np.float32)
        if features.ndim != 2 or len(features) != len(crops):
            msg = f"The encoder must return an array ({len(crops)}, n_features), found shape {features.shape}."
            raise ValueError(msg)
        return features

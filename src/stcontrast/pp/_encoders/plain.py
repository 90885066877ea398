"""Encoders without weights: statistics of colour and texture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast.pp._encoders.texture import color_statistics, texture_statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PLAIN", "ColorEncoder", "TextureEncoder"]


@dataclass(frozen=True)
class ColorEncoder:
    """Colour and stain statistics of a crop: no weights, no network.

    For red, green, blue and the optical densities of haematoxylin and eosin: mean, standard deviation and the
    quantiles 5, 25, 50, 75, 95 %: 35 features. Stains are separated by :func:`skimage.color.rgb2hed`
    (Ruifrok and Johnston 2001).

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

    @property
    def spec(self) -> dict[str, Any]:
        """Identity of the encoder."""
        return {"kind": "color", "name": "color", "size_px": self.size_px}

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Statistics (n, 35) of crops (n, size_px, size_px, 3)."""
        return color_statistics(crops)


@dataclass(frozen=True)
class TextureEncoder:
    """Statistics of colour, stain and texture of a crop: no weights, no network.

    Texture is measured at half the crop's resolution in haematoxylin, eosin and optical density: spread and skewness of
    the bands between Gaussians of 0, 1, 2 and 4 pixels (difference of Gaussians), strength and direction of gradients
    (coherence of the structure tensor), the crop's middle against the whole, and how the stains go together. A band
    that holds nothing but the noise of an enlarged image is held down by a floor. No feature changes when a crop is
    mirrored or turned by a right angle.

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
        if self.size_px < 16 or self.size_px % 2:
            msg = f"`size_px` must be even and at least 16, found {self.size_px}."
            raise ValueError(msg)

    @property
    def spec(self) -> dict[str, Any]:
        """Identity of the encoder."""
        return {"kind": "texture", "name": "texture", "size_px": self.size_px}

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Statistics (n, 63) of crops (n, size_px, size_px, 3), those of colour first."""
        return np.concatenate([color_statistics(crops), texture_statistics(crops)], axis=1)


# encoders that need no weights
PLAIN: Final[dict[str, type[ColorEncoder | TextureEncoder]]] = {"color": ColorEncoder, "texture": TextureEncoder}

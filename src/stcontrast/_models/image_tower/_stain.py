"""Stain space in torch: haematoxylin, eosin and the rest, as optical densities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["hed_to_rgb", "rgb_to_hed"]

# a black pixel has a finite density; as in scikit-image
DARKEST = 1e-6


def rgb_to_hed(rgb: Tensor) -> Tensor:
    """Densities of the stains, as :func:`skimage.color.rgb2hed`, differentiable and on any device.

    Parameters
    ----------
    rgb
        Pictures (..., 3, height, width), 0 to 1.

    Returns
    -------
    Haematoxylin, eosin and the rest, scikit-image's third stain (..., 3, height, width), in units of the density of
    1e-6. Unlike scikit-image's they may be negative, where a colour is no mixture of the stains: nothing is lost.

    References
    ----------
    Ruifrok and Johnston 2001.
    """
    from skimage.color import hed_from_rgb

    density = rgb.clamp_min(DARKEST).log() / math.log(DARKEST)
    return _mixed(density, torch.as_tensor(hed_from_rgb, dtype=rgb.dtype, device=rgb.device))


def hed_to_rgb(hed: Tensor) -> Tensor:
    """The reverse of :func:`rgb_to_hed`: pictures (..., 3, height, width), held between 0 and 1."""
    from skimage.color import rgb_from_hed

    density = _mixed(hed, torch.as_tensor(rgb_from_hed, dtype=hed.dtype, device=hed.device))
    return (density * math.log(DARKEST)).exp().clamp(0.0, 1.0)


def _mixed(values: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("...chw,cd->...dhw", values, matrix)

"""Augmentation of a batch of crops: symmetry, stain and colour, drawn anew for every spot."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["augment", "hed_to_rgb", "jitter_color", "jitter_stain", "rgb_to_hed", "turn"]

# so that a black pixel has a finite density, as in scikit-image
DARKEST = 1e-6


def rgb_to_hed(rgb: Tensor) -> Tensor:
    """Densities of the stains as in :func:`skimage.color.rgb2hed`, differentiable and on any device.

    Parameters
    ----------
    rgb
        Images (..., 3, height, width), 0 to 1.

    Returns
    -------
    Haematoxylin, eosin and the third stain of scikit-image (..., 3, height, width), in units of the density of 1e-6.
    Unlike in scikit-image, they may be negative if a colour is no mixture of the stains, so that nothing is lost.

    References
    ----------
    Ruifrok and Johnston 2001.
    """
    from skimage.color import hed_from_rgb

    density = rgb.clamp_min(DARKEST).log() / math.log(DARKEST)
    return _mixed(density, torch.as_tensor(hed_from_rgb, dtype=rgb.dtype, device=rgb.device))


def hed_to_rgb(hed: Tensor) -> Tensor:
    """Inverse of :func:`rgb_to_hed`: images (..., 3, height, width), clipped to 0 to 1."""
    from skimage.color import rgb_from_hed

    density = _mixed(hed, torch.as_tensor(rgb_from_hed, dtype=hed.dtype, device=hed.device))
    return (density * math.log(DARKEST)).exp().clamp(0.0, 1.0)


def _mixed(values: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("...chw,cd->...dhw", values, matrix)


# weights of red, green and blue in grey (ITU-R BT.601), as in torchvision
GREY = (0.2989, 0.587, 0.114)
# unit of the shift in density; a dark nucleus has a density of about 0.1
SHIFT = 0.1


def turn(crops: Tensor, symmetry: Tensor) -> Tensor:
    """Rotate and mirror crops.

    Parameters
    ----------
    crops
        Crops (n, n_fields, 3, size, size).
    symmetry
        Which of the eight symmetries of the square (n,), 0 to 7: rotations by 90°, then mirrored rotations.
    """
    turned = torch.empty_like(crops)
    for code in range(8):
        here = symmetry == code
        part = crops[here].rot90(code % 4, dims=(-2, -1))
        turned[here] = part.flip(-1) if code > 3 else part
    return turned


def jitter_stain(crops: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift the density of every stain.

    Parameters
    ----------
    crops
        Crops (n, n_fields, 3, size, size), 0 to 1.
    gain, shift
        Factor and offset of haematoxylin, eosin and the residual stain (n, 3); 1 and 0 change nothing.

    References
    ----------
    Tellez et al. 2018 (arXiv 1808.05896).
    """
    hed = rgb_to_hed(crops)
    of_pixel = (len(crops), 1, 3, 1, 1)
    return hed_to_rgb(hed * gain.reshape(of_pixel) + shift.reshape(of_pixel))


def jitter_color(crops: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, one factor per spot (n,) each, as torchvision does."""

    def of_pixel(factor: Tensor) -> Tensor:
        return factor.reshape(-1, 1, 1, 1, 1)

    crops = (crops * of_pixel(brightness)).clamp(0, 1)
    mean = _grey(crops).mean(dim=(-3, -2, -1), keepdim=True)
    crops = torch.lerp(mean.expand_as(crops), crops, of_pixel(contrast)).clamp(0, 1)
    return torch.lerp(_grey(crops).expand_as(crops), crops, of_pixel(saturation)).clamp(0, 1)


def augment(crops: Tensor, *, stain: float, color: float) -> Tensor:
    """Augment crops with random numbers of torch; all fields of a spot in the same way.

    Parameters
    ----------
    crops
        Crops (n, n_fields, 3, size, size), 0 to 1.
    stain, color
        Half the range of the factors of stains and of colour; stains are shifted by up to a tenth of it.

    Returns
    -------
    Crops of the same shape, 0 to 1.
    """
    n, device = len(crops), crops.device
    crops = turn(crops, torch.randint(8, (n,), device=device))
    if stain > 0:
        gain, shift = (torch.empty(n, 3, device=device).uniform_(-stain, stain) for _ in range(2))
        crops = jitter_stain(crops, 1 + gain, SHIFT * shift)
    if color > 0:
        crops = jitter_color(crops, *(1 + torch.empty(3, n, device=device).uniform_(-color, color)))
    return crops


def _grey(crops: Tensor) -> Tensor:
    weights = torch.tensor(GREY, dtype=crops.dtype, device=crops.device).reshape(3, 1, 1)
    return (crops * weights).sum(dim=-3, keepdim=True)

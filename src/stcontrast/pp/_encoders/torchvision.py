"""Frozen torchvision networks, for files of torchvision's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path  # noqa: F401 - the annotations that are inherited are read here
from typing import Any, ClassVar

from stcontrast._files import file_sha256
from stcontrast.pp._encoders.torch import NamedNetwork
from stcontrast.pp._encoders.weights import downloads, fit_state, read_state, require_file

__all__ = ["TorchvisionEncoder"]

PREFIX = "torchvision/"


@dataclass
class TorchvisionEncoder(NamedNetwork):
    """A `torchvision <https://pytorch.org/vision>`_ classification network, frozen, its last linear layer removed.

    For weights whose parameters have torchvision's names, where timm calls them otherwise. Mean, standard deviation and
    input size are those of torchvision's default weights; crops are not resized or cut.

    Parameters
    ----------
    name
        Name of the model, e.g. ``"densenet121"`` or ``"torchvision/densenet121"``.
    pretrained
        Download torchvision's default weights. `False` leaves random weights.
    weights
        Local safetensors or pth file instead of a download, with or without the last layer.
    seed
        Seed of the random weights where `pretrained` is off and no `weights` are given.
    mean, std
        Normalisation of RGB in [0, 1] that the weights were trained with.
    size_px
        Side of the crops in pixels.
    device
        Torch device; CUDA if there is one, by default.
    precision
        ``"float32"``, ``"bfloat16"`` or ``"float16"`` (autocast); by default float16 on CUDA and float32 elsewhere.
    compile
        Compile the network with :func:`torch.compile`. Without a working compiler it runs as it is, with a warning.
    channels_last
        Memory layout of the input; by default on for networks with batch normalisation, whose convolutions it speeds up.
    symmetries
        Mean of the features over the eight flips and right-angle turns of a crop: eight times the work.

    Raises
    ------
    FileNotFoundError
        If `weights` does not exist.
    ValueError
        If torchvision has no such model, it does not end in a linear layer, or the weights do not fit it.
    ConnectionError
        If weights have to be downloaded and cannot be.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> encoder = stc.pp.TorchvisionEncoder("resnet18", pretrained=False, size_px=64)
    >>> encoder(np.zeros((2, 64, 64, 3), dtype=np.uint8)).shape
    (2, 512)
    """

    _kind: ClassVar[str] = "torchvision"

    def __post_init__(self) -> None:
        from torchvision import models

        from stcontrast._training import seeded

        self._check_options()
        require_file(self.weights)
        short = self.name.removeprefix(PREFIX)
        if short not in models.list_models(module=models):
            msg = f"torchvision has no classification model {short!r}: {', '.join(models.list_models(module=models))}."
            raise ValueError(msg)
        self.name = PREFIX + short
        default = models.get_model_weights(short).DEFAULT
        download = self._downloads
        with seeded(self.seed), downloads(self.name, cache="TORCH_HOME to it"):
            model = models.get_model(short, weights=default if download else None)
        linear = [name for name, module in model.named_modules() if type(module).__name__ == "Linear"]
        if not linear:
            msg = f"torchvision's {short!r} does not end in a linear layer, so that its features are not at hand."
            raise ValueError(msg)
        _cut(model, linear[-1])
        if self.weights is not None:
            state = read_state(self.weights)
            # densenets are published under the names of an early version
            state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2", key): state[key] for key in state}
            kept = {key: state[key] for key in state if not key.startswith(f"{linear[-1]}.")}
            fit_state(model, kept, self.weights)
            self._sha256 = file_sha256(self.weights)
        preset = default.transforms()
        self.mean, self.std = tuple(self.mean or preset.mean), tuple(self.std or preset.std)
        self.size_px = self.size_px or preset.crop_size[0]
        self._adopt(model)


def _cut(model: Any, name: str) -> None:
    """Put the identity in the place of a layer."""
    from torch.nn import Identity

    parent, _, layer = name.rpartition(".")
    setattr(model.get_submodule(parent), layer, Identity())

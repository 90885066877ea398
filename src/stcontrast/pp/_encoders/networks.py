"""Frozen networks of timm and torchvision, with weights of the library, of the Hugging Face hub, or of a file."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from stcontrast._files import file_sha256
from stcontrast.pp._encoders.cards import EncoderCard, encoder_names, find_card, timm_card, warn_of_licence
from stcontrast.pp._encoders.torch import NamedNetwork, downloads, fit_state, read_state, require_file

__all__ = ["TimmEncoder", "TorchvisionEncoder", "TorchvisionWeightsError"]

# models of both libraries whose parameters torchvision calls by other names
TORCHVISION_NAMES: Final[dict[str, str]] = {
    "convnext_base": "convnext_base",
    "convnext_small": "convnext_small",
    "convnext_tiny": "convnext_tiny",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_b1": "efficientnet_b1",
    "efficientnet_b2": "efficientnet_b2",
    "efficientnet_b3": "efficientnet_b3",
    "mobilenetv2_100": "mobilenet_v2",
    "mobilenetv3_large_100": "mobilenet_v3_large",
    "mobilenetv3_small_100": "mobilenet_v3_small",
    "swin_base_patch4_window7_224": "swin_b",
    "swin_small_patch4_window7_224": "swin_s",
    "swin_tiny_patch4_window7_224": "swin_t",
    "vgg11": "vgg11",
    "vgg16": "vgg16",
    "vit_base_patch16_224": "vit_b_16",
    "vit_large_patch16_224": "vit_l_16",
}

PREFIX = "torchvision/"


class TorchvisionWeightsError(ValueError):
    """A file for timm holds the parameters of torchvision's network instead, which is named in `model`."""

    def __init__(self, path: str | Path, model: str) -> None:
        super().__init__(
            f"The weights at {str(path)!r} are torchvision's: take `encoder='torchvision/{model}'` for them."
        )
        self.model = model


@dataclass
class TimmEncoder(NamedNetwork):
    """Any `timm <https://huggingface.co/docs/timm>`_ backbone, frozen, its classifier removed.

    Only mean, standard deviation and input size come from timm's configuration. Its evaluation transform is not used:
    it resizes and centre-crops, which would change the field of view in µm. For a network that returns tokens, the
    features are the class token and the mean of the patch tokens, concatenated.

    Parameters
    ----------
    name
        Name of the model: timm's, e.g. ``"resnet18"``; ``"hf-hub:owner/model"``; or a pathology model of
        :func:`encoders`, e.g. ``"uni"``, for which the right arguments are set.
    pretrained
        Download the weights that timm provides. With `False` the weights are random.
    weights
        Local safetensors or pth file, instead of a download. With timm's parameter names, or names that timm converts.
    model_args
        Further arguments of ``timm.create_model``, plain values. Classes (`act_layer`, `mlp_layer`) are given by their
        name in ``timm.layers`` or ``torch.nn``.
    seed
        Seed of the random weights where `pretrained` is off and no `weights` are given.
    mean, std
        Normalisation of RGB in [0, 1] that the weights were trained with; timm's by default.
    size_px
        Side of the crops in pixels; timm's by default.
    device
        Torch device; CUDA if there is one, by default.
    precision
        ``"float32"``, ``"bfloat16"`` or ``"float16"`` (autocast); by default float16 on CUDA and float32 elsewhere.
    compile
        Compile the network with :func:`torch.compile`. Without a working compiler it runs as it is, with a warning.
    channels_last
        Memory layout of the input; by default on for networks with batch normalisation, whose convolutions it speeds up.
    symmetries
        Average the features over the eight flips and right-angle rotations of a crop. Takes eight times as long.

    Raises
    ------
    FileNotFoundError
        If `weights` does not exist.
    ValueError
        If timm has no such model, or the weights cannot be read or do not fit it; or if `precision` is unknown.
    ConnectionError
        If weights or configuration must be downloaded and cannot be.
    PermissionError
        If the weights are gated and you have no access.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> encoder = stc.pp.TimmEncoder("test_resnet", pretrained=False, size_px=64)
    >>> encoder(np.zeros((2, 64, 64, 3), dtype=np.uint8)).shape
    (2, 96)

    References
    ----------
    Wightman 2019, PyTorch Image Models.
    """

    _kind: ClassVar[str] = "timm"
    model_args: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        import timm

        self._check_options()
        require_file(self.weights)
        card = find_card(self.name)
        if card is not None:
            self.name, self.model_args = card.model, card.model_args | self.model_args
            self.mean, self.std = self.mean or card.mean, self.std or card.std
            self.size_px = self.size_px or card.size_px or 0
        elif ":" not in self.name and "/" not in self.name:
            self._require_known()
        model = self._network(card)
        if card is None and ":" not in self.name:
            card = timm_card(self.name)
        if card is not None and (self.pretrained or self.weights is not None):
            warn_of_licence(card)
        config = timm.data.resolve_model_data_config(model)
        self.mean, self.std = tuple(self.mean or config["mean"]), tuple(self.std or config["std"])
        self.size_px = self.size_px or config["input_size"][-1]
        if self.weights is not None:
            model = self._with_weights(model, card)
            self._sha256 = file_sha256(self.weights)
        self._adopt(model)

    @property
    def spec(self) -> dict[str, Any]:
        """Identity of the encoder."""
        # as text, which every file format gives back as it was
        arguments = {"model_args": json.dumps(self.model_args, sort_keys=True)} if self.model_args else {}
        return super().spec | arguments

    def _require_known(self) -> None:
        import timm

        if timm.models.is_model(self.name.partition(".")[0]):
            return
        names = list(dict.fromkeys([*encoder_names(), *timm.list_models()]))
        close = difflib.get_close_matches(self.name, names, n=5, cutoff=0.6)
        near = f" Did you mean {', '.join(map(repr, close))}?" if close else ""
        msg = (
            f"timm {timm.__version__} cannot make {self.name!r}: it has no such model, and there is no other encoder of that "
            f"name.{near} See `stc.pp.encoders()` and `timm.list_models()`."
        )
        raise ValueError(msg)

    def _network(self, card: EncoderCard | None, **overlay: Any) -> Any:
        """The network without its classifier."""
        import timm

        from stcontrast._training import seeded

        # with local or random weights the network of a hub model can be made without the hub's configuration
        offline = card is not None and bool(card.architecture) and (self.weights is not None or not self.pretrained)
        name = card.architecture if card is not None and offline else self.name
        arguments = {key: _class_named(value) for key, value in self.model_args.items()}
        download = self._downloads or bool(overlay)
        try:
            config = None if ":" in name else timm.models.get_pretrained_cfg(name)
            if self.size_px and config is not None and config.fixed_input_size:
                arguments.setdefault("img_size", self.size_px)
            with seeded(self.seed), downloads(self.name, card):
                return timm.create_model(
                    name, pretrained=download, num_classes=0, pretrained_cfg_overlay=overlay or None, **arguments
                )
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            # newer versions of timm say this themselves
            where = f"hf-hub:{self.name}"
            hint = f". Use {where!r} for a model of the hub" if "/" in self.name and where not in str(error) else ""
            msg = f"timm {timm.__version__} cannot make {self.name!r}: {error}{hint}"
            raise ValueError(msg) from error

    def _with_weights(self, model: Any, card: EncoderCard | None) -> Any:
        """The network with the parameters of the local file."""
        path = Path(self.weights or "")
        head = (model.pretrained_cfg or {}).get("classifier") or "classifier"
        heads = tuple(f"{name}." for name in ((head,) if isinstance(head, str) else head))
        state = {key: value for key, value in read_state(path).items() if not key.startswith(heads)}
        try:
            fit_state(model, state, path)
        except ValueError as misfit:
            if torchvision_name := _torchvision_name(self.name, state):
                raise TorchvisionWeightsError(path, torchvision_name) from misfit
            try:
                # timm's own reading of older names and other sizes; without a classifier it wants every parameter
                model = self._network(card, state_dict=state, classifier=None, source=None)
            except ValueError:
                raise misfit from None
            model.pretrained_cfg.pop("state_dict", None)
        return model


def _class_named(value: Any) -> Any:
    import timm
    import torch

    if not isinstance(value, str):
        return value
    return getattr(timm.layers, value, None) or getattr(torch.nn, value, None) or value


def _torchvision_name(name: str, state: dict[str, Any]) -> str | None:
    """Torchvision's model of the same architecture, if the parameters are its own."""
    import torch
    from torchvision.models import get_model

    known = TORCHVISION_NAMES.get(name.partition(".")[0])
    if known is None:
        return None
    with torch.device("meta"):
        own = get_model(known).state_dict()
    return known if len(own.keys() - state.keys()) <= 2 and not state.keys() - own.keys() else None


@dataclass
class TorchvisionEncoder(NamedNetwork):
    """A `torchvision <https://pytorch.org/vision>`_ classification network, frozen, its last linear layer removed.

    Use it for weights with torchvision's parameter names, if timm's names differ. Mean, standard deviation and input
    size are those of torchvision's default weights. Crops are neither resized nor cut.

    Parameters
    ----------
    name
        Name of the model, e.g. ``"densenet121"`` or ``"torchvision/densenet121"``.
    pretrained
        Download torchvision's default weights. With `False` the weights are random.
    weights
        Local safetensors or pth file, instead of a download; with or without the last layer.
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
        Average the features over the eight flips and right-angle rotations of a crop. Takes eight times as long.

    Raises
    ------
    FileNotFoundError
        If `weights` does not exist.
    ValueError
        If torchvision has no such model, it does not end in a linear layer, or the weights do not fit it.
    ConnectionError
        If weights must be downloaded and cannot be.

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
            msg = f"torchvision's {short!r} does not end in a linear layer, so that its features cannot be read."
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

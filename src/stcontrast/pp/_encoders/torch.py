"""What encoders that are torch networks share: weights, input, precision, memory layout, symmetries."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, ClassVar, Final
from unittest.mock import patch

import numpy as np

from stcontrast._arguments import FLAG, NAME, OPTIONS, PATH, POSITIVE, Rule, check_fields, listed, number, one_of, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from stcontrast.pp._encoders.cards import EncoderCard

__all__ = ["NamedNetwork", "TorchEncoder", "downloads", "fit_state", "no_downloads", "read_state", "require_file"]

logger = logging.getLogger(__name__)

HUB_CACHE: Final = "HF_HOME to it and HF_HUB_OFFLINE=1"
OFFLINE: Final = (
    "Without a network: give a local file (`weights`); or fill the cache where there is one, copy it, and set {cache}; or "
    "take `encoder='texture'`, which needs no weights. `pretrained=False` makes random weights."
)

PRECISIONS: Final = ("float32", "bfloat16", "float16")


def _is_device(value: Any) -> bool:
    import torch

    try:
        torch.device(value)
    except RuntimeError:
        return False
    return True


DEVICE: Final = Rule(
    "a torch device, such as 'cpu' or 'cuda'", lambda value: not isinstance(value, int | float) and _is_device(value)
)
COLOR: Final = Rule(
    "three numbers, of red, green and blue in [0, 1]",
    lambda value: listed(number(least=0), what="").holds(value) and len(value) == 3,
)
SPREAD: Final = Rule(
    "three positive numbers, of red, green and blue in [0, 1]",
    lambda value: listed(POSITIVE, what="").holds(value) and len(value) == 3,
)


def require_file(weights: str | Path | None) -> None:
    """Raise if a file of weights is named and is not there."""
    if weights is not None and not Path(weights).is_file():
        msg = f"No weights at {str(weights)!r}."
        raise FileNotFoundError(msg)


@contextmanager
def downloads(name: str, card: EncoderCard | None = None, *, cache: str = HUB_CACHE) -> Iterator[None]:
    """Turn what goes wrong in downloading the weights of an encoder into one clear error.

    Parameters
    ----------
    name
        The encoder, as the user calls it.
    card
        What is known of it.
    cache
        How to point the library at a cache of downloads.

    Raises
    ------
    PermissionError
        If the weights are gated and this user may not have them.
    ValueError
        If the hub has no such model.
    ConnectionError
        If they cannot be reached.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    offline = OFFLINE.format(cache=cache)
    repository = name.partition(":")[2] or name
    if card is not None:
        repository = card.repository or repository
    access = (
        f"ask for access at https://huggingface.co/{repository}, then `hf auth login` (or set HF_TOKEN) on this machine"
    )
    try:
        yield
    except GatedRepoError as error:
        licence = f" (licence: {card.licence})" if card is not None and card.licence else ""
        msg = f"The weights of {name!r} are gated{licence}: {access}. {offline}"
        raise PermissionError(msg) from error
    except RepositoryNotFoundError as error:
        msg = f"There is no model {repository!r} on the Hugging Face hub, or it is private: {error}"
        raise ValueError(msg) from error
    except (OSError, LocalEntryNotFoundError) as error:
        gated = f" They are gated: {access}." if card is not None and card.gated else ""
        msg = f"The weights of {name!r} could not be downloaded ({_brief(error)}).{gated} {offline}"
        raise ConnectionError(msg) from error
    except EntryNotFoundError as error:
        msg = f"The model {repository!r} on the Hugging Face hub is not one that timm can read: {_brief(error)}"
        raise ValueError(msg) from error


@contextmanager
def no_downloads() -> Iterator[None]:
    """Let timm, torchvision and the Hugging Face hub use what is on this machine, and ask no address.

    Raises
    ------
    ConnectionError
        Where they would ask one, through :func:`downloads`.
    """
    import torch.hub
    from huggingface_hub import constants

    def refused(*_: Any, **__: Any) -> None:
        msg = "no download is allowed"
        raise OSError(msg)

    with patch.object(constants, "HF_HUB_OFFLINE", new=True), patch.object(torch.hub, "urlopen", new=refused):
        yield


def read_state(path: str | Path) -> dict[str, Any]:
    """Parameters in a local safetensors or pth file.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    from safetensors import SafetensorError
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(path), use_ema=False)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, AttributeError, LookupError, TypeError) as error:
        msg = f"The weights at {str(path)!r} cannot be read: {error}"
        raise ValueError(msg) from error
    return state


def fit_state(model: Any, state: dict[str, Any], path: str | Path) -> None:
    """Load parameters into a network, all of them and no others.

    Raises
    ------
    ValueError
        If they do not fit.
    """
    try:
        report = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        msg = f"The weights at {str(path)!r} do not fit the model: {_brief(error)}"
        raise ValueError(msg) from error
    missing, surplus = report.missing_keys, report.unexpected_keys
    if missing or surplus:
        msg = (
            f"The weights at {str(path)!r} do not fit the model: {len(missing)} parameters are missing "
            f"({missing[:3]}), {len(surplus)} are unknown ({surplus[:3]})."
        )
        raise ValueError(msg)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} …"


@dataclass(kw_only=True)
class TorchEncoder:
    """Base of the encoders that are frozen torch networks.

    Parameters
    ----------
    mean, std
        Normalisation of RGB in [0, 1] that the weights were trained with.
    size_px
        Side of the crops in pixels; 0: the network's own.
    device
        Torch device; CUDA if there is one, by default.
    precision
        ``"float32"``, ``"bfloat16"`` or ``"float16"`` (autocast); by default float16 on CUDA and float32 elsewhere.
    compile
        Compile the network with :func:`torch.compile`. Without a working compiler it runs as it is, with a warning.
    channels_last
        Memory layout of the input; by default on for networks with batch normalisation, whose convolutions it speeds up.
        It changes nothing but the order of rounding.
    symmetries
        Average the features over the eight flips and right-angle rotations of a crop. Takes eight times as long.
    """

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    size_px: int = 0
    device: str | None = None
    precision: str | None = None
    compile: bool = False
    channels_last: bool | None = None
    symmetries: bool = False
    _model: Any = field(init=False, repr=False, default=None)
    _compiled: Any = field(init=False, repr=False, default=None)
    _normalize: Any = field(init=False, repr=False, default=None)

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, n_features) of crops (n, size_px, size_px, 3).

        Raises
        ------
        ValueError
            If the crops are of another shape or type.
        """
        import torch

        if crops.dtype != np.uint8 or crops.shape[1:] != (self.size_px, self.size_px, 3):
            msg = (
                f"The encoder takes uint8 crops (n, {self.size_px}, {self.size_px}, 3), "
                f"found {crops.dtype} of shape {crops.shape}."
            )
            raise ValueError(msg)
        reduced = self.precision != "float32"
        dtype = getattr(torch, self.precision) if reduced and self.precision else None
        with torch.inference_mode(), torch.autocast(torch.device(self.device or "cpu").type, dtype, enabled=reduced):
            # torch wants memory that it may write to, and no negative strides
            batch = torch.from_numpy(np.require(crops, requirements=["C", "W"]))
            batch = self._input(batch.to(self.device))
            features = self._symmetric(batch) if self.symmetries else self._features(batch)
        return features.cpu().numpy()

    def __getstate__(self) -> dict[str, Any]:
        # a compiled network cannot be pickled; it is compiled again where it is needed
        return self.__dict__ | {"_compiled": None}

    def _check_options(self) -> None:
        """Raise on options that cannot be, before a network is made."""
        check_fields(
            self, name=NAME, weights=PATH, model_args=OPTIONS, size_px=whole(0), precision=one_of(*PRECISIONS),
            device=DEVICE, compile=FLAG, channels_last=FLAG, symmetries=FLAG, mean=COLOR, std=SPREAD,
        )  # fmt: skip

    def _adopt(self, model: Any) -> None:
        """Freeze a network and settle the options that were left open."""
        import torch

        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = self.precision or ("float16" if torch.device(self.device).type == "cuda" else "float32")
        if self.channels_last is None:
            self.channels_last = any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        # the layout of the input is enough: the network's weights stay as they are
        self._model = model.eval().requires_grad_(requires_grad=False).to(self.device)
        if self.mean is not None and self.std is not None:
            mean, std = (torch.tensor(value).repeat(self.size_px) for value in (self.mean, self.std))
            self._normalize = ((1 / (255 * std)).to(self.device), (-mean / std).to(self.device))

    def _options_spec(self) -> dict[str, Any]:
        """The options that change numbers, where they are not the plain ones (so that older records stay valid)."""
        precision = {} if self.precision == "float32" else {"precision": self.precision}
        return precision | ({"symmetries": True} if self.symmetries else {})

    def _input(self, batch: Any) -> Any:
        """Normalised input of the network (n, 3, size_px, size_px), of uint8 (n, size_px, size_px, 3)."""
        scale, shift = self._normalize
        # a row of pixels at a time is four times as fast as three colours at a time
        normal = batch.float().view(len(batch), self.size_px, -1).mul_(scale).add_(shift)
        normal = normal.view(batch.shape).permute(0, 3, 1, 2)
        return normal if self.channels_last else normal.contiguous()

    def _call(self, batch: Any) -> Any:
        return self._model(batch)

    def _forward(self, batch: Any) -> Any:
        """Raw output of the network, compiled if that was asked for."""
        import torch

        if not self.compile:
            return self._call(batch)
        if self._compiled is None:
            self._compiled = torch.compile(self._call)
        try:
            return self._compiled(batch)
        except RuntimeError as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("The network cannot be compiled here (%s): it runs uncompiled.", first)
            self.compile, self._compiled = False, None
            return self._call(batch)

    def _features(self, batch: Any) -> Any:
        """Features (n, n_features), float32, of normalised input."""
        import torch

        output = self._forward(batch)
        if output.ndim == 3:
            prefix = getattr(self._model, "num_prefix_tokens", 0)
            patches = output[:, prefix:].mean(dim=1)
            output = torch.cat([output[:, 0], patches], dim=1) if prefix else patches
        if output.ndim == 4 and output.shape[2:] == (1, 1):
            output = output.flatten(1)
        if output.ndim != 2:
            msg = (
                f"The network returns shape {tuple(output.shape)}, expected (n, n_features): give it a pooling, e.g. "
                "`model_args={'global_pool': 'avg'}` with timm."
            )
            raise ValueError(msg)
        return output.float()

    def _symmetric(self, batch: Any) -> Any:
        """Mean of the features over the eight symmetries of a square."""
        total = 0
        for turns in range(4):
            turned = batch.rot90(turns, (2, 3))
            total = total + self._features(turned) + self._features(turned.flip(3))
        return total / 8


@dataclass
class NamedNetwork(TorchEncoder):
    """Base of the networks that a library makes by name, with its own weights, those of a file, or random ones.

    Parameters
    ----------
    name
        Name of the model.
    pretrained
        Download the library's weights.
    weights
        Local file instead of a download.
    seed
        Seed of random weights.
    """

    _kind: ClassVar[str]
    name: str
    pretrained: bool = True
    weights: str | Path | None = None
    seed: int = field(default=0, kw_only=True)
    _sha256: str = field(init=False, repr=False, default="")

    @property
    def spec(self) -> dict[str, Any]:
        """Identity of the encoder."""
        spec = {
            "kind": self._kind,
            "name": self.name,
            "pretrained": self._downloads,
            "weights": "" if self.weights is None else str(Path(self.weights).resolve()),
            "sha256": self._sha256,
            "mean": [float(value) for value in self.mean or ()],
            "std": [float(value) for value in self.std or ()],
            "size_px": self.size_px,
            "seed": self.seed,
        }
        return spec | self._options_spec()

    @property
    def _downloads(self) -> bool:
        return self.pretrained and self.weights is None

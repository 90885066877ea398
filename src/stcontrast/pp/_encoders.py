"""Frozen encoders: a batch of crops in, numbers out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np

from stcontrast.pp._texture import color_statistics, texture_statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["CallableEncoder", "ColorEncoder", "Encoder", "TextureEncoder", "TimmEncoder", "resolve_encoder"]


@runtime_checkable
class Encoder(Protocol):
    """What an encoder of crops has to offer."""

    @property
    def size_px(self) -> int:
        """Side of the crops that it takes, in pixels."""
        ...

    @property
    def spec(self) -> dict[str, Any]:
        """Name, weights, normalisation and what else identifies it. Plain values; ``kind`` names the class."""
        ...

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode crops (n, size_px, size_px, 3), uint8 RGB, into features (n, n_features)."""
        ...


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


@dataclass
class TimmEncoder:
    """Any `timm <https://huggingface.co/docs/timm>`_ backbone, frozen, its classifier removed.

    Only mean, standard deviation and input size are taken from timm's configuration: its evaluation transform
    resizes and centre-crops, which would change the field of view in µm.

    Parameters
    ----------
    name
        Name of the model, e.g. ``"resnet18"`` or ``"hf-hub:owner/model"``.
    pretrained
        Download the weights that timm knows. `False` leaves random weights.
    weights
        Local safetensors or pth file with timm's parameter names, instead of a download.
    mean, std
        Normalisation of RGB in [0, 1] that the weights were trained with; timm's by default.
    size_px
        Side of the crops in pixels; timm's by default.
    device
        Torch device; CUDA if there is one, by default.
    seed
        Seed of the random weights where `pretrained` is off and no `weights` are given.

    Raises
    ------
    FileNotFoundError
        If `weights` does not exist.
    ValueError
        If timm has no such model, or the weights cannot be read or do not fit it.
    ConnectionError
        If weights or configuration have to be downloaded and cannot be.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> encoder = stc.pp.TimmEncoder("test_resnet", pretrained=False, size_px=64)
    >>> encoder(np.zeros((2, 64, 64, 3), dtype=np.uint8)).shape
    (2, 96)
    """

    name: str
    pretrained: bool = True
    weights: str | Path | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    size_px: int = 0
    device: str | None = None
    seed: int = 0
    _model: Any = field(init=False, repr=False)
    _sha256: str = field(init=False, repr=False, default="")

    def __post_init__(self) -> None:
        import timm
        import torch

        from stcontrast.nn._seed import seeded

        if self.weights is not None and not Path(self.weights).is_file():
            msg = f"No weights at {str(self.weights)!r}."
            raise FileNotFoundError(msg)
        download = self.pretrained and self.weights is None
        try:
            with seeded(self.seed):
                model = timm.create_model(self.name, pretrained=download, num_classes=0)
        except OSError as error:
            msg = (
                f"timm could not download {self.name!r} ({error}). Give a local file (`weights`), or `pretrained=False` "
                "for random weights."
            )
            raise ConnectionError(msg) from error
        except (RuntimeError, ValueError) as error:
            msg = (
                f"timm {timm.__version__} cannot make {self.name!r}: {error}. "
                f"See `timm.list_models({self.name[:4] + '*'!r})`."
            )
            raise ValueError(msg) from error
        config = timm.data.resolve_model_data_config(model)
        self.mean, self.std = tuple(self.mean or config["mean"]), tuple(self.std or config["std"])
        self.size_px = self.size_px or config["input_size"][-1]
        if self.weights is not None:
            self._sha256 = _load_weights(model, Path(self.weights))
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.eval().requires_grad_(requires_grad=False).to(self.device)

    @property
    def spec(self) -> dict[str, Any]:
        """Identity of the encoder."""
        return {
            "kind": "timm",
            "name": self.name,
            "pretrained": self.pretrained and self.weights is None,
            "weights": "" if self.weights is None else str(Path(self.weights).resolve()),
            "sha256": self._sha256,
            "mean": [float(value) for value in self.mean or ()],
            "std": [float(value) for value in self.std or ()],
            "size_px": self.size_px,
            "seed": self.seed,
        }

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pooled features of crops (n, size_px, size_px, 3)."""
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(crops)).to(self.device).permute(0, 3, 1, 2).float().div_(255)
            mean, std = (torch.tensor(value, device=self.device).view(1, 3, 1, 1) for value in (self.mean, self.std))
            features = self._model((batch - mean) / std)
        return features.flatten(1).float().cpu().numpy()


@dataclass(frozen=True)
class CallableEncoder:
    """A function of the user's on a batch of crops. A saved model cannot bring it back: give it again."""

    function: Callable[[NDArray[np.uint8]], Any]
    size_px: int = 224

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


def resolve_encoder(
    encoder: str | Encoder | Callable[[NDArray[np.uint8]], Any],
    *,
    weights: str | Path | None = None,
    pretrained: bool = True,
    size_px: int | None = None,
) -> Encoder:
    """The encoder that a user's argument stands for."""
    if isinstance(encoder, str):
        if encoder in PLAIN:
            if weights is not None:
                msg = f"The encoder {encoder!r} has no weights: name the timm model that `weights` belong to."
                raise ValueError(msg)
            plain = PLAIN[encoder]
            return plain(size_px=size_px or plain.size_px)
        return TimmEncoder(encoder, pretrained=pretrained, weights=weights, size_px=size_px or 0)
    if weights is not None:
        msg = "`weights` goes with the name of a timm model; give them to the encoder itself."
        raise ValueError(msg)
    if isinstance(encoder, Encoder):
        if size_px not in (None, encoder.size_px):
            msg = f"`size_px` is {size_px}, but the encoder takes {encoder.size_px}: set it where the encoder is made."
            raise ValueError(msg)
        return encoder
    if not callable(encoder):
        msg = f"`encoder` must be 'texture', 'color', the name of a timm model or a callable, found {type(encoder).__name__}."
        raise TypeError(msg)
    return CallableEncoder(encoder, size_px=size_px or CallableEncoder.size_px)


def encoder_from_spec(spec: dict[str, Any]) -> Encoder:
    """The encoder that a saved model was trained with.

    Raises
    ------
    ValueError
        If it was a callable, or its weights have changed.
    FileNotFoundError
        If its weights are no longer where they were.
    """
    if spec["kind"] in PLAIN:
        return PLAIN[spec["kind"]](size_px=spec["size_px"])
    if spec["kind"] == "callable":
        msg = f"The model was trained with the callable {spec['name']!r}, which is not saved with it: give `encoder`."
        raise ValueError(msg)
    encoder = TimmEncoder(
        spec["name"],
        pretrained=spec["pretrained"],
        weights=spec["weights"] or None,
        mean=tuple(spec["mean"]),
        std=tuple(spec["std"]),
        size_px=spec["size_px"],
        seed=spec["seed"],
    )
    if encoder.spec["sha256"] != spec["sha256"]:
        msg = f"The weights at {spec['weights']!r} are not those that the model was trained with (SHA-256 differs)."
        raise ValueError(msg)
    return encoder


def _load_weights(model: Any, path: Path) -> str:
    """Load a local file into a headless model; returns the file's SHA-256."""
    from safetensors import SafetensorError
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(path), use_ema=False)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        msg = f"The weights at {str(path)!r} cannot be read: {error}"
        raise ValueError(msg) from error
    try:
        report = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        msg = f"The weights at {str(path)!r} do not fit the model: {error}"
        raise ValueError(msg) from error
    head = (model.pretrained_cfg or {}).get("classifier", "classifier")
    heads = (head,) if isinstance(head, str) else tuple(head)
    surplus = [key for key in report.unexpected_keys if not key.startswith(tuple(f"{name}." for name in heads))]
    if report.missing_keys or surplus:
        msg = (
            f"The weights at {str(path)!r} do not fit the model: {len(report.missing_keys)} parameters are missing "
            f"({report.missing_keys[:3]}), {len(surplus)} are unknown ({surplus[:3]})."
        )
        raise ValueError(msg)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Frozen encoders: a batch of crops in, numbers out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from stcontrast._files import content_hash
from stcontrast.pp._encoders.cards import (
    find_card,
    is_lazyslide_model,
    lazyslide_card,
    lazyslide_models,
    warn_of_licence,
)
from stcontrast.pp._encoders.lazyslide import LazySlideEncoder
from stcontrast.pp._encoders.networks import PREFIX, TimmEncoder, TorchvisionEncoder, TorchvisionWeightsError
from stcontrast.pp._encoders.plain import PLAIN, CallableEncoder
from stcontrast.pp._encoders.torch import downloads, no_downloads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "AnyEncoder",
    "Encoder",
    "encoder_from_spec",
    "fingerprint",
    "identity",
    "plain_model_args",
    "resolve_encoder",
    "resolve_encoders",
]

logger = logging.getLogger(__name__)

# arguments of timm with which it reads a file or asks an address
LOADING: Final = frozenset({
    "cache_dir", "checkpoint_path", "checkpoint_seq", "features_only", "file", "pretrained", "pretrained_cfg",
    "pretrained_cfg_overlay", "pretrained_custom_load", "pretrained_strict", "scriptable", "state_dict", "url",
})  # fmt: skip


@runtime_checkable
class Encoder(Protocol):
    """Protocol of an encoder of crops."""

    @property
    def size_px(self) -> int:
        """Side of the crops that the encoder takes, in pixels."""
        ...

    @property
    def spec(self) -> dict[str, Any]:
        """Name, weights, normalisation and options, as plain values that identify the encoder; ``kind`` names the class."""
        ...

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode crops (n, size_px, size_px, 3), uint8 RGB, into features (n, n_features)."""
        ...


type AnyEncoder = str | Encoder | Callable[[NDArray[np.uint8]], Any]


def resolve_encoders(
    encoder: AnyEncoder | Sequence[AnyEncoder],
    *,
    weights: str | Path | None = None,
    pretrained: bool = True,
    size_px: int | None = None,
) -> tuple[Encoder, ...]:
    """The encoders that a user's argument stands for: one of them, or a list.

    Parameters
    ----------
    encoder, weights, pretrained, size_px
        As in :func:`resolve_encoder`; with several encoders the others cannot be given.

    Raises
    ------
    TypeError, ValueError
        As :func:`resolve_encoder` does; also if a list is empty or names an encoder twice.
    """
    if isinstance(encoder, str) or not isinstance(encoder, Sequence):
        return (resolve_encoder(encoder, weights=weights, pretrained=pretrained, size_px=size_px),)
    if not encoder:
        msg = "`encoder` is an empty list: name at least one encoder, such as 'texture'."
        raise ValueError(msg)
    if len(encoder) == 1:
        return (resolve_encoder(encoder[0], weights=weights, pretrained=pretrained, size_px=size_px),)
    own = {"weights": weights is not None, "pretrained": not pretrained, "size_px": size_px is not None}
    given = [f"`{name}`" for name, is_given in own.items() if is_given]
    if given:
        msg = (
            f"{' and '.join(given)} cannot be given for {len(encoder)} encoders, as each has its own: make the encoders, such "
            "as `stc.pp.TimmEncoder('resnet18', weights=...)`, and give these in the list."
        )
        raise ValueError(msg)
    chosen = tuple(resolve_encoder(item) for item in encoder)
    identities = [identity(item.spec) for item in chosen]
    twice = sorted({str(item["name"]) for i, item in enumerate(identities) if item in identities[:i]})
    if twice:
        msg = (
            f"`encoder` has {twice} twice: name every encoder once. Functions are distinguished only by their names: give "
            "each its own."
        )
        raise ValueError(msg)
    return chosen


def resolve_encoder(
    encoder: AnyEncoder,
    *,
    weights: str | Path | None = None,
    pretrained: bool = True,
    size_px: int | None = None,
) -> Encoder:
    """The encoder that a user's argument stands for.

    Parameters
    ----------
    encoder
        A name (built in, of a card, timm's, ``"torchvision/..."``, lazyslide-models'), an :class:`Encoder`, an object
        that follows lazyslide-models' protocol of image models, or a function of crops.
    weights, pretrained
        Of a named network: local file, and whether to download.
    size_px
        Side of the crops; the encoder's own by default.

    Raises
    ------
    TypeError
        If `encoder` is none of these.
    ValueError
        If the name is unknown, or the arguments contradict each other.
    """
    if isinstance(encoder, str):
        return _named(encoder, weights=weights, pretrained=pretrained, size_px=size_px)
    if weights is not None:
        msg = "`weights` goes with the name of a timm model; give them to the encoder itself."
        raise ValueError(msg)
    if isinstance(encoder, Encoder):
        if size_px not in (None, encoder.size_px):
            msg = f"`size_px` is {size_px}, but the encoder takes {encoder.size_px}: set it when you make the encoder."
            raise ValueError(msg)
        return encoder
    if is_lazyslide_model(encoder):
        return LazySlideEncoder(encoder, size_px=size_px or 0)
    if not callable(encoder):
        msg = f"`encoder` must be 'texture', 'color', the name of a timm model or a callable, found {type(encoder).__name__}."
        raise TypeError(msg)
    return CallableEncoder(encoder, size_px=size_px or CallableEncoder.size_px)


def encoder_from_spec(spec: dict[str, Any], *, allow_download: bool = True) -> Encoder:
    """The encoder that a saved model was trained with.

    Parameters
    ----------
    spec
        Its :attr:`Encoder.spec`; keys that an older version did not write have their plain values.
    allow_download
        Whether its weights may be fetched. Otherwise they must be on this machine, and no address is asked.

    Raises
    ------
    ValueError
        If it was a callable or an object, its weights are in a file whose place is not known or have changed, or the
        spec holds more than an encoder needs.
    FileNotFoundError
        If its weights are no longer where they were.
    ConnectionError
        If they would have to be fetched and may not be.
    """
    kind, name = spec["kind"], spec["name"]
    if kind in PLAIN:
        return PLAIN[kind](size_px=spec["size_px"])
    if kind == "callable" or (kind == "lazyslide" and not spec["registered"]):
        msg = f"The model was trained with the {kind} {name!r}, which is not saved with it: give `encoder`."
        raise ValueError(msg)
    if allow_download:
        return _network_from_spec(spec)
    try:
        with no_downloads():
            return _network_from_spec(spec)
    except ConnectionError as error:
        msg = (
            f"The model needs the weights of {name!r}, which are not on this machine, and a loaded model does not "
            "download weights by itself. If you trust it: `stc.models.load(folder, allow_download=True)`. Or give the encoder: "
            "`encoder=...`, in a shell `--encoder`."
        )
        raise ConnectionError(msg) from error


def _network_from_spec(spec: dict[str, Any]) -> Encoder:
    kind, name, weights = spec["kind"], spec["name"], spec.get("weights") or None
    options = {
        "mean": tuple(spec["mean"]) if "mean" in spec else None,
        "std": tuple(spec["std"]) if "std" in spec else None,
        "size_px": spec["size_px"],
        "precision": spec.get("precision", "float32"),
        "symmetries": bool(spec.get("symmetries", False)),
    }
    if kind == "lazyslide":
        return _from_lazyslide(name, options)
    maker = "TorchvisionEncoder" if kind == "torchvision" else "TimmEncoder"
    if weights is not None and not Path(weights).is_absolute():
        msg = (
            f"The model was trained with weights of {name!r} in a file {weights!r} (SHA-256 {spec['sha256'][:12]}…), which "
            f"is not saved with it: give `encoder=stc.pp.{maker}({name!r}, weights=...)`."
        )
        raise ValueError(msg)
    known = {"pretrained": bool(spec["pretrained"]), "weights": weights, "seed": spec["seed"]}
    encoder: TimmEncoder | TorchvisionEncoder
    if kind == "torchvision":
        encoder = TorchvisionEncoder(name, **known, **options)
    else:
        encoder = TimmEncoder(name, **known, **options, model_args=plain_model_args(spec))
    if encoder.spec["sha256"] != spec["sha256"]:
        msg = f"The weights at {weights!r} are not those that the model was trained with (SHA-256 differs)."
        raise ValueError(msg)
    return encoder


def plain_model_args(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` in the spec of a timm encoder.

    Raises
    ------
    ValueError
        If there, or in the name, is something that would load a file or ask an address.
    """
    name, arguments = str(spec["name"]), json.loads(spec.get("model_args", "{}"))
    odd = sorted(LOADING.intersection(arguments))
    if odd or not re.fullmatch(r"(hf[-_]hub:)?\w[\w.-]*(/\w[\w.-]*)?(@[\w.-]+)?", name):
        msg = (
            f"The encoder of the model, {name!r}{f' with {odd}' if odd else ''}, would read files or web addresses: it "
            "is not made."
        )
        raise ValueError(msg)
    return dict(arguments)


def identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What of an encoder's spec identifies it: weights by content, not by the place of their file."""
    return {key: value for key, value in spec.items() if key != "weights"}


def fingerprint(encoder: Encoder) -> str:
    """SHA-256 (hex) of what identifies an encoder, without the places of files: the same on every machine.

    Parameters
    ----------
    encoder
        The encoder.

    Examples
    --------
    >>> import stcontrast as stc
    >>> from stcontrast.pp._encoders import fingerprint
    >>> fingerprint(stc.pp.ColorEncoder()) == fingerprint(stc.pp.ColorEncoder(32))
    False
    """
    return content_hash([identity(encoder.spec)])


def _named(name: str, *, weights: str | Path | None, pretrained: bool, size_px: int | None) -> Encoder:
    import timm

    if name in PLAIN:
        if weights is not None:
            msg = f"The encoder {name!r} has no weights: name the timm model that `weights` belong to."
            raise ValueError(msg)
        plain = PLAIN[name]
        return plain(size_px=size_px or plain.size_px)
    if name.startswith(PREFIX):
        return TorchvisionEncoder(name, pretrained=pretrained, weights=weights, size_px=size_px or 0)
    of_timm = ":" in name or find_card(name) is not None or timm.models.is_model(name.partition(".")[0])
    if not of_timm and name in lazyslide_models():
        if weights is not None or not pretrained:
            msg = f"{name!r} is a model of lazyslide-models, which loads its own weights: create the model, and give it as `encoder`."
            raise ValueError(msg)
        return _from_lazyslide(name, {"size_px": size_px or 0})
    try:
        return TimmEncoder(name, pretrained=pretrained, weights=weights, size_px=size_px or 0)
    except TorchvisionWeightsError as error:
        logger.info("The weights of %r are torchvision's %r: that network is made.", name, error.model)
        return TorchvisionEncoder(error.model, weights=weights, size_px=size_px or 0)


def _from_lazyslide(name: str, options: dict[str, Any]) -> LazySlideEncoder:
    models = lazyslide_models()
    if name not in models:
        msg = f"the installed lazyslide-models has no image model {name!r}: {', '.join(models) or 'none at all'}."
        raise ValueError(msg)
    card = lazyslide_card(name, models[name])
    with downloads(name, card):
        model = models[name]()
    warn_of_licence(card)
    return LazySlideEncoder(model, **options)

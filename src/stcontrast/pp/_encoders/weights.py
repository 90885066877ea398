"""Weights of encoders: local files, and downloads that fail."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stcontrast.pp._encoders.cards import EncoderCard

__all__ = ["downloads", "fit_state", "read_state", "require_file"]

HUB_CACHE: Final = "HF_HOME to it and HF_HUB_OFFLINE=1"
OFFLINE: Final = (
    "Without a network: give a local file (`weights`); or fill the cache where there is one, copy it, and set {cache}; or "
    "take `encoder='texture'`, which needs no weights. `pretrained=False` makes random weights."
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
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
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

"""The tuned backbone as a frozen encoder."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

from stcontrast._files import content_hash, written_whole
from stcontrast.pp._encoders import TimmEncoder, no_downloads, plain_model_args

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

__all__ = ["TunedEncoder", "weights_sha256", "write_weights"]

# what identifies a tuned encoder, in addition to the weights
KEPT: Final = ("name", "mean", "std", "size_px", "model_args", "precision", "symmetries")


class TunedEncoder:
    """A backbone that was tuned on training slides; otherwise like :class:`~stcontrast.pp.TimmEncoder`.

    Parameters
    ----------
    base
        The encoder before tuning; it is not changed.
    state
        The tuned weights, by their names in timm.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> base = stc.pp.TimmEncoder("test_resnet", pretrained=False, size_px=64)
    >>> tuned = TunedEncoder(base, base._model.state_dict())
    >>> tuned(np.zeros((2, 64, 64, 3), dtype=np.uint8)).shape
    (2, 96)
    """

    def __init__(self, base: TimmEncoder, state: Mapping[str, Tensor]) -> None:
        self._encoder = copy.copy(base)
        self._encoder._model = copy.deepcopy(base._model)
        self._encoder._compiled = None
        self._encoder._model.load_state_dict(dict(state))
        self._sha256 = weights_sha256(self._encoder._model)

    @property
    def size_px(self) -> int:
        """Side of the crops that it takes, in pixels."""
        return self._encoder.size_px

    @property
    def spec(self) -> dict[str, Any]:
        """The network, its normalisation and the SHA-256 of its weights, which identify it."""
        of_base = self._encoder.spec
        kept: dict[str, Any] = {name: of_base[name] for name in KEPT if name in of_base}
        return {"kind": "tuned", **kept, "sha256": self._sha256}

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pooled features of crops (n, size_px, size_px, 3)."""
        return self._encoder(crops)

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        write_weights(self._encoder._model, path)

    @classmethod
    def load(cls, path: Path, spec: Mapping[str, Any], *, allow_download: bool = True) -> TunedEncoder:
        """Read the weights that :meth:`save` wrote.

        Parameters
        ----------
        path
            The file.
        spec
            The encoder's :attr:`spec`.
        allow_download
            Whether the hub may be asked for the configuration of a network of its own.

        Raises
        ------
        ValueError
            If the weights are not those of the `spec`.
        """
        from safetensors.torch import load_file

        # the weights are here; the configuration of a network of the hub might be asked for
        with nullcontext() if allow_download else no_downloads():
            base = TimmEncoder(
                spec["name"], pretrained=False, mean=tuple(spec["mean"]), std=tuple(spec["std"]), size_px=spec["size_px"],
                model_args=plain_model_args(spec), precision=spec.get("precision", "float32"),
                symmetries=spec.get("symmetries", False),
            )  # fmt: skip
        found = cls(base, load_file(path))
        if found.spec["sha256"] != spec["sha256"]:
            msg = f"The weights at {str(path)!r} are not the tuned weights of the model (SHA-256 differs)."
            raise ValueError(msg)
        return found


def write_weights(model: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    with written_whole(path) as scratch:
        save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, scratch)


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of a network's weights, by name."""
    state = sorted(model.state_dict().items())
    return content_hash(part for name, value in state for part in (name, value.detach().cpu().numpy()))

"""A function of the user's as an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["CallableEncoder"]


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

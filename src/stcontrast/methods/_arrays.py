"""Fitted arrays on disk: one npz file, no pickles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["load_arrays", "save_arrays"]


def save_arrays(path: Path, arrays: Mapping[str, NDArray[np.generic] | None]) -> None:
    """Write arrays under their names; `None` is left out."""
    with path.open("wb") as file:
        np.savez(file, **{name: value for name, value in arrays.items() if value is not None})  # type: ignore[arg-type]


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read what :func:`save_arrays` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)

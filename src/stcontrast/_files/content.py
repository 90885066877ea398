"""Hashes of content, the same on every machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["content_hash", "file_sha256"]


def content_hash(parts: Iterable[Any]) -> str:
    """SHA-256 (hex) of arrays and plain values, the same on every machine.

    Parameters
    ----------
    parts
        Arrays of numbers or text, and values that JSON can hold. They are read one after another, so that an iterator
        may give parts of what does not fit into memory. An array is told from another by type, shape and values, not by
        its layout in memory; a mapping by its items in any order.

    Examples
    --------
    >>> import numpy as np
    >>> content_hash([np.arange(3), "a"]) == content_hash([np.arange(3), "b"])
    False
    """
    digest = hashlib.sha256()
    for part in parts:
        is_array = isinstance(part, np.ndarray) and not part.dtype.hasobject
        plain = part.tolist() if isinstance(part, np.ndarray) and not is_array else part
        head = f"{part.dtype.str} {part.shape}" if is_array else json.dumps(plain, sort_keys=True)
        # the length keeps neighbouring parts apart
        digest.update(f"{len(head)}:{head}".encode())
        if is_array:
            digest.update(part.tobytes())
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

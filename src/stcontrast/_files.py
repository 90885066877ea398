"""Hashes of content, files that appear whole or not at all, and folders of work that can be interrupted."""

from __future__ import annotations

import hashlib
import json
import reprlib
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["ResumableStore", "RowsFile", "content_hash", "file_sha256", "written_whole"]


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


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write a file or a folder so that it appears whole or not at all.

    Parameters
    ----------
    path
        Where it will be. What is there is replaced at the end, and stays if the block raises.

    Yields
    ------
    A path of the same name in a temporary folder next to it, to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        scratch, old = Path(folder) / path.name, Path(folder) / "old"
        yield scratch
        if path.is_dir():
            # a folder cannot be moved onto a folder
            path.rename(old)
        try:
            scratch.replace(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


class ResumableStore:
    """A folder of work that can be interrupted: arrays, and a description of the work that they belong to.

    Parameters
    ----------
    folder
        The folder; made if absent.
    description
        All that the results depend on: names to values that JSON can hold.
    argument
        The user's argument that names the folder, for the error message.

    Attributes
    ----------
    resumed
        Whether the folder held the same work already.

    Raises
    ------
    ValueError
        If the folder holds other work; the message says what differs.
    """

    def __init__(self, folder: Path, description: Mapping[str, Any], *, argument: str) -> None:
        self.folder = folder
        file = folder / "description.json"
        self.resumed = file.exists()
        if not self.resumed:
            with written_whole(file) as scratch:
                scratch.write_text(json.dumps(dict(description), indent=2, sort_keys=True))
            return
        found = json.loads(file.read_text())
        now = json.loads(json.dumps(dict(description)))
        differing = sorted(name for name in {*found, *now} if found.get(name) != now.get(name))
        if differing:
            told = "; ".join(
                f"{n}: found {reprlib.repr(found.get(n))}, now {reprlib.repr(now.get(n))}" for n in differing
            )
            msg = (
                f"`{argument}`: {str(folder)!r} holds interrupted work that differs in {differing} ({told}). Delete the "
                f"folder, or give another `{argument}`."
            )
            raise ValueError(msg)

    def save(self, name: str, array: NDArray[Any]) -> None:
        """Write a small array, whole or not at all."""
        with written_whole(self.folder / f"{name}.npy") as scratch:
            np.save(scratch, array)

    def load(self, name: str) -> NDArray[Any] | None:
        """An array that was saved, or `None`."""
        file = self.folder / f"{name}.npy"
        return np.load(file) if file.exists() else None

    def flags(self, name: str, size: int) -> NDArray[np.bool_]:
        """Saved flags (size,), or all False where none were saved."""
        saved = self.load(name)
        return np.zeros(size, dtype=bool) if saved is None else saved


class RowsFile:
    """Rows of numbers on disk, written and read some at a time; nothing stays in memory.

    Parameters
    ----------
    file
        An npy file; made when the first rows are written.
    n_rows
        Number of rows.
    """

    def __init__(self, file: Path, *, n_rows: int) -> None:
        self.file = file
        self.n_rows = n_rows

    def write(self, rows: NDArray[np.intp], values: NDArray[np.float32]) -> None:
        """Write some rows (n, n_columns)."""
        if not self.file.exists():
            np.lib.format.open_memmap(self.file, "w+", np.float32, (self.n_rows, values.shape[1])).flush()
        mapped = np.lib.format.open_memmap(self.file, "r+")
        mapped[rows] = values
        mapped.flush()

    def __getitem__(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Some rows (n, n_columns). The file is mapped only for this call: mapped pages count as memory."""
        return np.load(self.file, mmap_mode="r")[rows]

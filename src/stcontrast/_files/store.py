"""Folders of work that can be interrupted."""

from __future__ import annotations

import json
import os
import platform
import reprlib
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from stcontrast._files.whole import written_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

    from numpy.typing import NDArray

__all__ = ["ResumableStore", "RowsFile"]


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
    BlockingIOError
        If another process works in the folder.
    ValueError
        If the folder holds other work; the message says what differs.
    """

    def __init__(self, folder: Path, description: Mapping[str, Any], *, argument: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _one_writer(folder, argument)
        try:
            self._describe(description, argument)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let other processes work in the folder."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _describe(self, description: Mapping[str, Any], argument: str) -> None:
        file = self.folder / "description.json"
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
                f"`{argument}`: {str(self.folder)!r} holds interrupted work that differs in {differing} ({told}). Delete the "
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
        return np.load(file, allow_pickle=False) if file.exists() else None

    def discard(self, *names: str) -> None:
        """Forget arrays that were saved."""
        for name in names:
            (self.folder / f"{name}.npy").unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, its work being done."""
        # on Windows the lock that is held stays, alone
        shutil.rmtree(self.folder, ignore_errors=os.name == "nt")

    def flags(self, name: str, size: int) -> NDArray[np.bool_]:
        """Saved flags (size,), or all False where none were saved, or so many that they count something else."""
        saved = self.load(name)
        return np.zeros(size, dtype=bool) if saved is None or len(saved) != size else saved


def _one_writer(folder: Path, argument: str) -> FileLock:
    """Hold the lock of a folder; the operating system gives it back when the process ends, however it does."""
    lock, who = FileLock(folder / "lock"), folder / "writer.json"
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        try:
            told = json.loads(who.read_text())
            by = f"process {told['process']} on {told['host']}"
        except (OSError, ValueError, KeyError):
            by = "another process"
        msg = f"`{argument}`: {by} works in {str(folder)!r}. Wait until it is done, stop it, or give another `{argument}`."
        raise BlockingIOError(msg) from error
    who.write_text(json.dumps({"process": os.getpid(), "host": platform.node()}))
    return lock


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

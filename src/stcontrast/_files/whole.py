"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

__all__ = ["output_path", "recover", "written_whole"]

logger = logging.getLogger(__name__)

LOCK: Final = "lock"
OLD: Final = "old"
# seconds after which a temporary folder without a lock is one that a killed process left
BEING_MADE: Final = 5.0


def output_path(
    path: str | PathLike[str], argument: str, *, endings: tuple[str, ...], overwrite: bool | None, what: str = "file"
) -> Path:
    """Where a file, or a zarr store, will be written; checked before any work.

    Parameters
    ----------
    path
        The user's path.
    argument
        Name of the argument, for messages.
    endings
        Endings that the name may have, such as ``".zarr"``.
    overwrite
        Whether what is there may be replaced; `None` where the function has no such argument.
    what
        What is written, for messages.

    Raises
    ------
    ValueError
        If the name has another ending.
    FileExistsError
        If something is there and `overwrite` is off, or it is a folder where a file is written.
    NotADirectoryError
        If a folder above it is a file.
    """
    place = Path(path)
    if place.suffix.lower() not in endings:
        wanted = " or ".join(map(repr, endings))
        msg = f"`{argument}`: the name of the {what} must end in {wanted}, found {str(path)!r}."
        raise ValueError(msg)
    if blocked := next((parent for parent in place.parents if parent.is_file()), None):
        msg = f"`{argument}`: {str(blocked)!r} is a file, so nothing can be written in it. Give another path."
        raise NotADirectoryError(msg)
    if place.is_dir() and ".zarr" not in endings:
        msg = f"`{argument}`: {str(path)!r} exists and is a folder. Give another path."
        raise FileExistsError(msg)
    if place.exists() and not overwrite:
        advice = "Remove it, or give another path." if overwrite is None else "Give another path, or `overwrite=True`."
        msg = f"`{argument}`: {str(path)!r} exists. {advice}"
        raise FileExistsError(msg)
    return place


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write a file or a folder so that it appears whole or not at all, also if the process or the machine stops.

    It is written beside its place, flushed to the disk, and moved there; what was there is removed last. A folder cannot
    be moved onto a folder: between the two moves the old one is only beside its place, where :func:`recover` finds it.

    Parameters
    ----------
    path
        Where it will be. What is there is replaced at the end, and stays if the block raises.

    Yields
    ------
    A path of the same name in a temporary folder next to it, to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path)))
    scratch, old = folder / path.name, folder / OLD
    try:
        # the operating system gives the lock back when the process ends, however it does
        with FileLock(folder / LOCK):
            try:
                yield scratch
                _flush(scratch)
                _swap(scratch, path, old)
            finally:
                # an old folder that could not be put back is all that there is
                if path.exists() or not old.exists():
                    _clear(folder)
    finally:
        _remove(folder)


def _swap(scratch: Path, path: Path, old: Path) -> None:
    if path.is_dir():
        path.rename(old)
    try:
        scratch.replace(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _flush_folder(path.parent)


def recover(path: Path) -> None:
    """Put back what a process that was killed while it replaced `path` had moved aside, and remove what it left.

    Parameters
    ----------
    path
        File or folder that :func:`written_whole` may have been replacing.
    """
    try:
        leftovers = [item for item in path.parent.iterdir() if item.name.startswith(_prefix(path))]
    except OSError:
        return
    for folder in leftovers:
        try:
            # one without a lock is just being made, or all but removed
            if (folder / LOCK).exists():
                with FileLock(folder / LOCK, blocking=False):
                    if (folder / OLD).exists() and not path.exists():
                        (folder / OLD).rename(path)
                        logger.warning("Writing %s was interrupted: the earlier content is restored.", path)
                    _clear(folder)
            elif time.time() - folder.stat().st_mtime < BEING_MADE:
                continue
            _remove(folder)
        except Timeout:
            # another process is writing
            continue
        except OSError as error:
            logger.warning("%s is left from an interrupted write, and cannot be removed (%s).", folder, error)


def _clear(folder: Path) -> None:
    """Remove what is in a temporary folder, but for its lock, which tells others whether it is in use."""
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != LOCK:
            item.unlink()


def _remove(folder: Path) -> None:
    """Remove a temporary folder that was cleared; one that holds an old folder stays."""
    with suppress(OSError):
        if not (folder / OLD).exists():
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def _prefix(path: Path) -> str:
    return f".{path.name}.stcontrast-"


def _flush(path: Path) -> None:
    """Have the operating system write a file, or everything in a folder, to the disk."""
    if path.is_dir():
        for item in path.iterdir():
            _flush(item)
        _flush_folder(path)
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""A prediction that is being written: what is done stays done when the process dies."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["PartialStore", "RowsFile", "check_store"]

FORMAT: Final = 1


def check_store(path: Path) -> None:
    """Raise where something lies at the path of a store: nothing is overwritten."""
    if path.suffix != ".zarr":
        msg = f"`store` must be the path of a zarr store, ending in '.zarr', found {str(path)!r}."
        raise ValueError(msg)
    if path.exists():
        msg = f"{str(path)!r} exists: read it with `anndata.read_zarr`, remove it, or give another `store`."
        raise FileExistsError(msg)


class PartialStore:
    """A folder beside a store, which becomes the store when all is written.

    Parameters
    ----------
    path
        Where the finished store will lie; until then the folder is called ``<path>.partial``.
    plan
        What is written, as plain values. A folder with another plan is refused, one with the same is gone on with.
    n_spots
        Number of spots.

    Raises
    ------
    ValueError
        If the folder holds something else.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any], *, n_spots: int) -> None:
        self.path = path
        self.folder = path.with_name(f"{path.name}.partial")
        self.table = self.folder / "table.zarr"
        self.n_spots = n_spots
        self.resumed = self.folder.exists()
        self._check_or_write({"format": FORMAT, **plan})

    def _check_or_write(self, plan: dict[str, Any]) -> None:
        file = self.folder / "plan.json"
        if not self.resumed:
            self.folder.mkdir(parents=True)
            file.write_text(json.dumps(plan))
            return
        found = json.loads(file.read_text()) if file.is_file() else {}
        differing = sorted(key for key in plan.keys() | found.keys() if plan.get(key) != found.get(key))
        if differing:
            msg = (
                f"{str(self.folder)!r} holds a prediction that was broken off and differs in {differing}: remove the "
                "folder, or give another `store`."
            )
            raise ValueError(msg)

    def flags(self, name: str, size: int) -> NDArray[np.bool_]:
        """What is done (size,), by name; all False at first."""
        kept = self.load(name)
        return np.zeros(size, dtype=bool) if kept is None else kept

    def save(self, name: str, array: NDArray[Any]) -> None:
        """Write a small array, whole or not at all."""
        file = self.folder / f"{name}.npy"
        scratch = file.with_suffix(".new.npy")
        np.save(scratch, array)
        scratch.replace(file)

    def load(self, name: str) -> NDArray[Any] | None:
        """A small array that was written, or `None`."""
        file = self.folder / f"{name}.npy"
        return np.load(file) if file.exists() else None

    def finish(self) -> None:
        """Make the table the store, and remove the rest."""
        self.table.rename(self.path)
        shutil.rmtree(self.folder)


class RowsFile:
    """Rows of numbers on disk, written and read some at a time; nothing of it stays in memory.

    Parameters
    ----------
    file
        Where they lie: an npy file, made when the first rows are written.
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
        """Some rows (n, n_columns). The file is mapped for no longer than that: mapped pages count as memory."""
        return np.load(self.file, mmap_mode="r")[rows]

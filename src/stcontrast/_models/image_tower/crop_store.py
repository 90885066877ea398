"""Crops of all spots in a file: cut once, read in any order."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stcontrast._files import content_hash
from stcontrast._progress import stage
from stcontrast.pp._crops import iter_batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

    from stcontrast._reading import Sections

__all__ = ["CropRows", "CropStore"]

logger = logging.getLogger(__name__)

READ_AT_ONCE = 64


class CropStore:
    """Crops (n_spots, n_fields, size_px, size_px, 3), uint8 RGB, in a temporary file that `close` deletes.

    Parameters
    ----------
    n_spots, n_fields, size_px
        Shape.
    directory
        Folder of the file; by default the folder for temporary files of the system.

    Examples
    --------
    >>> with CropStore(4, 1, 8) as store:
    ...     store[np.array([2, 0])].shape
    (2, 1, 8, 8, 3)
    """

    def __init__(self, n_spots: int, n_fields: int, size_px: int, *, directory: str | Path | None = None) -> None:
        self.shape = (n_spots, n_fields, size_px, size_px, 3)
        n_bytes = int(np.prod(self.shape, dtype=np.int64))
        self._folder = Path(tempfile.mkdtemp(prefix="stcontrast-crops-", dir=directory))
        free = shutil.disk_usage(self._folder).free
        if n_bytes > free:
            self.close()
            msg = (
                f"The crops of {n_spots} spots at {n_fields} fields take {n_bytes / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB are free in {str(self._folder.parent)!r}. Set another folder for temporary "
                "files (`TMPDIR`), or use fewer fields or smaller crops."
            )
            raise OSError(msg)
        self.path = self._folder / "crops.uint8"
        self._crops: NDArray[np.uint8] | None = np.memmap(self.path, dtype=np.uint8, mode="w+", shape=self.shape)

    @classmethod
    def cut(cls, parts: Sequence[Sections], fields: tuple[float, ...], size_px: int) -> Self:
        """Cut the crops of all slides of some objects, in the order in which the images are stored.

        Parameters
        ----------
        parts
            Resolved objects with images; their spots are concatenated.
        fields
            Sides of the crops in µm.
        size_px
            Side of the crops in pixels.
        """
        n_spots = sum(spots.table.n_obs for spots in parts)
        store = cls(n_spots, len(fields), size_px)
        try:
            with stage("crops", total=n_spots * len(fields), unit="crops") as bar:
                start = 0
                for spots in parts:
                    for slide in spots.slides:
                        if slide.image is None or slide.um_per_px is None:  # the caller has excluded these
                            continue
                        sides = [field_um / slide.um_per_px for field_um in fields]
                        batches = iter_batches(
                            slide.image, slide.centers, sides=sides, size_px=size_px, batch=READ_AT_ONCE
                        )
                        for rows, crops in batches:
                            store.write(start + slide.rows[rows], slice(None), crops)
                            bar.update(len(rows) * len(fields))
                    start += spots.table.n_obs
        except BaseException:
            store.close()
            raise
        logger.info("Cut %d crops of %d pixels into %s.", n_spots * len(fields), size_px, store.path)
        return store

    @property
    def crops(self) -> NDArray[np.uint8]:
        """All crops, in the file."""
        if self._crops is None:
            self._crops = np.memmap(self.path, dtype=np.uint8, mode="r", shape=self.shape)
        return self._crops

    def write(self, row: int | NDArray[np.intp], field: int | slice, crops: NDArray[np.uint8]) -> None:
        """Write crops (..., size_px, size_px, 3) of one or several spots and fields."""
        self.crops[row, field] = crops

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Crops of some spots, in memory (n, n_fields, size_px, size_px, 3)."""
        return np.asarray(self.crops[rows])

    def close(self) -> None:
        """Delete the file."""
        self._crops = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        # a reader in another process opens the file itself and does not delete it
        return {"shape": self.shape, "path": self.path, "_folder": self._folder, "_crops": None}


@dataclass(frozen=True, slots=True, eq=False)
class CropRows:
    """Some spots of a store, numbered from 0.

    Attributes
    ----------
    store
        The store.
    rows
        Which of its spots (n_spots,).
    """

    store: CropStore
    rows: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Crops of some of the spots, in memory (n, n_fields, size_px, size_px, 3)."""
        return self.store[self.rows[rows]]

    def batches(self) -> Iterator[NDArray[np.uint8]]:
        """All crops, in order and in batches."""
        for start in range(0, len(self), READ_AT_ONCE):
            yield self.store[self.rows[start : start + READ_AT_ONCE]]

    def fingerprint(self) -> str:
        """SHA-256 of the crops."""
        return content_hash(self.batches())

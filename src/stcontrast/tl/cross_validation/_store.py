"""Finished fits of a cross-validation in a folder, so that a repeated call goes on where the last one ended."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import joblib
import numpy as np
from scipy import sparse

from stcontrast.methods._base import METHODS
from stcontrast.tl.cross_validation._code import code_of
from stcontrast.tl.cross_validation._jobs import Fitted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stcontrast._data.spots import Spots
    from stcontrast.tl.cross_validation._jobs import Job, Material

__all__ = ["Store", "check_directory"]

logger = logging.getLogger(__name__)

ARRAYS: Final = ("expression", "proba", "half_width", "image", "gene")
FORMAT: Final = 2


def check_directory(directory: str | Path) -> Path:
    """The folder as a path.

    Raises
    ------
    FileExistsError
        If it, or what it would lie in, is a file.
    """
    path = Path(directory)
    there = next((part for part in (path, *path.parents) if part.exists()), path)
    if there.exists() and not there.is_dir():
        msg = f"`directory`: {str(there)!r} is a file. Name a folder; it is made where it is absent."
        raise FileExistsError(msg)
    return path


class Store:
    """One file a fit, under a hash of everything that its predictions depend on.

    Parameters
    ----------
    directory
        Folder; made with the first file.
    material
        What all fits work on.
    """

    def __init__(self, directory: Path, material: Material) -> None:
        self.directory = directory
        self.material = material
        self._of_inputs = _fingerprint(_plain_inputs(material.inputs))
        self._of_features: dict[int, str] = {}

    def path(self, job: Job) -> Path:
        """Where a fit is, or would be.

        Raises
        ------
        TypeError
            If an option of the method is nothing that can be recognised again.
        """
        features, _ = self.material.features_of(job)
        if id(features) not in self._of_features:
            self._of_features[id(features)] = _fingerprint(features)
        fit_spec = {item.name: getattr(job.fit_spec, item.name) for item in fields(job.fit_spec)}
        parts = [
            FORMAT, version("stcontrast"), self._of_inputs, self._of_features[id(features)], job.method,
            code_of(METHODS[job.method]), fit_spec, job.train_rows, job.test_rows,
        ]  # fmt: skip
        return self.directory / f"{_fingerprint(parts)[:32]}.npz"

    def read(self, job: Job) -> Fitted | None:
        """The predictions of a fit, `None` where there are none that can be read."""
        path = self.path(job)
        if not path.exists():
            return None
        try:
            # (given a path, NumPy leaves a broken file open)
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored)
            given = {name: arrays.get(name) for name in ARRAYS}
            found = Fitted(arrays["genes"].tolist(), arrays["classes"].tolist(), **given)
            shapes = {
                "expression": (found.expression, (len(job.test_rows), len(found.genes))),
                "proba": (found.proba, (len(job.test_rows), len(found.classes))),
            }
            for name, (values, shape) in shapes.items():
                if values is not None and values.shape != shape:
                    msg = f"{name} has the shape {values.shape}; {shape} was expected"
                    raise ValueError(msg)
        except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s): the fit is done again.", path, error)
            return None
        return found

    def write(self, job: Job, fitted: Fitted) -> None:
        """Keep a finished fit; a folder that cannot be written costs a warning, not the fit."""
        path = self.path(job)
        about = {"method": job.method, "options": repr(job.fit_spec.options), "held out": job.donors}
        beside = path.with_name(f".{path.stem}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            arrays = {name: getattr(fitted, name) for name in ARRAYS if getattr(fitted, name) is not None}
            with beside.open("wb") as file:
                np.savez(
                    file,
                    genes=np.array(fitted.genes, dtype=np.str_),
                    classes=np.array(fitted.classes, dtype=np.str_),
                    about=np.array(json.dumps({**about, "version": version("stcontrast")})),
                    **arrays,
                )
            beside.replace(path)
        except OSError as error:
            logger.warning("%s with %s held out could not be written: %s", job.name, ", ".join(job.donors), error)
            beside.unlink(missing_ok=True)


def _plain_inputs(inputs: Spots) -> dict[str, Any]:
    counts = sparse.csr_matrix(inputs.counts, copy=True)
    # the same counts may be stored in several ways
    counts.sum_duplicates()
    counts.eliminate_zeros()
    # the names of the spots are not looked at by any method
    plain = {item.name: getattr(inputs, item.name) for item in fields(inputs) if item.name not in ("counts", "name")}
    return {**plain, "counts": [counts.shape, counts.data, counts.indices, counts.indptr]}


def _fingerprint(value: Any) -> str:
    hasher = hashlib.sha256()
    for part in _bytes_of(value):
        # lengths keep neighbours apart
        hasher.update(f"{len(part)}:".encode())
        hasher.update(part)
    return hasher.hexdigest()


def _bytes_of(value: Any) -> Iterator[bytes]:
    """Bytes that tell a value from any other."""
    if isinstance(value, np.generic):
        yield from _bytes_of(value.item())
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        yield repr(value).encode()
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"array {value.dtype.str} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key in sorted(value, key=repr):
            yield from _bytes_of(key)
            yield from _bytes_of(value[key])
    elif isinstance(value, list | tuple | np.ndarray):
        yield f"sequence {len(value)}".encode()
        for item in value:
            yield from _bytes_of(item)
    elif is_dataclass(value) and not isinstance(value, type):
        yield type(value).__qualname__.encode()
        yield from _bytes_of({item.name: getattr(value, item.name) for item in fields(value)})
    else:
        try:
            yield joblib.hash(value, hash_name="sha1").encode()
        # pickling calls whatever the object brings
        except Exception as error:
            msg = (
                f"`directory`: an option of a method, {value!r}, cannot be recognised again ({error}). Give plain "
                "values, or leave out `directory`."
            )
            raise TypeError(msg) from error

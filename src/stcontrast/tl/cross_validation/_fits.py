"""One fit of a cross-validation, and the folder where its predictions are kept."""

from __future__ import annotations

import inspect
import json
import logging
import sys
import zipfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import joblib
import numpy as np
from joblib import parallel_config
from scipy import sparse
from threadpoolctl import threadpool_limits

from stcontrast._data import Spots
from stcontrast._files import written_whole
from stcontrast._keys import GENE_EMBEDDING, IMAGE_EMBEDDING
from stcontrast._records import VERSION
from stcontrast._settings import settings
from stcontrast._training import one_thread
from stcontrast.fitted._fit import fit_model, most_spots, spots_of_model
from stcontrast.methods._base import METHODS, Method, get_method
from stcontrast.tl._features import block_widths

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from stcontrast._reading import Sections
    from stcontrast.fitted._fit import FitSpec
    from stcontrast.tl._tune import TunedFeatures, Tuning

__all__ = ["Fit", "FitStore", "OutOfFold", "check_directory", "fit_and_predict", "with_tuned_features"]

logger = logging.getLogger(__name__)

PACKAGE: Final = Method.__module__.partition(".")[0]
FORMAT: Final = 7


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A method, the spots that it learns from, and the spots that it predicts.

    Attributes
    ----------
    name, method
        Row of the comparison, and the method in it.
    fit_spec
        How to fit.
    spots
        All spots.
    features, made_by
        The image features (n_spots, n_features) that the method uses, and what made every block of them.
    train_rows, test_rows
        Spots to learn from, and held-out spots.
    inner_features
        Features of the training spots in every inner fold, where the encoder was fine-tuned.
    """

    name: str
    method: str
    fit_spec: FitSpec
    spots: Spots
    features: NDArray[np.float32]
    made_by: Sequence[Mapping[str, Any]]
    train_rows: NDArray[np.intp]
    test_rows: NDArray[np.intp]
    inner_features: tuple[NDArray[np.float32], ...] = ()

    @property
    def donors(self) -> list[str]:
        """Held-out donors."""
        return sorted(set(self.spots.donor[self.test_rows].tolist()))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Widths of the blocks of its features."""
        return block_widths(self.made_by)

    def alone(self) -> Fit:
        """The fit without its spots and features, which many fits share."""
        nothing = np.zeros((0, 0), dtype=np.float32)
        return replace(self, spots=Spots.of(np.zeros(0, dtype=np.int64), np.zeros((0, 2))), features=nothing)

    @property
    def n_genes(self) -> int:
        """Genes that it models."""
        return min(self.fit_spec.n_genes + len(self.fit_spec.genes), len(self.spots.genes))

    @property
    def n_values(self) -> int:
        """Spots × (features + modelled genes): time grows with it."""
        n_spots, n_features = self.features.shape
        return int(n_spots * (n_features + self.n_genes))

    @property
    def bytes_held(self) -> int:
        """Memory of the fit at its peak, without libraries and data; measured for the methods that need most."""
        of_features, of_expression = METHODS[self.method].held
        values = of_features * self.features.shape[1] + of_expression * self.n_genes
        most = most_spots(METHODS[self.method], self.fit_spec, tuned=bool(self.inner_features))
        n_spots = len(self.train_rows)
        return int((n_spots if most is None else min(n_spots, most)) * values * np.dtype(np.float32).itemsize)


@dataclass(frozen=True, slots=True, eq=False)
class OutOfFold:
    """What a fit predicts for the held-out spots.

    Attributes
    ----------
    genes, classes
        What it modelled, in the order of the predictions.
    expression, proba
        Predictions (n_test, n_genes) and (n_test, n_classes), or `None`.
    half_width
        Half the width of every gene's interval (n_genes,), or `None`.
    image, gene
        Embeddings (n_test, k) in a space that both share, or `None`.
    inside
        Whether the spots look like those that it was trained on (n_test,), or `None`.
    """

    genes: list[str]
    classes: list[str]
    expression: NDArray[np.float32] | None
    proba: NDArray[np.float32] | None
    half_width: NDArray[np.float32] | None
    image: NDArray[np.float32] | None
    gene: NDArray[np.float32] | None
    inside: NDArray[np.bool_] | None = None


ARRAYS: Final = tuple(field.name for field in fields(OutOfFold) if field.name not in ("genes", "classes"))


def fit_and_predict(fit: Fit) -> OutOfFold:
    """Fit on the training spots and predict the held-out spots, on one thread."""
    spots, rows = replace(fit.spots, features=fit.features, blocks=fit.blocks), fit.test_rows
    # the last bits depend on the number of threads, and must not depend on the number of processes
    with settings.override(progress=False), threadpool_limits(1), one_thread(), parallel_config("sequential"):
        model, _ = fit_model(
            spots, fit.train_rows, method=fit.method, fit_spec=fit.fit_spec, made_by=fit.made_by,
            of_fold=fit.inner_features,
        )  # fmt: skip
        found = model.predict(
            fit.features[rows], slide=spots.slide[rows], xy=spots.xy[rows], depth=spots.depth[rows], names=spots.slides,
        )  # fmt: skip
        embedded = {}
        if model.has_expression and spots.measured[rows].any():
            embedded = model.method.embed(spots_of_model(spots, rows, model.spec))
    image, gene = embedded.get(IMAGE_EMBEDDING), embedded.get(GENE_EMBEDDING)
    if image is None or gene is None:
        image = gene = None
    expression, half_width = (found.expression, found.half_width) if model.has_expression else (None, None)
    proba = found.proba if model.classes else None
    return OutOfFold(model.genes, model.classes, expression, proba, half_width, image, gene, found.in_distribution)


def check_directory(directory: str | Path) -> Path:
    """The folder as a path.

    Raises
    ------
    FileExistsError
        If it, or a folder above it, is a file.
    """
    path = Path(directory)
    existing = next((part for part in (path, *path.parents) if part.exists()), path)
    if existing.is_file():
        msg = f"`directory`: {str(existing)!r} is a file. Name a folder; it is made if absent."
        raise FileExistsError(msg)
    return path


class FitStore:
    """Predictions of finished fits, one file each, named by a hash of everything that they depend on.

    Parameters
    ----------
    directory
        Folder; made with the first file.
    fits
        All fits of a cross-validation.

    Raises
    ------
    TypeError
        If an option of a method cannot be hashed.
    """

    def __init__(self, directory: Path, fits: Sequence[Fit]) -> None:
        self.directory = directory
        # the fits of a fold share their features, and all fits share the spots
        spots = _hash_of_spots(fits[0].spots)
        arrays = {id(fit.features): fit.features for fit in fits}
        features = {key: joblib.hash(np.ascontiguousarray(array)) for key, array in arrays.items()}
        sources = {method: _source_of(METHODS[method]) for method in dict.fromkeys(fit.method for fit in fits)}
        self._paths: dict[Fit, Path] = {}
        # one for every row of the comparison: a part that a method brings may have to be read
        self._made: dict[str, Method] = {}
        for fit in fits:
            if sources[fit.method] is None:
                continue
            if fit.name not in self._made:
                self._made[fit.name] = get_method(fit.method, seed=fit.fit_spec.seed, options=fit.fit_spec.options)
            # the method as it is made: a part that it brings is known by its content, not by its path
            made = self._made[fit.name]
            try:
                parts = (
                    FORMAT, VERSION, spots, features[id(fit.features)], fit.blocks, fit.method, sources[fit.method],
                    replace(fit.fit_spec, options=None), made.spec, made.brought, fit.train_rows, fit.test_rows,
                )  # fmt: skip
                self._paths[fit] = directory / f"{joblib.hash(parts)}.npz"
            # pickling runs code of the option's own class
            except Exception as error:
                msg = (
                    f"`directory`: the options of {fit.name!r}, {fit.fit_spec.options!r}, cannot be hashed ({error}). Give "
                    "plain values, or leave out `directory`."
                )
                raise TypeError(msg) from error

    def read(self, fit: Fit) -> OutOfFold | None:
        """The predictions of a fit, `None` where there are none that can be read."""
        path = self._paths.get(fit)
        if path is None or not path.exists():
            return None
        try:
            # (given a path, NumPy leaves a broken file open)
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored)
            genes, classes = arrays["genes"].tolist(), arrays["classes"].tolist()
            out_of_fold = OutOfFold(genes, classes, **{name: arrays.get(name) for name in ARRAYS})
            for name, columns in (("expression", genes), ("proba", classes)):
                values, shape = getattr(out_of_fold, name), (len(fit.test_rows), len(columns))
                if values is not None and values.shape != shape:
                    msg = f"{name} has the shape {values.shape}; {shape} was expected"
                    raise ValueError(msg)
        except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s): the fit is repeated.", path, error)
            return None
        return out_of_fold

    def write(self, fit: Fit, out_of_fold: OutOfFold) -> None:
        """Keep the predictions of a finished fit. A folder that cannot be written costs a warning, not the fit."""
        path = self._paths.get(fit)
        if path is None:
            return
        given, spec = fit.fit_spec.options or {}, self._made[fit.name].spec
        about = {
            "method": fit.method,
            "options": repr({name: spec[name] for name in given}),
            "held out": fit.donors,
            "version": VERSION,
        }
        arrays = {name: getattr(out_of_fold, name) for name in ARRAYS}
        for name in ("genes", "classes"):
            arrays[name] = np.array(getattr(out_of_fold, name), dtype=np.str_)
        try:
            with written_whole(path) as scratch:
                there = {name: array for name, array in arrays.items() if array is not None}
                with scratch.open("wb") as file:
                    np.savez(file, about=np.array(json.dumps(about)), **there)
        except OSError as error:
            logger.warning("%s with %s held out could not be written: %s", fit.name, ", ".join(fit.donors), error)


def _hash_of_spots(spots: Spots) -> str:
    counts = sparse.csr_matrix(spots.counts, copy=True)
    # the same counts can be stored in several ways
    counts.sum_duplicates()
    counts.eliminate_zeros()
    apart = ("counts", "gene_side")
    others = {item.name: getattr(spots, item.name) for item in fields(spots) if item.name not in apart}
    gene_side = None if spots.gene_side is None else _hash_of_spots(spots.gene_side)
    return str(joblib.hash((others, counts.shape, counts.data, counts.indices, counts.indptr, gene_side)))


def _source_of(method: type[Method]) -> list[str] | None:
    """Source of the modules that define a user's own method, `None` where it does not tell the code.

    Empty for a method of this package: the version tells its code.
    """
    own = [cls for cls in method.__mro__ if cls is not object and cls.__module__.partition(".")[0] != PACKAGE]
    try:
        # what a class inside a function does may depend on the function's variables
        if any("<locals>" in cls.__qualname__ for cls in own):
            msg = "it is defined inside a function"
            raise OSError(msg)
        # the class shows that the module is the right one; the module has the functions that the class calls
        return [inspect.getsource(part) for cls in own for part in (cls, sys.modules[cls.__module__])]
    except (OSError, TypeError, KeyError) as error:
        logger.warning(
            "`directory`: no source code of the method %r (%s). Its fits are not kept: define it in a module.",
            method.name, error,
        )  # fmt: skip
        return None


def with_tuned_features(
    fits: list[list[Fit]], tuning: Tuning, sources: Sequence[Sections], uses_color: Mapping[str, bool], folder: Path
) -> list[list[Fit]]:
    """The same fits with features of encoders that were fine-tuned without their held-out donors."""
    tuned = []
    with tuning.cut(sources) as crops:
        for i, of_fold in enumerate(fits):
            logger.info("Fine-tuning without %s.", ", ".join(of_fold[0].donors))
            tuned.append(list(of_fold))
            found: TunedFeatures | None = None
            for j, fit in enumerate(of_fold):
                if uses_color[fit.name]:
                    continue
                own = tuning.options.loss == "method"
                if found is None or own:
                    fit_spec, name = (
                        (fit.fit_spec, f"{i}-{j}") if own else (replace(fit.fit_spec, options=None), str(i))
                    )
                    found, _ = tuning.run(
                        crops, fit.spots, fit.train_rows, fit_spec, method=fit.method, name=f"without{name}"
                    )
                    found = found.in_folder(folder / name)
                tuned[-1][j] = replace(
                    fit, features=found.features, made_by=found.made_by, inner_features=found.of_fold
                )
    return tuned

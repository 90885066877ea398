"""From gathered inputs to a fitted model: arrays only, so that cross-validation takes the same path."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._data.design import build_design
from stcontrast._data.folds import Folds, inner_folds
from stcontrast._data.genes import choose_genes, log_normalize
from stcontrast._data.spots import TrainingData
from stcontrast._files import content_hash
from stcontrast.fitted import Predictor
from stcontrast.methods import get_method

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from scipy import sparse

    from stcontrast._data.design import Standardize
    from stcontrast._data.inputs import Inputs
    from stcontrast.methods import Method

__all__ = ["Prepared", "Recipe", "check_genes", "fingerprint_of", "prepare", "slide_fingerprints", "targets_of"]

logger = logging.getLogger(__name__)

# columns that rows are sorted by before they are hashed, and rows that are hashed at once
SORTED_BY: Final = 8
HASHED_ROWS: Final = 4096


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to fit, apart from the data; see the parameters of :func:`stcontrast.tl.fit`."""

    n_genes: int = 1000
    genes: Sequence[str] | None = None
    n_neighbors: int | None = None
    standardize: Standardize = "slide"
    seed: int = 0
    options: Mapping[str, Any] | None = None
    complete: bool = False
    more_genes: Sequence[str] = ()
    """Genes to model beside those that are chosen or named, because they are scored."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A fresh method and all that it is to learn from."""

    method: Method
    data: TrainingData
    features: NDArray[np.float32]
    names: NDArray[np.str_]
    card: dict[str, Any]
    of_fold: tuple[NDArray[np.float32], ...] = ()
    """Features of the same spots in every inner fold (n_spots, n_features), where each has an encoder of its own."""

    def train(self) -> Predictor:
        """Fit the method."""
        data = self.data.completed()
        folds = self._with_features(inner_folds(data))
        logger.info(
            "Fitting %s on %d spots of %d slides, %d donors, %d genes, %d classes; inner folds over %ss.",
            self.method.name, len(data.slide), len(np.unique(data.slide)), len(np.unique(data.donor)), data.n_genes,
            data.n_classes, folds.unit,
        )  # fmt: skip
        return Predictor.fit(self.method, data, folds, self.card, features=self.features, names=self.names)

    def _with_features(self, folds: Folds) -> Folds:
        if not self.of_fold:
            return folds
        data, how = self.data, {name: self.card[name] for name in ("n_neighbors", "standardize")}
        return Folds(
            [
                replace(fold, features=features, design=build_design(features, data.slide, data.xy, **how))
                for fold, features in zip(folds.folds, self.of_fold, strict=True)
            ],
            folds.unit,
        )


def prepare(
    inputs: Inputs,
    features: NDArray[np.float32],
    rows: NDArray[np.intp],
    *,
    method: str,
    recipe: Recipe,
    record: Mapping[str, Any],
    of_fold: tuple[NDArray[np.float32], ...] = (),
) -> Prepared:
    """Set out what a method learns from. Nothing outside `rows` is looked at, genes and classes included.

    Parameters
    ----------
    inputs
        All spots.
    features
        Their image features (n_spots, n_features), or colour statistics for a method that looks at those.
    rows
        Training spots: whole donors.
    method
        Name of the method.
    recipe
        How to fit.
    record
        What made the features, for the card.
    of_fold
        Features of the training spots in every inner fold, where the encoder of `features` has learnt from them all.
    """
    fresh = get_method(method, seed=recipe.seed, options=recipe.options)
    if not (inputs.measured[rows].any() or any(value is not None for value in inputs.label[rows])):
        msg = "Nothing to learn from: the training slides have neither counts nor labels."
        raise ValueError(msg)
    n_neighbors = fresh.n_neighbors if recipe.n_neighbors is None or fresh.uses_color else recipe.n_neighbors
    columns, classes = _columns(inputs, rows, recipe), _classes(inputs, rows)
    data = _gathered(
        inputs, features, rows, columns=columns, classes=classes, n_neighbors=n_neighbors,
        standardize=recipe.standardize, complete=recipe.complete,
    )  # fmt: skip
    card = {
        "genes": [inputs.genes[i] for i in columns],
        "classes": classes,
        "units": "log1p(counts per 10 000 of the full library)",
        "image_features": dict(record),
        "n_features": int(features.shape[1]),
        "n_neighbors": n_neighbors,
        "standardize": recipe.standardize,
        "completed_targets": recipe.complete,
        "seed": int(recipe.seed),
        "donors": sorted(set(inputs.donor[rows].tolist())),
        "slides": {
            inputs.slide_names[code]: print_
            for code, print_ in slide_fingerprints(features, inputs.slide).items()
            if code in set(data.slide.tolist())
        },
        "interval": 0.9,
        "versions": {name: version(name) for name in ("stcontrast", "scvi-tools", "torch", "scikit-learn", "anndata")}
        | {"python": platform.python_version()},
    }
    return Prepared(fresh, data, features[rows], inputs.name[rows], card, of_fold)


def targets_of(inputs: Inputs, rows: NDArray[np.intp], recipe: Recipe) -> TrainingData:
    """What an encoder learns from: training spots without a design, their expression as measured."""
    bare = np.zeros((len(inputs.slide), 0), dtype=np.float32)
    return _gathered(
        inputs, bare, rows, columns=_columns(inputs, rows, recipe), classes=_classes(inputs, rows), n_neighbors=0,
        standardize="none", complete=False,
    )  # fmt: skip


def held_out_data(
    inputs: Inputs, features: NDArray[np.float32], rows: NDArray[np.intp], card: Mapping[str, Any]
) -> TrainingData:
    """Held-out spots as a fitted model would have met them in training, counts and all: to look at its embeddings.

    Parameters
    ----------
    inputs
        All spots.
    features
        Their image features (n_spots, n_features).
    rows
        Held-out spots.
    card
        The model's card.
    """
    position = {gene: i for i, gene in enumerate(inputs.genes)}
    columns = np.array([position[gene] for gene in card["genes"]], dtype=np.intp)
    return _gathered(
        inputs, features, rows, columns=columns, classes=card["classes"], n_neighbors=card["n_neighbors"],
        standardize=card["standardize"], complete=False,
    )  # fmt: skip


def _gathered(
    inputs: Inputs,
    features: NDArray[np.float32],
    rows: NDArray[np.intp],
    *,
    columns: NDArray[np.intp],
    classes: list[str],
    n_neighbors: int,
    standardize: Standardize,
    complete: bool,
) -> TrainingData:
    counts, slide = inputs.counts[rows][:, columns], inputs.slide[rows]
    expression = log_normalize(counts, inputs.total[rows])
    code = {value: i for i, value in enumerate(classes)}
    return TrainingData(
        design=build_design(features[rows], slide, inputs.xy[rows], n_neighbors=n_neighbors, standardize=standardize),
        slide=slide,
        donor=np.unique(inputs.donor[rows], return_inverse=True)[1],
        batch=np.unique(inputs.batch[rows], return_inverse=True)[1],
        xy=inputs.xy[rows],
        depth=inputs.total[rows],
        counts=counts,
        target=expression,
        observed=expression,
        measured=inputs.measured[rows],
        label=np.array([code.get(value, -1) for value in inputs.label[rows]], dtype=np.int64),
        n_classes=len(classes),
        complete=complete,
    )


def check_genes(inputs: Inputs, genes: Sequence[str] | None) -> None:
    """Raise where genes are named that the counts do not have."""
    known = set(inputs.genes)
    absent = [gene for gene in genes or () if gene not in known]
    if absent and known:
        msg = f"{len(absent)} of `genes` are absent from the counts: {absent[:5]}. They begin {inputs.genes[:5]}."
        raise KeyError(msg)


def slide_fingerprints(features: NDArray[np.float32], slide: NDArray[np.int64]) -> dict[int, str]:
    """What recognises a slide again, whatever its name: a hash of its image features, rounded, spots in any order."""
    return {int(code): fingerprint_of(features, np.flatnonzero(slide == code)) for code in np.unique(slide)}


def fingerprint_of(features: NDArray[np.float32], rows: NDArray[np.intp]) -> str:
    """Hash of some rows of features, in any order; they may lie on disk, and are read in parts."""
    last = np.concatenate([block[:, : -SORTED_BY - 1 : -1] for block in _rounded(features, rows)])
    return content_hash(_rounded(features, rows[np.lexsort(last.T)]))[:16]


def _rounded(features: NDArray[np.float32], rows: NDArray[np.intp]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(rows), HASHED_ROWS):
        yield np.round(np.asarray(features[rows[start : start + HASHED_ROWS]], dtype=np.float64), 3) + 0.0


def _classes(inputs: Inputs, rows: NDArray[np.intp]) -> list[str]:
    return sorted({value for value in inputs.label[rows] if value is not None})


def _columns(inputs: Inputs, rows: NDArray[np.intp], recipe: Recipe) -> NDArray[np.intp]:
    measured = rows[inputs.measured[rows]]
    if len(measured) == 0:
        return np.zeros(0, dtype=np.intp)
    position = {gene: i for i, gene in enumerate(inputs.genes)}
    if recipe.genes is not None:
        check_genes(inputs, recipe.genes)
        columns = np.array([position[gene] for gene in dict.fromkeys(recipe.genes)], dtype=np.intp)
    else:
        counts: sparse.csr_matrix = inputs.counts[measured]
        columns = choose_genes(counts, inputs.total[measured], inputs.slide[measured], n_genes=recipe.n_genes)
    there = set(columns.tolist())
    more = [position[gene] for gene in dict.fromkeys(recipe.more_genes) if position[gene] not in there]
    if len(columns) + len(more) == 0:
        msg = "No gene is seen in 10 % of the training spots: name the genes to model with `genes`."
        raise ValueError(msg)
    return np.concatenate([columns, np.array(more, dtype=np.intp)])

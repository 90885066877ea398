"""From a table of spots to a fitted model: arrays only, so that cross-validation takes the same path."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._data import columns_of_genes, design_of_some, inner_folds, standardize_slides
from stcontrast._files import content_hash
from stcontrast._slides import rows_by_slide
from stcontrast.fitted._calibration import LEVEL
from stcontrast.fitted._model import Predictor
from stcontrast.fitted._moments import TrainingMoments
from stcontrast.methods._base import get_method

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from stcontrast._data import Spots, Standardize
    from stcontrast.methods._base import Method

__all__ = [
    "N_GENES",
    "FitSpec",
    "completed",
    "draw_spots",
    "fingerprint_of",
    "fit_model",
    "most_spots",
    "spots_of_model",
    "training_spots",
    "with_genes_of",
]

logger = logging.getLogger(__name__)

# most variable genes that are modelled, unless the user says otherwise
N_GENES: Final = 1000
# columns that rows are sorted by before they are hashed, and rows that are hashed at once
SORTED_BY: Final = 8
HASHED_ROWS: Final = 4096


@dataclass(frozen=True, slots=True)
class FitSpec:
    """How to fit, apart from the spots; see the parameters of :func:`stcontrast.tl.fit`."""

    n_genes: int = N_GENES
    """How many of the most variable genes to model; 0 for those in `genes` alone."""
    genes: Sequence[str] = ()
    """Genes to model as well."""
    n_neighbors: int | None = None
    standardize: Standardize = "slide"
    seed: int = 0
    options: Mapping[str, Any] | None = None
    complete: bool = False
    max_spots: int | None = 100_000


def fit_model(
    spots: Spots,
    rows: NDArray[np.intp],
    *,
    method: str,
    fit_spec: FitSpec,
    made_by: Sequence[Mapping[str, Any]],
    of_fold: Sequence[NDArray[np.float32]] = (),
    spot_distance_um: float | None = None,
    images: Mapping[str, Any] | None = None,
) -> tuple[Predictor, Spots]:
    """Fit a method. Nothing outside `rows` is looked at, genes and classes included.

    Parameters
    ----------
    spots
        All spots, with their image features, or colour statistics for a method that looks at those.
    rows
        Training spots: whole donors, as :meth:`Spots.in_order` gives them.
    method
        Name of the method.
    fit_spec
        How to fit.
    made_by
        What made every block of the features.
    of_fold
        Features of the training spots in every inner fold (n_training, n_features), where the encoder of the features
        has learnt from all of them.
    spot_distance_um
        Distance between neighbouring training spots in µm, if it is known.
    images
        What recognises the images of the training slides: hash and corners of the spots.

    Returns
    -------
    The model, and the training spots as it saw them, to look at its embeddings: `rows` in order, or those that were
    drawn from them.
    """
    fresh = get_method(method, seed=fit_spec.seed, options=fit_spec.options)
    fit_spec = with_genes_of(fresh, fit_spec)
    drawn = draw_spots(spots, rows, most_spots(fresh, fit_spec, tuned=bool(of_fold)), seed=fit_spec.seed)
    train = training_spots(spots, drawn, fit_spec)
    if not fresh.learns_from_gene_side:
        train = replace(train, gene_side=None)
    if not (train.has_counts or train.has_labels):
        msg = "Nothing to learn from: the training slides have neither counts nor labels."
        raise ValueError(msg)
    n_neighbors = fresh.n_neighbors if fit_spec.n_neighbors is None or fresh.uses_color else fit_spec.n_neighbors
    names = np.asarray(spots.slides, dtype=np.str_)
    of_slides = sorted(rows_by_slide(spots.slide, rows), key=lambda of_slide: names[spots.slide[of_slide[0]]])
    design, of_slide = design_of_some(
        spots.features, spots.xy, of_slides, drawn, blocks=spots.blocks, n_neighbors=n_neighbors
    )
    moments = TrainingMoments().fit(of_slide, n_features=spots.features.shape[1])
    if fit_spec.standardize == "slide":
        standardize_slides(design, train.slide, of_slide)
    train = replace(train, design=design)
    slides = [train.slides[code] for code in np.unique(train.slide)]
    spec: dict[str, Any] = {
        "genes": list(train.genes),
        "classes": list(train.classes),
        "units": "log1p(counts per 10 000 of the full library)",
        "image_features": [dict(block) for block in made_by],
        "blocks": list(train.blocks or train.features.shape[1:]),
        "n_neighbors": n_neighbors,
        "standardize": fit_spec.standardize,
        "completed_targets": fit_spec.complete,
        "n_spots": len(rows),
        "n_spots_used": len(train),
        "spot_distance_um": spot_distance_um,
        "seed": int(fit_spec.seed),
        "donors": sorted(set(train.donor.tolist())),
        # of the whole slide, also where only some of its donors are trained on
        "slides": {
            name: fingerprint_of(spots.features, np.flatnonzero(spots.slide == list(spots.slides).index(name)))
            for name in slides
        },
        "images": dict(images or {}),
        "gene_side": [] if train.gene_side is None else [train.slides[i] for i in np.unique(train.gene_side.slide)],
        "interval": LEVEL,
        "versions": dict(_versions()),
    }
    if len(train) < len(rows):
        logger.warning("Learning from %d of %d spots, drawn at random (`max_spots`).", len(train), len(rows))
    folds = inner_folds(train)
    if of_fold:
        own = [replace(train, features=features) for features in of_fold]
        own = [part.with_design(n_neighbors=n_neighbors, standardize=fit_spec.standardize) for part in own]
        folds = [replace(fold, spots=part) for fold, part in zip(folds, own, strict=True)]
    if fit_spec.complete:
        folds = [fold.with_targets(completed) for fold in folds]
    logger.info(
        "Fitting %s on %d spots of %d slides, %d donors, %d genes, %d classes; inner folds over %ss.",
        fresh.name, len(train), len(slides), len(spec["donors"]), train.n_genes, train.n_classes, folds[0].unit,
    )  # fmt: skip
    model = Predictor.fit(fresh, completed(train) if fit_spec.complete else train, folds, spec)
    model.moments = moments
    return model, train


@cache
def _versions() -> dict[str, str]:
    """Versions of what a model is made with."""
    names = ("stcontrast", "scvi-tools", "torch", "scikit-learn", "anndata")
    return {name: version(name) for name in names} | {"python": platform.python_version()}


def training_spots(spots: Spots, rows: NDArray[np.intp], fit_spec: FitSpec) -> Spots:
    """Training spots with genes and classes that are chosen on them alone; without a design."""
    held_out = np.setdiff1d(spots.donor, spots.donor[rows])
    train = spots.take(rows).without_donors(held_out)
    train = train.with_classes(train.known_classes).with_slides_in_order()
    if train.gene_side is not None:
        side = train.gene_side
        drawn = draw_spots(side, np.arange(len(side)), fit_spec.max_spots, seed=fit_spec.seed)
        train = replace(train, gene_side=side.take(drawn))
    return train.with_genes(columns_of_genes(train, fit_spec.genes, fit_spec.n_genes))


def most_spots(method: Method | type[Method], fit_spec: FitSpec, *, tuned: bool) -> int | None:
    """Largest number of spots that a fit learns from; `None`: all, as where an encoder was fine-tuned on them."""
    # a network that looks around a spot needs the whole slide, and so do completed zeros
    return fit_spec.max_spots if method.spotwise and not tuned and not fit_spec.complete else None


def draw_spots(spots: Spots, rows: NDArray[np.intp], n: int | None, *, seed: int) -> NDArray[np.intp]:
    """At most `n` of the rows, in the same order; all of them if `n` is `None`.

    Annotated spots come first, if they are at most half of `n`. From the others as many are drawn of every slide, one
    at least, and all of a slide that has fewer.

    Parameters
    ----------
    spots
        All spots.
    rows
        Rows to draw from.
    n, seed
        How many, and the seed of the draw.
    """
    if n is None or len(rows) <= n:
        return rows
    annotated = spots.label[rows] >= 0
    chosen = annotated if annotated.sum() <= n // 2 else np.zeros(len(rows), dtype=np.bool_)
    of_slides = rows_by_slide(spots.slide[rows], np.flatnonzero(~chosen))
    rng, left = np.random.default_rng(seed), n - int(chosen.sum())
    # the smallest slides first: what they do not use is shared among the others
    for i, of_slide in enumerate(sorted(of_slides, key=len)):
        share = min(len(of_slide), max(left // (len(of_slides) - i), 1))
        chosen[rng.choice(of_slide, share, replace=False)] = True
        left -= share
    return rows[chosen]


def spots_of_model(spots: Spots, rows: NDArray[np.intp], spec: Mapping[str, Any]) -> Spots:
    """Some spots as a fitted model would have met them in training, counts and all: to look at its embeddings.

    Parameters
    ----------
    spots
        All spots, with their image features.
    rows
        Those to look at.
    spec
        The model's spec.
    """
    position = {gene: i for i, gene in enumerate(spots.genes)}
    columns = np.array([position[gene] for gene in spec["genes"]], dtype=np.intp)
    here = spots.take(rows).with_classes(spec["classes"]).with_genes(columns)
    return here.with_design(n_neighbors=spec["n_neighbors"], standardize=spec["standardize"])


def with_genes_of(method: Method, fit_spec: FitSpec) -> FitSpec:
    """How to fit, with the genes of the method where it brings some.

    Raises
    ------
    ValueError
        If other genes are asked for than those that the method brings.
    """
    if method.genes is None:
        return fit_spec
    other = [gene for gene in fit_spec.genes if gene not in set(method.genes)]
    if other or (fit_spec.n_genes == 0 and len(set(fit_spec.genes)) < len(method.genes)):
        msg = (
            f"The given gene space has {len(method.genes)} genes of its own ({', '.join(method.genes[:3])}, …), and models "
            "exactly these. "
            + (f"It does not have {other[:5]}. " if other else "")
            + "Leave out `genes`, and gene sets with other genes."
        )
        raise ValueError(msg)
    return replace(fit_spec, genes=method.genes, n_genes=0)


def fingerprint_of(features: NDArray[np.float32], rows: NDArray[np.intp]) -> str:
    """What recognises a slide again, whatever its name: a hash of its image features, rounded, spots in any order.

    The features may lie on disk; the rows of the slide are read in parts.
    """
    last = np.concatenate([block[:, : -SORTED_BY - 1 : -1] for block in _rounded(features, rows)])
    return content_hash(_rounded(features, rows[np.lexsort(last.T)]))[:16]


def _rounded(features: NDArray[np.float32], rows: NDArray[np.intp]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(rows), HASHED_ROWS):
        yield np.round(np.asarray(features[rows[start : start + HASHED_ROWS]], dtype=np.float64), 3) + 0.0


def completed(spots: Spots) -> Spots:
    """The spots with the zeros of their target filled by a model of these spots alone; see :func:`stcontrast.pp.complete`."""
    if not spots.has_counts:
        return spots
    from stcontrast.pp._completion import Completer

    rows = np.flatnonzero(spots.measured)
    measured = (spots.observed[rows], spots.slide[rows], spots.xy[rows])
    target = spots.observed.copy()
    target[rows] = Completer().fit(*measured).complete(*measured)
    return replace(spots, target=target)

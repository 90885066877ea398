"""Scores of the out-of-fold predictions of one fold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pandas as pd

from stcontrast._data import log_normalize
from stcontrast._slides import rows_by_slide
from stcontrast.metrics import (
    calibration_error,
    correlation_ceiling,
    gene_correlation,
    gene_rank_correlation,
    moran_difference,
    retrieval_recall,
    rmse,
    variance_ratio,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from stcontrast._data import Spots
    from stcontrast.tl.cross_validation._fits import OutOfFold

__all__ = ["CEILING", "CLASSES", "SCORES", "score_fold"]

CEILING: Final = "ceiling"
SCORES: Final = ("method", "donor", "slide", "gene", "metric", "value")
CLASSES: Final = ("method", "donor", "true", "predicted", "confidence")
K_NEAREST: Final = 10

type Row = tuple[str, str, str, str, str, float]


class _Slide(NamedTuple):
    """Measured spots of a slide, among the held-out spots, and what was measured of the genes to score."""

    donor: str
    name: str
    rows: NDArray[np.intp]
    observed: NDArray[np.float32]
    ceiling: NDArray[np.float64]
    xy: NDArray[np.float64]


def score_fold(
    spots: Spots, test_rows: NDArray[np.intp], genes: Sequence[str], predicted: Mapping[str, OutOfFold]
) -> tuple[list[Row], list[pd.DataFrame]]:
    """Score all methods on the held-out spots of a fold.

    Parameters
    ----------
    spots
        All spots.
    test_rows
        Held-out spots.
    genes
        Genes to score, chosen on the training spots.
    predicted
        Predictions of the held-out spots, by row of the comparison.

    Returns
    -------
    Scores, with values of the columns :data:`SCORES`; the method :data:`CEILING` is the best that counting noise allows.
    And tables of annotated spots with the columns :data:`CLASSES`, by method and donor.
    """
    scored = [gene for gene in spots.genes if gene in set(genes)]
    slides = list(_measured_slides(spots, test_rows, scored))
    rows: list[Row] = []
    tables: list[pd.DataFrame] = []
    for slide in slides:
        rows += _rows(CEILING, slide, scored, {"pearson": slide.ceiling})
    for name, out_of_fold in predicted.items():
        for score in (_score_expression, _score_embedding):
            for slide in slides:
                rows += score(name, slide, scored, out_of_fold)
        for donor, table, values in _score_classes(spots, test_rows, out_of_fold):
            rows += [(name, donor, "", "", metric, value) for metric, value in values.items()]
            tables.append(table.assign(method=name, donor=donor)[list(CLASSES)])
    return rows, tables


def _measured_slides(spots: Spots, test_rows: NDArray[np.intp], genes: Sequence[str]) -> Iterator[_Slide]:
    position = {gene: i for i, gene in enumerate(spots.genes)}
    columns = [position[gene] for gene in genes]
    for here in rows_by_slide(spots.slide[test_rows], np.flatnonzero(spots.measured[test_rows])):
        rows = test_rows[here]
        counts, depth = spots.counts[rows][:, columns], spots.depth[rows]
        yield _Slide(
            donor=str(spots.donor[rows[0]]),
            name=spots.slides[spots.slide[rows[0]]],
            rows=here,
            observed=log_normalize(counts, depth),
            ceiling=correlation_ceiling(counts, depth),
            xy=spots.xy[rows],
        )


def _rows(
    method: str, slide: _Slide, genes: Sequence[str], values: Mapping[str, Sequence[float] | NDArray[np.float64]]
) -> Iterator[Row]:
    for metric, of_genes in values.items():
        for gene, value in zip(genes, of_genes, strict=True):
            yield method, slide.donor, slide.name, gene, metric, float(value)


def _score_expression(name: str, slide: _Slide, genes: Sequence[str], out_of_fold: OutOfFold) -> Iterator[Row]:
    """Scores of each gene, and of its interval."""
    if out_of_fold.expression is None:
        return
    position = {gene: i for i, gene in enumerate(out_of_fold.genes)}
    scored = [i for i, gene in enumerate(genes) if gene in position]
    columns = [position[genes[i]] for i in scored]
    predicted, observed = out_of_fold.expression[slide.rows][:, columns], slide.observed[:, scored]
    values = {
        "pearson": gene_correlation(predicted, observed),
        "spearman": gene_rank_correlation(predicted, observed),
        "rmse": rmse(predicted, observed),
        "variance_ratio": variance_ratio(predicted, observed),
        "moran_difference": moran_difference(predicted, observed, slide.xy),
    }
    if out_of_fold.half_width is not None:
        half_width = out_of_fold.half_width[columns]
        lower, upper = np.maximum(predicted - half_width, 0.0), predicted + half_width
        values["coverage"] = ((lower <= observed) & (observed <= upper)).mean(axis=0)
        values["interval_width"] = (upper - lower).mean(axis=0, dtype=np.float64)
    yield from _rows(name, slide, [genes[i] for i in scored], values)


def _score_embedding(name: str, slide: _Slide, _: Sequence[str], out_of_fold: OutOfFold) -> Iterator[Row]:
    """How often a spot's own genes are among the ten of its slide that are nearest to its image."""
    image, gene = out_of_fold.image, out_of_fold.gene
    if image is None or gene is None:
        return
    one_slide = np.zeros(len(slide.rows), dtype=np.int64)
    found = retrieval_recall(image[slide.rows], gene[slide.rows], one_slide, k=K_NEAREST)
    values = {"recall_at_10": found["recall"].to_numpy(), "recall_chance": found["chance"].to_numpy()}
    yield from _rows(name, slide, [""], values)


def _score_classes(
    spots: Spots, test_rows: NDArray[np.intp], out_of_fold: OutOfFold
) -> Iterator[tuple[str, pd.DataFrame, dict[str, float]]]:
    """Each donor with annotated spots, true and predicted classes of these, and scores."""
    if out_of_fold.proba is None:
        return
    from sklearn.metrics import f1_score

    label, donors = spots.label[test_rows], spots.donor[test_rows]
    known = label >= 0
    names = np.array([*spots.classes, ""], dtype=np.str_)[label]
    position = {value: code for code, value in enumerate(out_of_fold.classes)}
    for donor in np.unique(donors[known]):
        here = (donors == donor) & known
        truth, proba = names[here], out_of_fold.proba[here]
        guess = np.array(out_of_fold.classes, dtype=str)[proba.argmax(axis=1)]
        codes = np.array([position.get(value, -1) for value in truth], dtype=np.int64)
        recall = [(guess[truth == value] == value).mean() for value in np.unique(truth)]
        table = pd.DataFrame({"true": truth, "predicted": guess, "confidence": proba.max(axis=1)})
        yield (
            str(donor),
            table,
            {
                "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0.0)),
                "balanced_accuracy": float(np.mean(recall)),
                "calibration_error": float(calibration_error(proba, codes)),
            },
        )

"""What is known of a held-out fold, and the scores of a prediction against it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.metrics import f1_score

from stcontrast._data.genes import log_normalize
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
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from scipy import sparse

    from stcontrast._data.spots import Spots
    from stcontrast.tl.cross_validation._result import CrossValidation

__all__ = ["CEILING", "HeldOut"]

CEILING = "ceiling"


class _Slide(NamedTuple):
    where: tuple[str, str]
    rows: NDArray[np.intp]
    observed: NDArray[np.float32]
    counts: sparse.csr_matrix
    depth: NDArray[np.float64]
    xy: NDArray[np.float64]


class HeldOut:
    """The measurement of held-out spots, made once for all methods.

    Parameters
    ----------
    inputs
        All spots.
    rows
        Those held out.
    genes
        Genes to score, chosen on the training spots.
    """

    def __init__(self, inputs: Spots, rows: NDArray[np.intp], genes: Sequence[str]) -> None:
        self.inputs = inputs
        self.rows = rows
        self.genes = [gene for gene in inputs.genes if gene in set(genes)]
        position = {gene: i for i, gene in enumerate(inputs.genes)}
        columns = [position[gene] for gene in self.genes]
        self.slides: list[_Slide] = []
        for code in np.unique(inputs.slide[rows[inputs.measured[rows]]]):
            here = np.flatnonzero((inputs.slide[rows] == code) & inputs.measured[rows])
            spots = rows[here]
            counts, depth = inputs.counts[spots][:, columns], inputs.depth[spots]
            where = (str(inputs.donor[spots[0]]), inputs.slides[code])
            self.slides.append(_Slide(where, here, log_normalize(counts, depth), counts, depth, inputs.xy[spots]))

    def score_ceiling(self, result: CrossValidation) -> None:
        """Add the best correlation that counting noise allows, as a row of its own."""
        for slide in self.slides:
            ceiling = correlation_ceiling(slide.counts, slide.depth)
            result.add(CEILING, slide.where, "pearson", self.genes, ceiling)

    def score_expression(
        self,
        result: CrossValidation,
        name: str,
        genes: Sequence[str],
        expression: NDArray[np.float32],
        *,
        half_width: NDArray[np.float32] | None = None,
    ) -> None:
        """Add the scores of a prediction (n_rows, n_genes) of these genes, gene by gene and slide by slide.

        With half the width of every gene's interval (n_genes,) those of the intervals too.
        """
        position = {gene: i for i, gene in enumerate(genes)}
        scored = [i for i, gene in enumerate(self.genes) if gene in position]
        columns = [position[self.genes[i]] for i in scored]
        names = [self.genes[i] for i in scored]
        for slide in self.slides:
            predicted, observed = expression[slide.rows][:, columns], slide.observed[:, scored]
            for metric, function in (
                ("pearson", gene_correlation),
                ("spearman", gene_rank_correlation),
                ("rmse", rmse),
                ("variance_ratio", variance_ratio),
            ):
                result.add(name, slide.where, metric, names, function(predicted, observed))
            result.add(name, slide.where, "moran_difference", names, moran_difference(predicted, observed, slide.xy))
            if half_width is not None:
                half = half_width[columns]
                lower, upper = np.maximum(predicted - half, 0.0), predicted + half
                result.add(
                    name, slide.where, "coverage", names, ((lower <= observed) & (observed <= upper)).mean(axis=0)
                )
                result.add(name, slide.where, "interval_width", names, (upper - lower).mean(axis=0, dtype=np.float64))

    def score_embedding(
        self, result: CrossValidation, name: str, image: NDArray[np.float32], gene: NDArray[np.float32]
    ) -> None:
        """Add how often a spot's own genes are found by its image (n_rows, k), among the ten nearest of its slide."""
        for slide in self.slides:
            found = retrieval_recall(
                image[slide.rows], gene[slide.rows], np.zeros(len(slide.rows), dtype=np.int64), k=10
            )
            for metric, column in (("recall_at_10", "recall"), ("recall_chance", "chance")):
                result.add(name, slide.where, metric, [""], found[column].to_numpy())

    def score_classes(
        self, result: CrossValidation, name: str, classes: Sequence[str], proba: NDArray[np.float32]
    ) -> None:
        """Add the scores of class probabilities (n_rows, n_classes), donor by donor."""
        label, donors = self.inputs.label[self.rows], self.inputs.donor[self.rows]
        known = label >= 0
        truth = np.array([*self.inputs.classes, ""], dtype=np.str_)[label]
        position = {value: code for code, value in enumerate(classes)}
        for donor in np.unique(donors[known]):
            here = (donors == donor) & known
            of_true = truth[here]
            guess = np.array(classes, dtype=str)[proba[here].argmax(axis=1)]
            codes = np.array([position.get(value, -1) for value in of_true], dtype=np.int64)
            recall = [(guess[of_true == value] == value).mean() for value in np.unique(of_true)]
            values = {
                "macro_f1": f1_score(of_true, guess, average="macro", zero_division=0.0),
                "balanced_accuracy": float(np.mean(recall)),
                "calibration_error": calibration_error(proba[here], codes),
            }
            for metric, value in values.items():
                result.add(name, (str(donor), ""), metric, [""], np.array([value]))
            result.keep_classes(name, str(donor), of_true, guess, proba[here].max(axis=1))

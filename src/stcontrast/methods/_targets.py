"""What methods learn: targets and labels made of training spots, once for all that learn from them. Pure functions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
from sklearn.utils.extmath import randomized_svd

from stcontrast.methods._linear import LinearClassifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stcontrast._data.folds import Fold
    from stcontrast._data.spots import Spots

__all__ = ["completed", "denoised", "pseudo_labels", "self_training_helps", "with_pseudo_labels"]

N_ROUNDS: Final = 5
# with fewer spots to label there is nothing to gain
LEAST_SHARE: Final = 0.1


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


def denoised(spots: Spots, n_components: int) -> Spots:
    """The spots with their target made of its first principal components, those of these spots alone.

    Expression is centred within the slide and every gene scaled to unit deviation. What the genes have in common is
    what an image can tell; the rest is mostly counting noise.

    Parameters
    ----------
    spots
        Training spots.
    n_components
        How many components; 0 leaves the target as it is.
    """
    if not (n_components and spots.has_counts):
        return spots
    rows = np.flatnonzero(spots.measured)
    _, of_slide = spots.slide_means()
    centered = (spots.target - of_slide)[rows].astype(np.float64)
    scale = centered.std(axis=0)
    scaled = centered / np.where(scale > 0, scale, 1.0)
    left, values, right = randomized_svd(scaled, min(n_components, *scaled.shape), random_state=0)
    low_rank = (left * values) @ right
    target = spots.target.copy()
    target[rows] = (low_rank * scale + of_slide[rows]).astype(np.float32)
    return replace(spots, target=target)


def with_pseudo_labels(spots: Spots) -> Spots:
    """The spots with a label each; see :func:`pseudo_labels`."""
    return replace(spots, label=pseudo_labels(spots))


def pseudo_labels(spots: Spots) -> NDArray[np.int64]:
    """Class indices of all spots (n_spots,): those given, and for the others the prediction of a classifier.

    Discriminant analysis learns from the annotated spots, labels the others, and learns from all, five times over. The
    given labels never change; where none are given, none are made.

    References
    ----------
    Scudder 1965 (self-training).
    """
    if not spots.has_labels:
        return spots.label
    label = spots.label
    for _ in range(N_ROUNDS):
        classifier = LinearClassifier("discriminant").fit(spots.design, replace(spots, label=label))
        guess = classifier.predict_proba(spots.design).argmax(axis=1)
        label = np.where(spots.label >= 0, spots.label, guess).astype(np.int64)
    return label


def self_training_helps(spots: Spots, folds: Sequence[Fold]) -> bool:
    """Whether labels of held-out groups are more likely when the other groups' unlabelled spots are labelled first.

    Parameters
    ----------
    spots
        All training spots.
    folds
        Inner folds.
    """
    if (spots.label < 0).mean() < LEAST_SHARE:
        return False
    gain = 0.0
    for fold in folds:
        train, rows = fold.training, fold.held_out[spots.label[fold.held_out] >= 0]
        if len(rows) == 0 or not train.has_labels:
            continue
        scores = []
        for label in (train.label, pseudo_labels(train)):
            classifier = LinearClassifier("discriminant").fit(train.design, replace(train, label=label))
            given = classifier.predict_proba(fold.spots.design[rows])[np.arange(len(rows)), spots.label[rows]]
            scores.append(np.log(np.maximum(given, 1e-3)).sum())
        gain += scores[1] - scores[0]
    return bool(gain > 0)

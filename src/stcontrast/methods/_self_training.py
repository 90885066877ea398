"""Labels for spots that nobody annotated, from those that somebody did."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast.methods._linear import LinearClassifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stcontrast._data.spots import Fold, TrainingData

__all__ = ["pseudo_labels", "self_training_helps"]

N_ROUNDS: Final = 5
# with fewer spots to label there is nothing to gain
LEAST_SHARE: Final = 0.1


def pseudo_labels(data: TrainingData) -> NDArray[np.int64]:
    """Class codes of all spots (n_spots,): those given, and for the others what a classifier says of their image.

    Discriminant analysis learns from the annotated spots, labels the others, and learns from all, five times over. The
    labels given are never changed; where none are given, none are made up.

    References
    ----------
    Scudder 1965 (self-training).
    """
    if not data.has_labels:
        return data.label
    label = data.label
    for _ in range(N_ROUNDS):
        classifier = LinearClassifier("discriminant").fit(data.design, replace(data, label=label))
        guess = classifier.predict_proba(data.design).argmax(axis=1)
        label = np.where(data.label >= 0, data.label, guess).astype(np.int64)
    return label


def self_training_helps(data: TrainingData, folds: Sequence[Fold]) -> bool:
    """Whether labels of held-out groups are more likely when the other groups' spots without one are labelled first.

    Parameters
    ----------
    data
        All training spots.
    folds
        Inner folds.
    """
    if (data.label < 0).mean() < LEAST_SHARE:
        return False
    gain = []
    for fold in folds:
        here = data.in_fold(fold)
        train, rows = here.take(fold.train), fold.held_out[data.label[fold.held_out] >= 0]
        if len(rows) == 0 or not train.has_labels:
            continue
        scores = []
        for label in (train.label, pseudo_labels(train)):
            classifier = LinearClassifier("discriminant").fit(train.design, replace(train, label=label))
            given = classifier.predict_proba(here.design[rows])[np.arange(len(rows)), data.label[rows]]
            scores.append(np.log(np.maximum(given, 1e-3)).sum())
        gain.append(scores[1] - scores[0])
    return bool(sum(gain) > 0)

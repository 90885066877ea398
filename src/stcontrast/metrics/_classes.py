"""Scores of subtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["calibration_bins", "calibration_error"]


def calibration_bins(confidence: NDArray[np.float64], right: NDArray[np.bool_], *, n_bins: int = 10) -> pd.DataFrame:
    """Mean confidence, accuracy and number of spots of every bin of confidence that has spots: a reliability diagram.

    Parameters
    ----------
    confidence
        Probability of the predicted class (n_spots,).
    right
        Whether the predicted class is the true one (n_spots,).
    n_bins
        Number of bins, of equal width.

    Returns
    -------
    A row for every bin, with the columns confidence, accuracy, n_spots.
    """
    import pandas as pd

    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    spots = pd.DataFrame({"confidence": confidence, "accuracy": right.astype(np.float64)}).groupby(bins)
    return spots.mean().assign(n_spots=spots.size())


def calibration_error(proba: NDArray[np.float32], label: NDArray[np.int64], *, n_bins: int = 10) -> float:
    """Expected calibration error: the difference between confidence and accuracy.

    Parameters
    ----------
    proba
        Probability of every class (n_spots, n_classes).
    label
        True class (n_spots,); -1 is a class that the model does not know, for which every prediction is wrong.
    n_bins
        Number of bins of confidence, of equal width.

    Returns
    -------
    Mean over spots of the absolute difference between accuracy and mean confidence of their bin, 0 to 1.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> stc.metrics.calibration_error(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]))
    0.4

    References
    ----------
    Guo et al. 2017 (On calibration of modern neural networks).
    """
    confidence = np.asarray(proba, dtype=np.float64).max(axis=1)
    right = np.asarray(proba).argmax(axis=1) == label
    bins = calibration_bins(confidence, right, n_bins=n_bins)
    share = bins["n_spots"] / len(confidence)
    return round(float((share * (bins["accuracy"] - bins["confidence"]).abs()).sum()), 12)

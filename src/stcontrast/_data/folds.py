"""Inner folds: donors held out in turn, or slides, or blocks of the only slide. Never single spots."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.model_selection import GroupKFold

from stcontrast._data.spots import Fold

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data.spots import TrainingData

__all__ = ["Folds", "inner_folds"]

logger = logging.getLogger(__name__)

N_BLOCKS: Final = 4


class Folds(NamedTuple):
    """Inner folds, and what was held out: "donor", "slide" or "block"."""

    folds: list[Fold]
    unit: str


def inner_folds(data: TrainingData, *, max_folds: int = 4) -> Folds:
    """Hold out groups of training spots in turn, the largest unit that there are two of.

    Parameters
    ----------
    data
        Training spots. Groups are formed over spots with counts, or over annotated spots where nothing has counts.
    max_folds
        Groups are joined into this many folds at most.

    Returns
    -------
    The folds. Held-out rows are disjoint; together they are all spots that were eligible. All other spots are in
    training, save those of the held-out donors (slides, blocks) themselves.

    Raises
    ------
    ValueError
        If there are fewer than two spots to learn from.
    """
    eligible = data.measured if data.measured.any() else data.label >= 0
    rows = np.flatnonzero(eligible)
    if len(rows) < 2:
        msg = f"{len(rows)} spots with counts or labels are too few to learn from: none could be held out."
        raise ValueError(msg)
    unit, group = _groups(data, rows)
    n_folds = min(max_folds, len(np.unique(group[rows])))
    if unit == "block":
        logger.warning(
            "Only one slide to learn from: choices and intervals rest on held-out blocks of that slide, "
            "and say nothing about another donor."
        )
    folds = []
    for _, test in GroupKFold(n_splits=n_folds).split(rows, groups=group[rows]):
        held_out = rows[test]
        folds.append(Fold(np.flatnonzero(~np.isin(group, group[held_out])), held_out))
    return Folds(folds, unit)


def _groups(data: TrainingData, rows: NDArray[np.intp]) -> tuple[str, NDArray[np.int64]]:
    """The unit, and the group of every spot, eligible or not; groups are formed over `rows`."""
    for unit, codes in (("donor", data.donor), ("slide", data.slide)):
        if len(np.unique(codes[rows])) > 1:
            return unit, codes
    n_blocks = min(N_BLOCKS, len(np.unique(data.xy[rows], axis=0)))
    if n_blocks < 2:
        msg = "All spots to learn from lie at one place: no block could be held out."
        raise ValueError(msg)
    blocks = KMeans(n_blocks, n_init=4, random_state=0).fit(data.xy[rows])
    # spots of other slides belong to no block of this one
    here = data.slide == data.slide[rows[0]]
    group = np.full(len(data.slide), -1, dtype=np.int64)
    group[here] = blocks.predict(data.xy[here])
    return "block", group

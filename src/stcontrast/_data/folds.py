"""Inner folds: donors held out in turn, or slides, or blocks of the only slide. Never single spots."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from stcontrast._data.spots import Spots

__all__ = ["Fold", "inner_folds"]

logger = logging.getLogger(__name__)

N_BLOCKS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One fold: all spots as it sees them, and which of them it learns from.

    Attributes
    ----------
    spots
        All spots. Where an encoder was fine-tuned without the held-out rows, their features and design are its own;
        targets of the training rows are made without the held-out rows.
    train, held_out
        Rows to learn from and rows held out, each in ascending order.
    unit
        What is held out: ``"donor"``, ``"slide"`` or ``"block"``.
    """

    spots: Spots
    train: NDArray[np.intp]
    held_out: NDArray[np.intp]
    unit: str

    @property
    def has_counts(self) -> bool:
        """Whether any spot to learn from has counts."""
        return bool(self.spots.measured[self.train].any())

    @property
    def has_labels(self) -> bool:
        """Whether any spot to learn from is annotated."""
        return bool((self.spots.label[self.train] >= 0).any())

    @property
    def training(self) -> Spots:
        """The spots to learn from, without counts of a held-out donor on the gene side either."""
        train = self.spots.take(self.train)
        return train.without_donors(self.spots.donor[self.held_out]) if self.unit == "donor" else train

    def unseen(self, *, depth: bool = False) -> Spots:
        """The held-out spots, without anything that was measured; see :meth:`Spots.unseen`."""
        return self.spots.take(self.held_out).unseen(depth=depth)

    def with_targets(self, make: Callable[[Spots], Spots]) -> Self:
        """The fold with targets and labels of its training rows as `make` gives them, from these rows alone."""
        made = make(self.training)
        target, label = self.spots.target.copy(), self.spots.label.copy()
        target[self.train], label[self.train] = made.target, made.label
        return replace(self, spots=replace(self.spots, target=target, label=label))


def inner_folds(spots: Spots, *, of: Literal["counts", "labels"] = "counts", max_folds: int = 4) -> list[Fold]:
    """Hold out groups of training spots in turn, the largest unit that there are two of.

    Parameters
    ----------
    spots
        Training spots.
    of
        Spots that groups are formed over and that are held out: those with counts (annotated ones where nothing has
        counts), or the annotated ones.
    max_folds
        Groups are joined into this many folds at most.

    Returns
    -------
    The folds. Held-out rows are disjoint; together they are all spots that were eligible. All other spots are in
    training, except those of the held-out donors (slides, blocks) themselves.

    Raises
    ------
    ValueError
        If there are fewer than two spots to learn from, or all at one place.
    """
    from sklearn.model_selection import GroupKFold

    eligible = spots.measured if of == "counts" and spots.has_counts else spots.label >= 0
    rows = np.flatnonzero(eligible)
    if len(rows) < 2:
        msg = f"{len(rows)} spots with counts or labels are too few to learn from: no part of them can be held out to choose parameters."
        raise ValueError(msg)
    unit, group = _groups(spots, rows)
    n_folds = min(max_folds, len(np.unique(group[rows])))
    if unit == "block":
        logger.warning(
            "Only one slide to learn from: parameters and intervals are chosen on held-out parts of that slide, "
            "and say nothing about another donor."
        )
    folds = []
    for _, test in GroupKFold(n_splits=n_folds).split(rows, groups=group[rows]):
        held_out = rows[test]
        train = np.flatnonzero(~np.isin(group, group[held_out]))
        folds.append(Fold(spots=spots, train=train, held_out=held_out, unit=unit))
    return folds


def _groups(spots: Spots, rows: NDArray[np.intp]) -> tuple[str, NDArray[np.int64]]:
    """The unit, and the group of every spot, eligible or not; groups are formed over `rows`."""
    from sklearn.cluster import KMeans

    donor = np.unique(spots.donor, return_inverse=True)[1].astype(np.int64)
    for unit, codes in (("donor", donor), ("slide", spots.slide)):
        if len(np.unique(codes[rows])) > 1:
            return unit, codes
    n_blocks = min(N_BLOCKS, len(np.unique(spots.xy[rows], axis=0)))
    if n_blocks < 2:
        msg = "All spots to learn from lie at one place (check `obsm['spatial']` or the shapes): no part of the slide can be held out."
        raise ValueError(msg)
    blocks = KMeans(n_blocks, n_init=4, random_state=0).fit(spots.xy[rows])
    # spots of other slides belong to no block of this one
    here = spots.slide == spots.slide[rows[0]]
    group = np.full(len(spots), -1, dtype=np.int64)
    group[here] = blocks.predict(spots.xy[here])
    return "block", group

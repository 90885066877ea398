"""Validation sets of whole slides or donors, never of single spots."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

__all__ = ["Split", "hold_out_groups"]

logger = logging.getLogger(__name__)


class Split(NamedTuple):
    """Rows to train on, rows to validate on, and the groups the latter consist of."""

    train: np.ndarray[Any, Any]
    validation: np.ndarray[Any, Any]
    held_out: list[str]


def hold_out_groups(groups: pd.Series[Any], held_out: int | Sequence[str], *, seed: int) -> Split:
    """Split rows so that every group lies wholly in one of the two sets.

    Parameters
    ----------
    groups
        Group (slide, donor) of each row.
    held_out
        Names of the groups to validate on, or their number, drawn at random; 0 for none. A single group cannot be
        split: all rows are then trained on, and a message says so.
    seed
        Seed of the draw.

    Returns
    -------
    Split
        Row numbers of both sets, and the names of the groups held out.

    Raises
    ------
    ValueError
        If a named group is not there, or none would be left to train on.
    """
    codes, categories = groups.astype(str).factorize(sort=True)
    names = [str(name) for name in categories]
    if isinstance(held_out, str):
        held_out = [held_out]
    if isinstance(held_out, int):
        if held_out and len(names) == 1:
            logger.info(
                "All %d spots are of one group (%s): trained on all, none to validate on.", len(codes), names[0]
            )
            held_out = 0
        _check_number(held_out, len(names), groups.name)
        chosen = np.random.default_rng(seed).choice(len(names), size=held_out, replace=False)
    else:
        wanted = [str(name) for name in held_out]
        if absent := [name for name in wanted if name not in names]:
            msg = f"groups {absent} are not in {groups.name!r}, which has {names}."
            raise ValueError(msg)
        _check_number(len(set(wanted)), len(names), groups.name)
        chosen = np.array([names.index(name) for name in wanted])
    in_validation = np.isin(codes, chosen)
    return Split(
        np.flatnonzero(~in_validation), np.flatnonzero(in_validation), [names[code] for code in np.unique(chosen)]
    )


def _check_number(n_held_out: int, n_groups: int, key: Any) -> None:
    if not 0 <= n_held_out < n_groups:
        msg = (
            f"cannot hold out {n_held_out} of the {n_groups} groups of {key!r}: at least one must be left to train on."
        )
        raise ValueError(msg)

"""How long the fits of a cross-validation will still take."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stcontrast.tl.cross_validation._fits import Fit

__all__ = ["Pace"]


class Pace:
    """The time that fits took, by method, and what it says of those that are left.

    Methods differ a thousandfold: the share of fits that are done says nothing about the time that is left.

    Parameters
    ----------
    fits
        The fits to do.
    n_processes
        How many are done at once.
    """

    def __init__(self, fits: Sequence[Fit], n_processes: int) -> None:
        self._left = list(fits)
        self._n_processes = n_processes
        self._begun: dict[Fit, float] = {}
        self._took: dict[str, list[float]] = {}

    def begin(self, fit: Fit) -> None:
        """Note that a fit begins, also if it does so again."""
        # an iterable that is drawn from runs in a thread of joblib: a dict and a list take one step at a time
        self._begun[fit] = time.monotonic()

    def end(self, fit: Fit) -> float:
        """Note that a fit has ended; the seconds that it took."""
        seconds = time.monotonic() - self._begun.pop(fit)
        self._left.remove(fit)
        self._took.setdefault(fit.name, []).append(seconds)
        return seconds

    def running(self) -> str:
        """What is being fitted, in words."""
        names = [f"{fit.name} without {', '.join(fit.donors)}" for fit in list(self._begun)]
        return "; ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")

    def remaining(self) -> float | None:
        """Seconds that are left; `None` as long as a method that is still to be fitted never was."""
        if any(fit.name not in self._took for fit in self._left):
            return None
        now, begun = time.monotonic(), dict(self._begun)
        of_fit = [
            max(float(np.median(self._took[fit.name])) - (now - begun.get(fit, now)), 0.0) for fit in list(self._left)
        ]
        # the longest one is not shared by processes
        return max(sum(of_fit) / self._n_processes, max(of_fit, default=0.0))

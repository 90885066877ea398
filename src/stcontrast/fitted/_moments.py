"""Mean and spread of the image features on the training slides: what a part of a slide is recognised by."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Self

import numpy as np

from stcontrast._state import Learns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stcontrast._data import SlideMoments

__all__ = ["StandardizeBy", "TrainingMoments"]

logger = logging.getLogger(__name__)

type StandardizeBy = Literal["slide", "training"]
"""Whose moments standardise the image features of a new slide: its own, or those of the training slides."""

# fewer spots than this say little of the mean and deviation of a slide
FEW_SPOTS: Final = 20
# of the least spread among the training slides
SMALL_SPREAD: Final = 0.6
LEAST_RATIO: Final = 1e-3


class TrainingMoments(Learns):
    """Moments of the design before it is standardised; all training slides count alike.

    Attributes
    ----------
    mean, deviation
        Mean over slides of the slides' means, and root mean square of their deviations (n_design,).
    least
        Spread of the training slide that spreads least, in units of `deviation`; parts of slides left out.
    """

    learnt: ClassVar[tuple[str, ...]] = ("mean", "deviation", "least")

    def __init__(self) -> None:
        self.mean = self.deviation = np.zeros(0, dtype=np.float64)
        self.least = 1.0

    def fit(self, found: Sequence[SlideMoments], *, n_features: int) -> Self:
        """Learn from the moments of the design of each training slide, features first."""
        self.mean = np.mean([part.mean for part in found], axis=0)
        self.deviation = np.sqrt(np.mean([part.squares / part.n for part in found], axis=0))
        spreads = [self.spread_of(np.sqrt(part.squares[:n_features] / part.n)) for part in found]
        # a training slide that is itself a part says nothing of how little a whole one spreads
        whole = [spread for spread in spreads if spread >= SMALL_SPREAD * np.median(spreads)]
        self.least = float(min(1.0, *whole))
        return self

    def standardized(self, design: NDArray[np.float32]) -> NDArray[np.float32]:
        """A design (n_spots, n_design) by the moments of the training slides."""
        flat = self.deviation <= 1e-6 * np.maximum(np.abs(self.mean), 1e-12)
        scaled = (design - self.mean) / np.where(flat, 1.0, self.deviation)
        scaled[:, flat] = 0.0
        return scaled.astype(np.float32)

    def spread_of(self, deviation: NDArray[np.floating]) -> float:
        """How far features spread, in units of the training slides: geometric mean over the features (n_features,)."""
        reference = self.deviation[: len(deviation)]
        known = reference > 0
        ratio = deviation[known] / reference[known]
        return float(np.exp(np.log(np.maximum(ratio, LEAST_RATIO)).mean())) if known.any() else 1.0

    def warn_of_part(self, name: str, n_spots: int, deviation: NDArray[np.floating]) -> None:
        """Say at WARNING that a slide is small, or seems to be a part of one.

        Parameters
        ----------
        name
            Name of the slide.
        n_spots, deviation
            Its spots, and the deviations of their features (n_features,).
        """
        spread = self.spread_of(deviation)
        if n_spots < FEW_SPOTS:
            seen = f"has {n_spots} spot{'' if n_spots == 1 else 's'}"
        elif spread < SMALL_SPREAD * self.least:
            seen = f"has image features that spread {spread:.2f} times as far as on a training slide (at least {self.least:.2f})"
        else:
            return
        logger.warning(
            "Slide %s %s: is it only a part of a slide, a single tissue, or an image of another kind? Image features are "
            "standardised within the slide, so they depend on all spots that you give, and predictions for this slide are not "
            "reliable. Give the whole slide and select spots afterwards; or predict with `standardize='training'`.", name, seen,
        )  # fmt: skip

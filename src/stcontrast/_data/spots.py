"""What a method learns from and what it gives back: plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

__all__ = ["Fold", "Held", "TrainingData", "View"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a method may see of spots that it predicts.

    Attributes
    ----------
    design
        Image features of each spot, standardised (n_spots, n_design).
    slide
        Code of its slide (n_spots,).
    xy
        Its centre (n_spots, 2), comparable within a slide.
    depth
        Counts of each spot over all its genes (n_spots,), for an oracle alone; `None` for everyone else.
    """

    design: NDArray[np.float32]
    slide: NDArray[np.int64]
    xy: NDArray[np.float64]
    depth: NDArray[np.float64] | None = None

    def take(self, rows: NDArray[np.intp]) -> Self:
        """The same for some of the spots."""
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: part[rows] for name, part in parts.items() if _is_rows(part)})


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows to train on and rows held out, each in ascending order.

    Attributes
    ----------
    train, held_out
        The rows.
    features, design
        Image features (n_spots, n_features) and design (n_spots, n_design) of all spots in this fold, where the encoder
        was trained without the held-out rows; `None` where the encoder is the same in every fold.
    """

    train: NDArray[np.intp]
    held_out: NDArray[np.intp]
    features: NDArray[np.float32] | None = None
    design: NDArray[np.float32] | None = None


def _is_rows(part: Any) -> bool:
    return isinstance(part, np.ndarray) or sparse.issparse(part)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData(View):
    """Training spots of all slides, one under another: what is seen of them, and what is known.

    Attributes
    ----------
    donor, batch
        Codes of donor and batch (n_spots,).
    counts
        Raw counts of the modelled genes (n_spots, n_genes); empty rows where a spot is not measured.
    target
        What is learnt (n_spots, n_genes): log(1 + counts per 10 000), perhaps completed.
    observed
        log(1 + counts per 10 000) as measured (n_spots, n_genes): what predictions are scored against.
    measured
        Whether a spot has counts (n_spots,).
    label
        Class codes (n_spots,), -1 where a spot is not annotated.
    n_classes
        Number of classes.
    complete
        Whether `target` is to be completed: zeros filled by a model of the other genes and spots.
    n_components
        Principal components that `target` is to be made of, to take the counting noise out of it; 0 leaves it alone.
    self_training
        Whether spots without a label are to get one from a classifier of the others.
    """

    donor: NDArray[np.int64]
    batch: NDArray[np.int64]
    counts: sparse.csr_matrix
    target: NDArray[np.float32]
    observed: NDArray[np.float32]
    measured: NDArray[np.bool_]
    label: NDArray[np.int64]
    n_classes: int
    complete: bool = False
    n_components: int = 0
    self_training: bool = False

    def view(self, rows: NDArray[np.intp], *, oracle: bool = False) -> View:
        """What a method may see of some of the spots when it predicts them."""
        depth = self.depth[rows] if oracle and self.depth is not None else None
        return View(design=self.design[rows], slide=self.slide[rows], xy=self.xy[rows], depth=depth)

    def in_fold(self, fold: Fold) -> Self:
        """All spots as they look in a fold, whose encoder has perhaps not seen the rows held out."""
        return self if fold.design is None else replace(self, design=fold.design)

    def held_out(self, fold: Fold, *, oracle: bool = False) -> View:
        """What a method may see of a fold's held-out spots when it predicts them."""
        return self.in_fold(fold).view(fold.held_out, oracle=oracle)

    @property
    def n_genes(self) -> int:
        """Number of modelled genes."""
        return self.target.shape[1]

    @property
    def has_labels(self) -> bool:
        """Whether any spot is annotated."""
        return bool((self.label >= 0).any())

    def training(self, fold: Fold, *, with_held_out: bool = False) -> Self:
        """What may be learnt from in a fold.

        Parameters
        ----------
        fold
            The fold.
        with_held_out
            Whether its held-out spots are there too, in their place, with target and label as they were given.
        """
        here = self.in_fold(fold)
        train = here.take(fold.train).completed().prepared()
        if not with_held_out:
            return train
        rows = np.union1d(fold.train, fold.held_out)
        both = here.take(rows)
        target, label, place = both.observed.copy(), both.label.copy(), np.searchsorted(rows, fold.train)
        target[place], label[place] = train.target, train.label
        return replace(both, target=target, label=label)

    def completed(self) -> Self:
        """With the target completed, if it is to be, by a model of these spots alone."""
        if not (self.complete and self.measured.any()):
            return self
        from stcontrast.pp._completion import Completer

        rows = np.flatnonzero(self.measured)
        spots = (self.observed[rows], self.slide[rows], self.xy[rows])
        target = self.observed.copy()
        target[rows] = Completer().fit(*spots).complete(*spots)
        return replace(self, target=target)

    def prepared(self) -> Self:
        """As it is learnt from: its target denoised and its spots without a label labelled, if they are to be."""
        from stcontrast.methods._self_training import pseudo_labels

        denoised = self.denoised()
        return replace(denoised, label=pseudo_labels(denoised)) if self.self_training else denoised

    def denoised(self) -> Self:
        """With the target made of its first principal components, if it is to be, those of these spots alone.

        Expression is centred within the slide and every gene scaled to unit deviation. What the genes have in common is
        what an image can tell; the rest is mostly counting noise.
        """
        if not (self.n_components and self.measured.any()):
            return self
        rows = np.flatnonzero(self.measured)
        _, of_slide = self.slide_means()
        centered = (self.target - of_slide)[rows].astype(np.float64)
        scale = centered.std(axis=0)
        scaled = centered / np.where(scale > 0, scale, 1.0)
        left, values, right = randomized_svd(scaled, min(self.n_components, *scaled.shape), random_state=0)
        low_rank = (left * values) @ right
        target = self.target.copy()
        target[rows] = (low_rank * scale + of_slide[rows]).astype(np.float32)
        return replace(self, target=target)

    def spread(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values of the measured spots (n_measured, k) over all spots (n_spots, k), NaN in the others."""
        spread = np.full((len(self.measured), values.shape[1]), np.nan, dtype=np.float32)
        spread[self.measured] = values
        return spread

    def level_target(self) -> NDArray[np.float32]:
        """Target with every slide brought to the mean over slides (n_spots, n_genes), for spots with counts."""
        mean, of_spot = self.slide_means()
        return self.target - of_spot + mean

    def slide_means(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean expression of every gene over its slides (n_genes,), and of its own slide for every spot.

        Slides count alike, whatever their size. Rows of spots without counts are zero.
        """
        of_spot = np.zeros_like(self.target)
        means = []
        for code in np.unique(self.slide[self.measured]):
            rows = np.flatnonzero((self.slide == code) & self.measured)
            means.append(self.target[rows].mean(axis=0))
            of_spot[rows] = means[-1]
        return np.mean(means, axis=0, dtype=np.float32), of_spot


@dataclass(slots=True)
class Held:
    """Predictions for spots while their group was held out; NaN where there is none.

    Attributes
    ----------
    expression
        (n_spots, n_genes), in the units of the target.
    proba
        (n_spots, n_classes).
    """

    expression: NDArray[np.float32]
    proba: NDArray[np.float32]

    @classmethod
    def empty(cls, data: TrainingData) -> Self:
        """Nothing held out yet."""
        n = len(data.design)
        return cls(
            np.full((n, data.n_genes), np.nan, dtype=np.float32), np.full((n, data.n_classes), np.nan, dtype=np.float32)
        )

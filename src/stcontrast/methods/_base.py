"""What every method offers, and the list of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Final

from stcontrast._data.spots import Held
from stcontrast._progress import progress
from stcontrast._settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from stcontrast._data.folds import Folds
    from stcontrast._data.spots import TrainingData, View
    from stcontrast.methods._retrieval import Neighbors

__all__ = ["METHODS", "Method", "get_method"]


class Method(ABC):
    """A recipe that learns from training spots and predicts from images alone.

    A subclass sets `name` and gives `fit_parts`, `predict_expression`, `predict_proba`, `save_parts` and `load_parts`;
    holding out, calibration and writing are shared. Setting `name` registers it.

    Parameters
    ----------
    seed
        Seed of whatever is random in it.
    """

    name: ClassVar[str] = ""
    reference: ClassVar[str] = ""
    n_neighbors: ClassVar[int] = 18
    """Neighbours whose image features (their mean and extremes) it is shown beside a spot's own, unless the user says otherwise."""
    uses_color: ClassVar[bool] = False
    """Whether it looks at plain colour statistics instead of the image features."""
    slow: ClassVar[bool] = False
    """Whether a fit takes long enough to show how far it is."""
    spotwise: ClassVar[bool] = False
    """Whether it predicts a spot from its own row of the design alone, so that a slide can be predicted in parts."""
    oracle: ClassVar[bool] = False
    """Whether it looks at the measured depth of the spots that it predicts; it is a yardstick then, not a prediction."""

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.name:
            METHODS[cls.name] = cls

    @classmethod
    def option_names(cls) -> set[str]:
        """Options that it takes beside the seed."""
        return set(signature(cls.__init__).parameters) - {"self", "seed"}

    @property
    def hyper(self) -> dict[str, Any]:
        """Arguments that make the same method again, as plain values."""
        return {"seed": self.seed}

    def fit(self, data: TrainingData, folds: Folds) -> Held:
        """Learn from all training spots.

        Parameters
        ----------
        data
            Training spots.
        folds
            Inner folds over donors or slides, to make choices on and to calibrate with.

        Returns
        -------
        Predictions of every spot while its group was held out.
        """
        held = self.hold_out(data, folds)
        self.fit_parts(data.prepared())
        return held

    def hold_out(self, data: TrainingData, folds: Folds) -> Held:
        """Predict every spot from a fit without its group."""
        held = Held.empty(data)
        bar = progress(folds.folds, description=f"held-out {folds.unit}s", unit="fit") if self.slow else folds.folds
        for fold in bar:
            part = type(self)(**self.hyper)
            train = data.training(fold)
            with settings.override(progress=False):
                part.fit_parts(train)
            view = data.held_out(fold, oracle=self.oracle)
            if train.measured.any():
                held.expression[fold.held_out] = part.predict_expression(view)
            if train.has_labels:
                held.proba[fold.held_out] = part.predict_proba(view)
        return held

    @abstractmethod
    def fit_parts(self, data: TrainingData) -> None:
        """Learn once, from these spots."""

    @abstractmethod
    def predict_expression(self, view: View) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""

    @abstractmethod
    def predict_proba(self, view: View) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""

    def neighbors(self, view: View) -> Neighbors:
        """Training spots, rows among those with counts, that a prediction of expression is made of.

        Raises
        ------
        ValueError
            If the method does not retrieve.
        """
        del view
        msg = f"The method {self.name!r} predicts by no training spots in particular: it has no neighbours to show."
        raise ValueError(msg)

    def embed(self, data: TrainingData) -> dict[str, NDArray[np.float32]]:
        """Embeddings of the training spots by slot of `obsm`, (n_spots, k); none by default."""
        del data
        return {}

    @abstractmethod
    def save_parts(self, folder: Path) -> None:
        """Write what was learnt."""

    @abstractmethod
    def load_parts(self, folder: Path) -> None:
        """Read what `save_parts` wrote."""


METHODS: Final[dict[str, type[Method]]] = {}


def get_method(name: str, *, seed: int = 0, options: Mapping[str, Any] | None = None) -> Method:
    """A fresh method by name.

    Raises
    ------
    ValueError
        If there is no such method or option; the message lists those that are there.
    """
    if name not in METHODS:
        msg = f"Unknown method {name!r}. Valid options are {sorted(METHODS)}."
        raise ValueError(msg)
    method = METHODS[name]
    given = dict(options or {})
    known = method.option_names()
    unknown = sorted(set(given) - known)
    if unknown:
        msg = f"Unknown options {unknown} of the method {name!r}. Valid options are {sorted(known)}."
        raise ValueError(msg)
    return method(seed=int(seed), **given)

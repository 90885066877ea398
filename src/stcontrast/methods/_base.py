"""What every method offers, and the list of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np

from stcontrast._data import Prediction
from stcontrast._progress import stage
from stcontrast._state import Learns
from stcontrast.methods._over_folds import over_folds
from stcontrast.metrics import mean_slide_correlation

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from stcontrast._data import Fold, Spots
    from stcontrast.methods._retrieval import Neighbors

__all__ = ["METHODS", "ChosenOnFolds", "Method", "get_method"]


class Method(Learns, ABC):
    """How to learn from training spots and predict from images alone.

    A subclass sets `name`, names in `learnt` the attributes that fitting sets, and gives `fit_parts`,
    `predict_expression` and `predict_proba`; holding out, calibration and writing are shared. Setting `name` registers
    it.

    Parameters
    ----------
    seed
        Seed of whatever is random in it.
    """

    name: ClassVar[str] = ""
    reference: ClassVar[str] = ""
    n_neighbors: ClassVar[int] = 18
    """Neighbours whose image features (their mean and extremes) are added to a spot's own, unless the user says otherwise."""
    uses_color: ClassVar[bool] = False
    """Whether it looks at plain colour statistics instead of the image features."""
    spotwise: ClassVar[bool] = False
    """Whether it predicts a spot from its own row of the design alone, so that a slide can be predicted in parts."""
    learns_from_gene_side: ClassVar[bool] = False
    """Whether spots with counts and no image teach it; see `Spots.gene_side`."""
    held: ClassVar[tuple[float, float]] = (7.5, 7.5)
    """Copies of the image features and of the expression (float32) of its training spots that a fit holds at once.
    Measured (`benchmarks/scale.py`); it decides how many fits run at once."""
    trains_tower: ClassVar[bool] = False
    """Whether its own loss can train an image encoder. Its network then looks at a spot's own crop, has no regression, and
    keeps nothing from one step to the next."""
    oracle: ClassVar[bool] = False
    """Whether it uses the measured depth of the spots that it predicts; it is a yardstick then, not a prediction."""

    uses_features: bool = False
    """Whether it looks at `features` too, and not at `design` alone; else the spots that it is given do not have them."""
    brought: str = ""
    """Hash of a trained part that it was given, if there is one; see the two below."""
    genes: Sequence[str] | None = None
    """Genes that it models, where such a part fixes them."""
    batches_seen: Collection[str] = ()
    """Names of the batches that such a part was trained on."""

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.name:
            METHODS[cls.name] = cls

    @classmethod
    def option_names(cls) -> set[str]:
        """Its options, without the seed."""
        return set(signature(cls.__init__).parameters) - {"self", "seed"}

    @property
    def spec(self) -> dict[str, Any]:
        """Arguments that make the same method again, as plain values."""
        return {name: getattr(self, name) for name in sorted(self.option_names())} | {"seed": self.seed}

    def fit(self, spots: Spots, folds: Sequence[Fold]) -> Prediction:
        """Learn from all training spots.

        Parameters
        ----------
        spots
            Training spots.
        folds
            Inner folds over donors or slides, to make choices on and to calibrate with.

        Returns
        -------
        Out-of-fold predictions: of every spot by a fit without its group.
        """
        found = self.predict_out_of_fold(spots, folds)
        self.fit_parts(spots)
        return found

    def predict_out_of_fold(self, spots: Spots, folds: Sequence[Fold]) -> Prediction:
        """Predict every spot by a fit without its group."""
        found = Prediction.empty(len(spots), n_genes=spots.n_genes, n_classes=spots.n_classes)
        of_folds = over_folds(partial(_predict_held_out, type(self), self.spec), folds)
        for fold, (expression, proba) in zip(folds, of_folds, strict=True):
            if expression is not None:
                found.expression[fold.held_out] = expression
            if proba is not None:
                found.proba[fold.held_out] = proba
        return found

    @abstractmethod
    def fit_parts(self, spots: Spots) -> None:
        """Learn once, from these spots."""

    @abstractmethod
    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""

    @abstractmethod
    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""

    def neighbors(self, spots: Spots) -> Neighbors:
        """Training spots, rows among those with counts, that a prediction of expression is made of.

        Raises
        ------
        ValueError
            If the method does not retrieve.
        """
        del spots
        msg = f"The method {self.name!r} does not predict from single training spots, so it has no neighbours to show."
        raise ValueError(msg)

    def embed(self, spots: Spots) -> dict[str, NDArray[np.float32]]:
        """Embeddings of spots by slot of `obsm`, (n_spots, k); none by default.

        Spots without counts have those of the image side alone.
        """
        del spots
        return {}

    def search(
        self, image: NDArray[np.float32], *, k: int, by: Literal["image", "gene"]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Training spots whose embedding is nearest to these image embeddings.

        Parameters
        ----------
        image
            Image side of the joint embedding (n_queries, d), as :meth:`embed` makes it.
        k
            How many; all, where fewer were kept.
        by
            Compare with the ``"image"`` or the ``"gene"`` embedding of the training spots.

        Returns
        -------
        Rows among the training spots with counts (n_queries, k), most similar first; and the cosines.

        Raises
        ------
        ValueError
            If the method keeps no embedding of its training spots.
        """
        del image, k, by
        msg = f"The method {self.name!r} keeps no joint embedding of its training spots: there is nothing to search."
        raise ValueError(msg)

    def seen_among(self, spots: Spots) -> list[str]:
        """Donors, batches and slides of these spots that a part which the method brings was trained on."""
        here = {*spots.donor.tolist(), *spots.batch.tolist(), *spots.slides}
        return sorted(here.intersection(self.batches_seen))

    def summary(self) -> dict[str, Any]:
        """What the model's spec says of the fit, as plain values; nothing by default."""
        return {}

    def losses(self) -> dict[str, pd.DataFrame]:
        """What its last training logged, by the name of the network: a row for every epoch; nothing by default."""
        return {}


class ChosenOnFolds(Method):
    """A method with one number for expression, and perhaps one for subtypes, that inner folds choose.

    A subclass names the attributes in `choices` and the values to try in `grid`. What is fitted does not depend on them,
    the predictions do.
    """

    grid: ClassVar[tuple[float, ...]] = ()
    """Values to try; where nothing can be scored, the method keeps its own."""
    choices: ClassVar[tuple[str, ...]] = ()
    """Attribute that expression depends on; and that which subtypes depend on, if there is one."""

    def fit(self, spots: Spots, folds: Sequence[Fold]) -> Prediction:
        """Choose on the inner folds, then fit on all training spots."""
        parts = over_folds(partial(_fit_choosing, type(self), self.spec), folds)
        found = Prediction.empty(len(spots), n_genes=spots.n_genes, n_classes=spots.n_classes)
        with_counts = [i for i, fold in enumerate(folds) if fold.has_counts]
        with_labels = [i for i, fold in enumerate(folds) if fold.has_labels]
        of_expression, *of_classes = self.choices
        best = -np.inf
        for value in self.grid if with_counts else ():
            tried = np.full_like(found.expression, np.nan)
            for i in with_counts:
                setattr(parts[i], of_expression, value)
                tried[folds[i].held_out] = parts[i].predict_expression(folds[i].unseen(depth=self.oracle))
            score = mean_slide_correlation(tried, spots.observed, spots.slide)
            if score > best:
                best, found.expression = score, tried
                setattr(self, of_expression, value)
        best = -np.inf
        for value in self.grid if of_classes else self.grid[:1]:
            tried = np.full_like(found.proba, np.nan)
            for i in with_labels:
                for name in of_classes:
                    setattr(parts[i], name, value)
                tried[folds[i].held_out] = parts[i].predict_proba(folds[i].unseen(depth=self.oracle))
            rows = np.flatnonzero(np.isfinite(tried).all(axis=1) & (spots.label >= 0))
            score = self.class_score(tried[rows], spots.label[rows]) if of_classes and len(rows) else 0.0
            if score > best:
                best, found.proba = score, tried
                for name in of_classes if len(rows) else ():
                    setattr(self, name, value)
        self.fit_parts(spots)
        return found

    def class_score(self, proba: NDArray[np.float32], label: NDArray[np.int64]) -> float:
        """How well probabilities (n_spots, n_classes) fit the labels (n_spots,): the mean log-likelihood by default."""
        return float(np.log(proba[np.arange(len(label)), label]).mean())


def _fit_part[M: Method](method: type[M], spec: Mapping[str, Any], fold: Fold) -> M:
    """The method, fitted on a fold's training spots."""
    part = method(**spec)
    part.fit_parts(fold.training)
    return part


def _fit_choosing[M: ChosenOnFolds](method: type[M], spec: Mapping[str, Any], fold: Fold) -> M:
    with stage(f"method {method.name}"):
        return _fit_part(method, spec, fold)


def _predict_held_out(
    method: type[Method], spec: Mapping[str, Any], fold: Fold
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Expression and probabilities of a fold's held-out spots, each where there is anything to learn it from."""
    part, unseen = _fit_part(method, spec, fold), fold.unseen(depth=method.oracle)
    return (
        part.predict_expression(unseen) if fold.has_counts else None,
        part.predict_proba(unseen) if fold.has_labels else None,
    )


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

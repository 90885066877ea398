"""The model of somebody else as a row: expression is read from the image features, nothing is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stcontrast._arguments import FLAG, NAMES, checked
from stcontrast._state import fitted
from stcontrast.methods._base import Method
from stcontrast.methods.baselines._mean import class_frequency

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stcontrast._data import Spots

__all__ = ["Given"]


class Given(Method):
    """Expression that another model predicted, kept in a slot of `obsm`, with genes matched by name.

    A gene that the other model lacks gets the mean of the training slides; subtypes get the frequency of the classes.

    Parameters
    ----------
    columns
        Genes of the columns of the slot. With several slots in `use_rep`, those of the last one.
    rescale
        Bring every gene to the mean and deviation of its measurement over the training spots: other models predict in
        other units. It changes no correlation. Otherwise expression is taken as it is.
    seed
        Not used: nothing is random.
    """

    name: ClassVar[str] = "given"
    n_neighbors: ClassVar[int] = 0
    uses_features: bool = True
    spotwise: ClassVar[bool] = True
    reference: ClassVar[str] = "Predictions of another model"
    learnt: ClassVar[tuple[str, ...]] = ("arrays",)

    @checked(columns=NAMES, rescale=FLAG)
    def __init__(self, *, columns: Sequence[str] | None = None, rescale: bool = True, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.columns = None if columns is None else [str(name) for name in columns]
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
            msg = f"`columns` must name every gene once, found {twice[:5]} more than once. Keep one column of each."
            raise ValueError(msg)
        self.rescale = rescale
        self.arrays: dict[str, NDArray[Any]] = {}

    def fit_parts(self, spots: Spots) -> None:
        """Find the column of every gene, and take means and deviations of the training spots."""
        columns = self._columns_of(spots)
        self.arrays = {}
        if spots.has_labels:
            self.arrays["frequency"] = class_frequency(spots).astype(np.float32)
        if not spots.has_counts:
            return
        place = {name: i for i, name in enumerate(columns)}
        gene = np.array([i for i, name in enumerate(spots.genes) if name in place], dtype=np.int64)
        if not len(gene):
            msg = (
                f"The method 'given' has none of the {spots.n_genes} modelled genes among its {len(columns)} columns: "
                f"{columns[:3]} are not {list(spots.genes[:3])}. Name the columns as in the table's `var_names`."
            )
            raise ValueError(msg)
        column = np.array([place[spots.genes[i]] for i in gene], dtype=np.int64)
        scale, shift = np.ones(len(gene), dtype=np.float32), np.zeros(len(gene), dtype=np.float32)
        if self.rescale:
            given = self._given(spots)[spots.measured][:, column]
            observed = spots.observed[spots.measured][:, gene]
            # (a constant column has no scale: it stays constant, at the mean)
            spread = given.std(axis=0)
            scale = np.divide(observed.std(axis=0), spread, out=np.zeros_like(scale), where=spread > 0)
            shift = observed.mean(axis=0) - scale * given.mean(axis=0)
        self.arrays |= {
            "expression": spots.slide_means()[0], "gene": gene, "column": column, "scale": scale, "shift": shift,
        }  # fmt: skip

    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """What the other model predicted (n_spots, n_genes); the training mean of genes that it lacks."""
        mean, a = fitted(self.arrays.get("expression"), needs="counts"), self.arrays
        found = np.tile(mean, (len(spots), 1)).astype(np.float32)
        found[:, a["gene"]] = self._given(spots)[:, a["column"]] * a["scale"] + a["shift"]
        return found

    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """The class frequencies for every spot (n_spots, n_classes)."""
        return np.tile(fitted(self.arrays.get("frequency"), needs="labels"), (len(spots), 1))

    def _columns_of(self, spots: Spots) -> list[str]:
        """Names of the columns.

        Raises
        ------
        ValueError
            If none were given, or not as many as the slot has columns.
        """
        width = spots.blocks[-1] if spots.blocks else spots.features.shape[1]
        if self.columns is None:
            msg = (
                "The method 'given' needs the genes of the columns: options={'columns': [...]}, and `use_rep` names the "
                "slot of `obsm` that holds the predictions."
            )
            raise ValueError(msg)
        if len(self.columns) != width:
            msg = (
                f"The method 'given' has {len(self.columns)} `columns`, and the slot of predictions has {width}. Name the "
                "gene of every column, and name the slot in `use_rep` (the last one, if there are several)."
            )
            raise ValueError(msg)
        return self.columns

    def _given(self, spots: Spots) -> NDArray[np.float32]:
        return spots.features[:, spots.features.shape[1] - len(self.columns or ()) :]

"""Counts of the spots of several tables, one under another, without a look at where the spots lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy import sparse

from stcontrast._data.genes import choose_genes
from stcontrast._data.inputs import stacked_column, stacked_labels
from stcontrast._reading.counts import raw_counts, shared_genes
from stcontrast._reading.resolve import slide_of_row, table_region_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["CountedSpots"]

# the column of batches where every slide is one
SLIDE: Final = "slide"


@dataclass(frozen=True, slots=True)
class CountedSpots:
    """All spots of all tables, to learn a gene latent from.

    Attributes
    ----------
    genes, counts
        Genes and their raw counts (n_spots, n_genes), empty rows where a spot is not measured.
    total
        Depth over the full library (n_spots,).
    slide, batch
        Slide and batch of each spot (n_spots,).
    label
        Annotation (n_spots,), `None` where there is none.
    group
        What is held out as a whole (n_spots,), if anything is.
    keys
        Columns of `obs` that were named.
    slide_column
        What the column of slides is called in what is trained on: as in the tables, where they agree on it.
    """

    genes: list[str]
    counts: sparse.csr_matrix
    total: NDArray[np.float64]
    slide: NDArray[np.int64]
    batch: NDArray[np.str_]
    label: NDArray[Any]
    group: NDArray[np.str_] | None
    keys: dict[str, str]
    slide_column: str

    @property
    def measured(self) -> NDArray[np.bool_]:
        """Whether a spot has counts (n_spots,)."""
        return self.total > 0

    @classmethod
    def of(
        cls,
        tables: Sequence[AnnData],
        *,
        layer: str | None,
        library_key: str | None,
        batch_key: str | None,
        label_key: str | None,
        validation_key: str | None,
    ) -> CountedSpots:
        """Gather them; everything that is named is checked."""
        if batch_key is not None and batch_key == label_key:
            msg = f"`batch_key` and `label_key` are both {batch_key!r}: the latent cannot be blind to what guides it."
            raise ValueError(msg)
        slides = [slide_of_row(table, library_key=library_key) for table in tables]
        if batch_key is None:
            _check_slide_names(slides)
        slide = np.unique(
            np.concatenate([[f"{i}/{name}" for name in names] for i, names in enumerate(slides)]), return_inverse=True
        )[1]
        batch = np.concatenate(slides) if batch_key is None else stacked_column(tables, batch_key, "batch_key")
        group = None if validation_key is None else stacked_column(tables, validation_key, "validation_key")
        label = stacked_labels(tables, label_key)
        genes = shared_genes(tables)
        parts, depths = [], []
        for table in tables:
            full = sparse.csr_matrix((table.n_obs, 0)) if table.n_vars == 0 else raw_counts(table, layer)
            depths.append(np.asarray(full.sum(axis=1), dtype=np.float64).ravel())
            empty = sparse.csr_matrix((table.n_obs, len(genes)), dtype=np.float32)
            parts.append(full[:, table.var_names.get_indexer(genes)] if table.n_vars else empty)
        total = np.concatenate(depths)
        if not (total > 0).any():
            msg = "Nothing to learn from: no spot has any counts. Name the layer that holds raw counts with `layer`."
            raise ValueError(msg)
        if label_key is not None and all(value is None for value in label[total > 0]):
            msg = f"`label_key`: column {label_key!r} is empty in all spots with counts."
            raise ValueError(msg)
        counts = sparse.csr_matrix(sparse.vstack(parts, format="csr"))
        named = {"batch_key": batch_key, "label_key": label_key, "validation_key": validation_key}
        keys = {name: key for name, key in named.items() if key is not None}
        taken = {keys.get("batch_key", SLIDE): batch, keys.get("validation_key"): group}
        slide_column = _slide_column(tables, library_key)
        while slide_column in taken and not _same_partition(slide, taken[slide_column]):
            slide_column += "_"
        return cls(genes, counts, total, slide, batch, label, group, keys, slide_column)

    def of_genes(self, genes: Sequence[str]) -> CountedSpots:
        """The same spots with these genes."""
        wanted = [genes] if isinstance(genes, str) else list(dict.fromkeys(genes))
        columns = pd.Index(self.genes).get_indexer(pd.Index(wanted, dtype=object))
        absent = [gene for gene, column in zip(wanted, columns, strict=True) if column < 0]
        if absent or not wanted:
            msg = f"{len(absent)} of `genes` are absent from the counts: {absent[:5]}. They begin {self.genes[:5]}."
            raise KeyError(msg)
        return self._with_columns(columns)

    def of_variable_genes(self, n_genes: int) -> CountedSpots:
        """The same spots with the most variable of the well-expressed genes."""
        rows = np.flatnonzero(self.measured)
        columns = choose_genes(self.counts[rows], self.total[rows], self.slide[rows], n_genes=n_genes)
        if len(columns) == 0:
            msg = "No gene is seen in 10 % of the spots: name the genes to model with `genes`."
            raise ValueError(msg)
        return self._with_columns(columns)

    def to_train_on(self) -> AnnData:
        """An object of its own with the spots that have counts: scvi-tools writes into what it is trained on."""
        from anndata import AnnData

        rows = np.flatnonzero(self.measured)
        columns = {self.batch_column: pd.Categorical(self.batch[rows])}
        if self.group is not None:
            columns[self.keys["validation_key"]] = pd.Categorical(self.group[rows])
        columns.setdefault(self.slide_column, pd.Categorical(self.slide[rows].astype(str)))
        obs = pd.DataFrame(columns, index=[str(row) for row in rows])
        return AnnData(self.counts[rows], obs=obs, var=pd.DataFrame(index=self.genes))

    @property
    def batch_column(self) -> str:
        """Name of the column of batches."""
        return self.keys.get("batch_key", SLIDE)

    def _with_columns(self, columns: NDArray[np.intp]) -> CountedSpots:
        return replace(self, genes=[self.genes[i] for i in columns], counts=self.counts[:, columns])


def _slide_column(tables: Sequence[AnnData], library_key: str | None) -> str:
    """Name of the tables' column of slides, with which a model that was trained on them finds it again."""
    names = {table_region_keys(table)[1] if "spatialdata_attrs" in table.uns else library_key for table in tables}
    name = names.pop()
    return SLIDE if names or name is None else name


def _same_partition(slide: NDArray[np.int64], other: NDArray[np.str_] | None) -> bool:
    pairs = pd.DataFrame({"slide": slide, "other": other}).drop_duplicates()
    return bool(pairs["slide"].is_unique and pairs["other"].is_unique)


def _check_slide_names(slides: Sequence[NDArray[np.str_]]) -> None:
    names = [name for of_table in slides for name in dict.fromkeys(of_table.tolist())]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = (
            f"Slides share a name: {twice}, and every slide is to be a batch. Name the batches with `batch_key`, or "
            "the slides of an AnnData object with `library_key`."
        )
        raise ValueError(msg)

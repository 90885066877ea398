"""The gene latent of tables: the model that encodes them, and the spots to learn it from."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast._data import stack_tables, stacked_column
from stcontrast._genespace import VaeSpace
from stcontrast._reading import raw_counts, slide_of_row, table_region_keys
from stcontrast._training import seeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from stcontrast._data import Spots
    from stcontrast._models.batch_vae import BatchAgnosticVAE
    from stcontrast.fitted import Predictor

__all__ = ["LABEL", "GeneEncoder", "gather_counts", "training_data", "with_columns"]

# columns of what is trained on, where the user names none
SLIDE: Final = "slide"
LABEL: Final = "label"


class GeneEncoder:
    """What encodes the counts of tables.

    Parameters
    ----------
    model
        The model that the user gave or that was trained.
    vae
        The autoencoder in it.
    genes, classes
        Names of its genes, and of the classes that guided it.
    """

    def __init__(
        self, model: BatchAgnosticVAE | Predictor, vae: BatchAgnosticVAE, genes: list[str], classes: list[str]
    ) -> None:
        self.model, self.vae, self.genes, self.classes = model, vae, genes, classes

    @property
    def n_latent(self) -> int:
        """Dimensions of the latent."""
        return int(self.vae.module.n_latent)

    @property
    def layer(self) -> str | None:
        """Layer that the model was set up with, `None` for `X`."""
        layer: str | None = self.vae.registry_["setup_args"]["layer"]
        return layer

    @classmethod
    def of(cls, model: BatchAgnosticVAE | Predictor | str | os.PathLike[str]) -> GeneEncoder:
        """That of a trained model, or of the folder of one."""
        from stcontrast._models.batch_vae import BatchAgnosticVAE
        from stcontrast.fitted import Predictor

        if isinstance(model, str | os.PathLike):
            model = _read(Path(model))
        if isinstance(model, BatchAgnosticVAE):
            if not model.is_trained:
                msg = "The model has not been trained: call `model.train()`, or leave out `model` to train one here."
                raise ValueError(msg)
            return cls(model, model, list(model.genes), [str(name) for name in model.classes])
        if not isinstance(model, Predictor):
            msg = (
                "`model` must be a BatchAgnosticVAE, what `stc.tl.fit` returned, or the folder of either; found "
                f"{type(model).__name__}."
            )
            raise TypeError(msg)
        latent = getattr(model.method, "latent", None)
        if not isinstance(latent, VaeSpace) or latent.vae is None:
            msg = (
                f'The model of the method {model.spec["method"]!r} has no gene latent: it takes "tpirbae", or "stcontrast" '
                'with `options={"gene_space": "vae"}`, and counts to train on. Leave out `model` to train one here.'
            )
            raise ValueError(msg)
        return cls(model, latent.vae, list(model.genes), [str(name) for name in latent.vae.classes])

    def encode(
        self,
        tables: Sequence[AnnData],
        *,
        layer: str | None,
        library_key: str | None,
        fill_missing: bool,
        seed: int,
    ) -> list[NDArray[np.float32]]:
        """Latent of every table's spots (n_spots, n_latent), NaN where a spot has no counts.

        Raises
        ------
        KeyError
            If the layer, or the column that names the slides, is absent.
        ValueError
            If counts are not raw, or genes of the model are absent.
        """
        # all of them before the first is encoded: errors come before any work
        counts = [self._counts(table, layer=layer, fill_missing=fill_missing) for table in tables]
        slides = [
            None if self.vae.slide_key is None else slide_of_row(table, library_key=library_key) for table in tables
        ]
        return [
            self._latent(matrix, measured, slide, seed=seed)
            for (matrix, measured), slide in zip(counts, slides, strict=True)
        ]

    def _counts(self, table: AnnData, *, layer: str | None, fill_missing: bool) -> tuple[Any, NDArray[np.bool_]]:
        from stcontrast._models.batch_vae import align_genes

        if table.n_vars == 0:
            return None, np.zeros(table.n_obs, dtype=bool)
        full = raw_counts(table, None if layer == "X" else layer)
        aligned = align_genes(full, table.var_names, pd.Index(self.genes), fill_missing=fill_missing)
        return aligned, np.asarray(full.sum(axis=1)).ravel() > 0

    def _latent(
        self, counts: Any, measured: NDArray[np.bool_], slide: NDArray[np.str_] | None, *, seed: int
    ) -> NDArray[np.float32]:
        latent = np.full((len(measured), self.n_latent), np.nan, dtype=np.float32)
        if measured.any():
            # the posterior mean is not random, but scvi-tools draws a sample as well
            with seeded(seed):
                latent[measured] = self.vae.encode_counts(
                    counts[np.flatnonzero(measured)], slide=None if slide is None else slide[measured]
                )
        return latent


def _read(folder: Path) -> BatchAgnosticVAE | Predictor:
    from stcontrast._files import MODEL, holds_model
    from stcontrast._models.batch_vae import BatchAgnosticVAE
    from stcontrast.fitted import load

    if folder.is_file():
        msg = f"`model`: {str(folder)!r} is a file: name the folder that the model was saved to."
        raise NotADirectoryError(msg)
    if holds_model(folder):
        return load(folder)
    if not (folder / "model.pt").is_file():
        msg = f"No model in {str(folder)!r}: neither `{MODEL}` (stc.tl.fit) nor `model.pt` (BatchAgnosticVAE) is there."
        raise FileNotFoundError(msg)
    return BatchAgnosticVAE.load(folder)


def gather_counts(
    tables: Sequence[AnnData],
    *,
    layer: str | None,
    library_key: str | None,
    batch_key: str | None,
    label_key: str | None,
) -> Spots:
    """All spots of all tables, with counts, slide, batch and label; everything that is named is checked."""
    if batch_key is not None and batch_key == label_key:
        msg = f"`batch_key` and `label_key` are both {batch_key!r}: the latent cannot be independent of the column that guides it."
        raise ValueError(msg)
    slides = [slide_of_row(table, library_key=library_key) for table in tables]
    if batch_key is None:
        _check_slide_names(slides)
    named = np.concatenate([[f"{i}/{name}" for name in names] for i, names in enumerate(slides)])
    names, slide = np.unique(named, return_inverse=True)
    batch = np.concatenate(slides) if batch_key is None else stacked_column(tables, batch_key, "batch_key")
    nowhere = np.zeros((len(slide), 2))
    plain = [name.partition("/")[2] for name in names.tolist()]
    spots = stack_tables(tables, slide, nowhere, layer=layer, label_key=label_key, slides=plain, batch=batch)
    if not spots.has_counts:
        msg = "Nothing to learn from: no spot has any counts. Name the layer that holds raw counts with `layer`."
        raise ValueError(msg)
    if label_key is not None and not (spots.label[spots.measured] >= 0).any():
        msg = f"`label_key`: column {label_key!r} is empty in all spots with counts."
        raise ValueError(msg)
    return spots


def with_columns(spots: Spots, columns: NDArray[np.intp]) -> Spots:
    """The same spots with some of the genes."""
    return replace(spots, genes=[spots.genes[i] for i in columns], counts=spots.counts[:, columns])


def training_data(
    spots: Spots,
    tables: Sequence[AnnData],
    *,
    batch_key: str | None,
    validation_key: str | None,
    library_key: str | None,
) -> tuple[AnnData, list[str | None], str, str]:
    """An object of its own with the spots that have counts: scvi-tools writes into what it is trained on.

    Returns
    -------
    The object, its spots in an order that does not depend on the user's; their labels; and the names of its columns of
    batches and of slides. The latter is called as in the tables where they agree on it, so that a trained model finds it
    again.
    """
    from anndata import AnnData

    rows = spots.in_order(np.flatnonzero(spots.measured))
    batch_column = batch_key or SLIDE
    columns = {batch_column: spots.batch}
    if validation_key is not None:
        columns[validation_key] = stacked_column(tables, validation_key, "validation_key")
    slide_column = _slide_column(tables, library_key)
    while slide_column in columns and not _same_partition(spots.slide, columns[slide_column]):
        slide_column += "_"
    columns.setdefault(slide_column, spots.slide.astype(str))
    obs = pd.DataFrame(
        {name: pd.Categorical(values[rows]) for name, values in columns.items()}, index=[str(row) for row in rows]
    )
    adata = AnnData(spots.counts[rows], obs=obs, var=pd.DataFrame(index=pd.Index(list(spots.genes), dtype=object)))
    classes = [*spots.classes, None]
    return adata, [classes[i] for i in spots.label[rows]], batch_column, slide_column


def _slide_column(tables: Sequence[AnnData], library_key: str | None) -> str:
    """Name of the tables' column of slides, with which a model that was trained on them finds it again."""
    names = {table_region_keys(table)[1] if "spatialdata_attrs" in table.uns else library_key for table in tables}
    name = names.pop()
    return SLIDE if names or name is None else name


def _same_partition(slide: NDArray[np.int64], other: NDArray[np.str_]) -> bool:
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

"""Spots on disk as training data: minibatches through annbatch, whole donors held out, memory bounded."""

from __future__ import annotations

from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningDataModule
from pandas.api.types import union_categoricals
from scipy import sparse
from scvi import REGISTRY_KEYS

from stcontrast._models.batch_vae.counts import check_genes, first_few
from stcontrast._models.batch_vae.minibatches import SLIDE_KEY, EncoderView, SlideReference, with_codes
from stcontrast._models.batch_vae.model import BatchAgnosticVAE
from stcontrast._models.batch_vae.stores import anndatas, check_first_counts, common_genes, obs_column, opened
from stcontrast._reading import not_a_count, row_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["SpotsOnDisk"]


class SpotsOnDisk(LightningDataModule):
    """Spots in zarr stores, to train a :class:`~stcontrast.models.BatchAgnosticVAE` on more spots than fit in memory.

    Counts are read through annbatch, in chunks of neighbouring spots from random positions, and shuffled among the
    chunks in memory. Apart from them, about 100 bytes per spot are held. Needs the extra ``large``:
    ``pip install "stcontrast[large]"``.

    Parameters
    ----------
    stores
        Folders with one AnnData each, written by :meth:`anndata.AnnData.write_zarr`, or collections of
        ``annbatch.DatasetCollection``; one or several. All have the same genes in the same order, spots × genes, dense
        or CSR.
    layer
        Layer that holds the raw counts; ``None`` (default) for ``X``.
    batch_key
        Column of ``obs`` whose effect the latent space must not contain, usually the donor. ``None`` (default) for no
        batches.
    labels_key
        Column of ``obs`` with classes, for a model with ``class_weight``. ``None`` (default) for none.
    unlabeled_category
        Value of that column in spots without a class. ``None`` (default): every spot has a class, and the classes are
        registered but do not guide the latent.
    slide_key
        Column of ``obs`` that names the slide of a spot, as in
        :meth:`~stcontrast.models.BatchAgnosticVAE.setup_anndata`; all counts are then read once more. ``None``
        (default) for none.
    chunk_size
        Neighbouring spots that are read together, 256 by default. Fewer mix better and are slower to read.
    n_in_memory
        Spots that are read at once and shuffled, 16 384 by default. With the number of genes this sets the memory.

    Attributes
    ----------
    registry
        What :meth:`~stcontrast.models.BatchAgnosticVAE.setup_anndata` would register for these data in memory; for
        ``BatchAgnosticVAE(registry=...)``.
    n_obs
        Number of spots.
    n_vars
        Number of genes.
    train_idx
        Rows to train on, numbered through the stores in their order; set by
        :meth:`~stcontrast.models.BatchAgnosticVAE.train`.
    val_idx
        Rows to validate on.

    Raises
    ------
    ImportError
        If annbatch is not installed.
    FileNotFoundError
        If a store is missing.
    KeyError
        If a store lacks the layer or a column.
    ValueError
        If a store is no AnnData in zarr, the genes differ between stores, counts are stored by column, values are not
        raw counts, or a column has missing values.

    See Also
    --------
    stcontrast.models.BatchAgnosticVAE.train : Takes it as ``datamodule``.

    Notes
    -----
    :class:`scvi.dataloaders.AnnbatchDataModule` is not used: it validates on single spots, and its labels are not in
    the order that the guidance by classes needs. Training in several processes is not supported: each would read all
    spots.

    annbatch reads zarr and not HDF5 (``.h5ad``). It makes a shuffled collection of such files without loading them at
    once:
    ``annbatch.DatasetCollection("spots.zarr").add_adatas(["a.h5ad", "b.h5ad"], dataset_size="1GB")``.

    Examples
    --------
    >>> spots = SpotsOnDisk("spots.zarr", batch_key="donor")  # doctest: +SKIP
    >>> model = BatchAgnosticVAE(registry=spots.registry)  # doctest: +SKIP
    >>> model.train(datamodule=spots)  # doctest: +SKIP
    """

    def __init__(
        self,
        stores: str | PathLike[str] | Sequence[str | PathLike[str]],
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        unlabeled_category: str | None = None,
        slide_key: str | None = None,
        chunk_size: int = 256,
        n_in_memory: int = 16_384,
    ) -> None:
        super().__init__()
        _require_annbatch()
        if min(chunk_size, n_in_memory) < 1:
            msg = f"chunk_size is {chunk_size} and n_in_memory {n_in_memory}; both must be at least 1."
            raise ValueError(msg)
        paths = [stores] if isinstance(stores, str | PathLike) else stores
        self._layer = None if layer == "X" else layer
        self._stores = [opened(*named, self._layer) for path in paths for named in anndatas(Path(path))]
        if not self._stores:
            msg = "there are no stores; give at least one folder."
            raise ValueError(msg)
        self._chunk_size, self._n_in_memory = chunk_size, n_in_memory
        genes = common_genes(self._stores)
        self.n_obs, self.n_vars = sum(store.counts.shape[0] for store in self._stores), len(genes)
        batches = None if batch_key is None else self._column(batch_key, "batch_key")
        labels = None if labels_key is None else self._column(labels_key, "labels_key")
        slides = None if slide_key is None else self._column(slide_key, "slide_key")
        named = ((batch_key, batches), (labels_key, labels), (slide_key, slides))
        self.registry = _registry(
            genes,
            self.n_obs,
            {"batch_key": batch_key, "labels_key": labels_key, "slide_key": slide_key},
            {key: column.categories for key, column in named if column is not None},
            {"layer": self._layer, "unlabeled_category": unlabeled_category},
        )
        for store in self._stores:
            check_first_counts(store, self._layer)
        self._codes = {
            REGISTRY_KEYS.BATCH_KEY: self._registered_codes(REGISTRY_KEYS.BATCH_KEY, batches),
            REGISTRY_KEYS.LABELS_KEY: self._registered_codes(REGISTRY_KEYS.LABELS_KEY, labels),
        }
        if slides is not None:
            self._codes[SLIDE_KEY] = self._registered_codes(SLIDE_KEY, slides)
        self._references: dict[tuple[float, ...], SlideReference] = {}
        self.arrange(np.arange(self.n_obs), np.arange(0))

    @property
    def batch_codes(self) -> np.ndarray[Any, Any]:
        """Code of the batch of every spot, shape ``(n_obs,)``, as in the registry."""
        return self._codes[REGISTRY_KEYS.BATCH_KEY]

    def groups(self, key: str | None) -> pd.Series[Any]:
        """Group of every spot.

        Parameters
        ----------
        key
            Column of ``obs`` that names the groups; ``None`` for a single group of all spots.

        Returns
        -------
        pandas.Series
            Groups, categorical, length ``n_obs``, with the name of the column.

        Raises
        ------
        KeyError
            If a store lacks the column.
        ValueError
            If the column has missing values.
        """
        if key is None:
            return pd.Series(pd.Categorical(["all"]).repeat(self.n_obs), name="all spots")
        return pd.Series(self._column(key, "validation_key"), name=key)

    def arrange(
        self,
        train: np.ndarray[Any, Any],
        validation: np.ndarray[Any, Any],
        *,
        batch_size: int = 256,
        seed: int = 0,
        thin_to: Sequence[float] = (),
    ) -> None:
        """Choose the spots to train and validate on, and their minibatches.

        Parameters
        ----------
        train, validation
            Ascending row numbers, numbered through the stores in their order.
        batch_size
            Spots in a minibatch.
        seed
            Seed of the order of the training spots.
        thin_to
            Shares of the counts that the encoder gets in training, as in
            :meth:`~stcontrast.models.BatchAgnosticVAE.train`.
        """
        self.train_idx, self.val_idx, self.test_idx = train, validation, np.arange(0)
        self.n_train, self.n_val = len(train), len(validation)
        self._batch_size, self._seed, self._thin_to = batch_size, seed, tuple(thin_to)

    def check_registry(self, registry: dict[str, Any]) -> None:
        """Raise unless a model was made for such data.

        Parameters
        ----------
        registry
            Registry of the model.

        Raises
        ------
        ValueError
            If genes, batches or classes differ.
        """
        for what, field, entry in (
            ("genes", REGISTRY_KEYS.X_KEY, "column_names"),
            ("batches", REGISTRY_KEYS.BATCH_KEY, "categorical_mapping"),
            ("classes", REGISTRY_KEYS.LABELS_KEY, "categorical_mapping"),
        ):
            of_model, here = (
                list(registered["field_registries"][field]["state_registry"][entry])
                for registered in (registry, self.registry)
            )
            if of_model != here:
                msg = (
                    f"the model was made for other {what} than datamodule has: {first_few(of_model)} against "
                    f"{first_few(here)}. BatchAgnosticVAE(registry=datamodule.registry) makes a model for these data."
                )
                raise ValueError(msg)

    def train_dataloader(self) -> Any:
        """Minibatches of the training spots: tensors by name, in a new random order in each pass."""
        return self._minibatches(self.train_idx, np.random.default_rng(self._seed), self._thin_to)

    def val_dataloader(self) -> Any:
        """Minibatches of the held-out spots, in their order; empty without held-out spots."""
        return self._minibatches(self.val_idx, None, ()) if self.n_val else []

    def _reference(self, thin_to: tuple[float, ...]) -> SlideReference | None:
        if SLIDE_KEY not in self._codes:
            return None
        if thin_to not in self._references:
            codes = self._codes[SLIDE_KEY]
            blocks = (block for store in self._stores for block in row_blocks(store.counts))
            self._references[thin_to] = SlideReference.of(with_codes(blocks, codes), int(codes.max()) + 1, thin_to)
        return self._references[thin_to]

    def _minibatches(
        self, rows: np.ndarray[Any, Any], rng: np.random.Generator | None, thin_to: tuple[float, ...]
    ) -> _Minibatches:
        from annbatch import Loader

        from stcontrast._models.batch_vae.disk_sampler import ChosenRows

        sampler = ChosenRows(
            rows, batch_size=self._batch_size, chunk_size=self._chunk_size, n_in_memory=self._n_in_memory, rng=rng
        )
        loader = Loader(batch_sampler=sampler, preload_to_gpu=False, return_index=True)
        loader.add_datasets([store.counts for store in self._stores])
        view = EncoderView(self._reference(thin_to), thin_to)
        return _Minibatches(loader, self._codes, view, "X" if self._layer is None else f"layers[{self._layer!r}]")

    def _column(self, key: str, argument: str) -> pd.Categorical:
        """A column over all stores."""
        parts = [obs_column(store, key, argument) for store in self._stores]
        try:
            joined = union_categoricals(parts, sort_categories=True, ignore_order=True)
            return joined.remove_unused_categories()
        except TypeError as error:
            kinds = {store.name: str(part.categories.dtype) for store, part in zip(self._stores, parts, strict=True)}
            msg = f"obs[{key!r}] holds values of different types in different stores: {kinds}; write one type in all."
            raise ValueError(msg) from error

    def _registered_codes(self, field: str, column: pd.Categorical | None) -> np.ndarray[Any, Any]:
        if column is None:
            return np.zeros(self.n_obs, dtype=np.int8)
        mapping = self.registry["field_registries"][field]["state_registry"]["categorical_mapping"]
        return pd.Index(mapping).get_indexer(column.categories).astype(column.codes.dtype)[column.codes]


class _Minibatches:
    """Tensors under the names of scvi-tools, from what annbatch reads."""

    def __init__(self, loader: Any, codes: dict[str, np.ndarray[Any, Any]], view: EncoderView, where: str) -> None:
        self._loader, self._codes, self._view, self._where = loader, codes, view, where

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for read in self._loader:
            counts = read["X"]
            if (found := not_a_count(counts)) is not None:
                msg = f"{self._where} does not hold raw counts: it has {found}."
                raise ValueError(msg)
            dense = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
            tensors = {
                REGISTRY_KEYS.X_KEY: torch.from_numpy(dense.astype(np.float32, copy=False)),
                **{
                    name: torch.from_numpy(codes[read["index"]].astype(np.int64))[:, None]
                    for name, codes in self._codes.items()
                },
            }
            yield self._view.add(tensors)


def _require_annbatch() -> None:
    try:
        import annbatch  # noqa: F401
    except ImportError as error:
        msg = 'spots on disk are read by annbatch, which is not installed: pip install "stcontrast[large]"'
        raise ImportError(msg) from error


def _registry(
    genes: pd.Index,
    n_obs: int,
    keys: dict[str, str | None],
    categories: dict[str | None, pd.Index],
    setup_args: dict[str, str | None],
) -> dict[str, Any]:
    """Registry of an object in memory with these genes and categories, and with empty spots."""
    # scvi-tools warns of a category with fewer than three spots
    n_spots = 3 * max([1, *map(len, categories.values())])
    zeros = sparse.csr_matrix((n_spots, len(genes)), dtype=np.float32)
    # scvi-tools makes the registry itself, for a small object that has every category
    obs = pd.DataFrame(
        {key: pd.Categorical(np.resize(values.to_numpy(), n_spots), values) for key, values in categories.items()},
        index=[str(i) for i in range(n_spots)],
    )
    layer = setup_args["layer"]
    like = ad.AnnData(
        zeros, obs=obs, var=pd.DataFrame(index=genes.astype(str)), layers={} if layer is None else {layer: zeros}
    )
    check_genes(like)
    BatchAgnosticVAE.setup_anndata(like, **keys, **setup_args)
    manager = BatchAgnosticVAE._get_most_recent_anndata_manager(like, required=True)
    registry = deepcopy(manager.registry)
    BatchAgnosticVAE._setup_adata_manager_store.pop(manager.adata_uuid)
    counts = registry["field_registries"][REGISTRY_KEYS.X_KEY]
    counts["state_registry"]["n_obs"] = counts["summary_stats"]["n_cells"] = n_obs
    return registry

"""From counts to the latent, for spots of any donor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS

from stcontrast._models.batch_vae.counts import (
    RowsOnDisk,
    align_genes,
    check_counts,
    check_layer,
    counts_of,
    has_no_counts,
    rows_on_disk,
)
from stcontrast._models.batch_vae.minibatches import SlideReference, slide_codes, with_codes
from stcontrast._reading import not_a_count
from stcontrast._training import one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

__all__ = ["EncodingMixin"]

ENCODED_AT_ONCE = 1024


class EncodingMixin:
    """Latents of the training data and of new data, computed in the same way."""

    module: Any
    adata: Any
    registry_: dict[str, Any]
    _LATENT_QZM_KEY: str
    _LATENT_QZV_KEY: str

    @property
    def slide_key(self) -> str | None:
        """Column that names the slide with which the encoder compares a spot; ``None`` if it sees one spot only."""
        key: str | None = self.registry_["setup_args"].get("slide_key")
        return key

    @property
    def genes(self) -> pd.Index:
        """Names of the genes of the model, in its order."""
        return pd.Index(self.registry_["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"])

    @overload
    def get_latent_representation(
        self,
        adata: AnnData | None = ...,
        indices: Sequence[int] | None = ...,
        *,
        return_dist: Literal[False] = ...,
        **kwargs: Any,
    ) -> np.ndarray[Any, Any]: ...

    @overload
    def get_latent_representation(
        self,
        adata: AnnData | None = ...,
        indices: Sequence[int] | None = ...,
        *,
        return_dist: Literal[True],
        **kwargs: Any,
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]: ...

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        layer: str | None = None,
        slide_key: str | None = None,
        fill_missing: bool = False,
        give_mean: bool = True,
        return_dist: bool = False,
        **kwargs: Any,
    ) -> np.ndarray[Any, Any] | tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Latent of spots of any donor: the mean of the posterior.

        ``adata`` needs no setup and no batch, and does not change. Its genes are matched by ``var_names``: their order
        does not matter, and genes that the model does not have are ignored. For data that ``minify_adata`` took the
        counts from, the posterior that it stored is returned.

        Parameters
        ----------
        adata
            Object with raw counts, spots × genes; a view, sparse, dense or backed. ``None`` (default) for the training
            data. Counts on disk (``backed="r"``, zarr, dask) are read ``batch_size`` spots at a time, unless they are
            stored gene by gene.
        indices
            Spots to encode; ``None`` (default) for all.
        layer
            Layer that holds the raw counts; ``"X"`` for ``X``. ``None`` (default) for the layer of
            :meth:`setup_anndata`.
        slide_key
            Column of ``obs`` that names the slide of a spot, for a model that was set up with one. ``None`` (default)
            for the same column as there. A spot is compared with all spots of its slide in ``adata``, whatever
            ``indices`` selects.
        fill_missing
            Whether to take genes that ``adata`` lacks as zero counts. By default they are an error.
        give_mean
            Whether to return the posterior mean (default) or one sample of the posterior.
        return_dist
            Whether to return mean and variance of the posterior instead.
        **kwargs
            ``batch_size``: spots encoded at once, 1024 by default; it changes memory and time, not the result.
            ``dataloader``: minibatches of scvi-tools instead of ``adata``.

        Returns
        -------
        numpy.ndarray or tuple of numpy.ndarray
            Latent, float32, shape ``(n_spots, n_latent)``; with ``return_dist``, mean and variance.

        Raises
        ------
        KeyError
            If the layer is missing.
        ValueError
            If the values are not raw counts, genes of the model are missing, or the model was loaded without data and
            ``adata`` is not given.
        RuntimeError
            If the model has not been trained.

        Examples
        --------
        >>> latent = model.get_latent_representation(unseen_donor)  # doctest: +SKIP
        """
        self._check_if_trained(warn=False)  # type: ignore[attr-defined]
        if kwargs.get("dataloader") is not None:
            return super().get_latent_representation(  # type: ignore[misc]
                adata, indices, give_mean=give_mean, return_dist=return_dist, **kwargs
            )
        if has_no_counts(data := self.adata if adata is None else adata):
            rows = slice(None) if indices is None else list(indices)
            slots = (self._LATENT_QZM_KEY, self._LATENT_QZV_KEY)
            mean, variance = (np.array(data.obsm[slot], dtype=np.float32)[rows] for slot in slots)
        else:
            counts = self._counts_to_encode(data, layer=layer, fill_missing=fill_missing)
            codes, n_slides = self._slides_to_encode(data, slide_key)
            mean, variance = self._encode(counts, codes, n_slides, indices, kwargs.get("batch_size"))
        if return_dist:
            return mean, variance
        return mean if give_mean else torch.normal(torch.from_numpy(mean), torch.from_numpy(variance).sqrt()).numpy()

    def encode_counts(
        self,
        counts: np.ndarray[Any, Any] | sparse.csr_matrix,
        *,
        slide: Sequence[Any] | np.ndarray[Any, Any] | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray[Any, Any]:
        """Latent of counts in the gene order of the model.

        Parameters
        ----------
        counts
            Raw counts, dense or sparse, shape ``(n_spots, n_genes)``; columns are :attr:`genes`.
        slide
            Name of the slide of each spot, for a model that was set up with ``slide_key``. ``None`` (default): all
            spots are from one slide.
        batch_size
            Spots encoded at once; 1024 by default.

        Returns
        -------
        numpy.ndarray
            Posterior means, float32, shape ``(n_spots, n_latent)``.

        Raises
        ------
        ValueError
            If the number of columns differs from the number of genes, or that of slides from that of spots, or the
            values are not raw counts.
        RuntimeError
            If the model has not been trained.

        Examples
        --------
        >>> latent = model.encode_counts(adata[:, model.genes].X)  # doctest: +SKIP
        """
        self._check_if_trained(warn=False)  # type: ignore[attr-defined]
        counts = sparse.csr_matrix(counts) if sparse.issparse(counts) else np.asarray(counts)
        if counts.ndim != 2 or counts.shape[1] != len(self.genes):
            msg = f"counts have shape {counts.shape}; the model has {len(self.genes)} genes, one a column."
            raise ValueError(msg)
        if (found := not_a_count(counts)) is not None:
            msg = f"these are not raw counts: there is {found}."
            raise ValueError(msg)
        if self.slide_key is None:
            return self._encode(counts, None, 0, None, batch_size)[0]
        names = np.zeros(counts.shape[0]) if slide is None else np.asarray(slide)
        if len(names) != counts.shape[0]:
            msg = f"slide has {len(names)} names for {counts.shape[0]} spots; give one each."
            raise ValueError(msg)
        unique, codes = np.unique(names, return_inverse=True)
        return self._encode(counts, codes, len(unique), None, batch_size)[0]

    def _counts_to_encode(
        self, adata: AnnData | None, *, layer: str | None, fill_missing: bool
    ) -> np.ndarray[Any, Any] | sparse.csr_matrix | RowsOnDisk:
        if adata is None:
            msg = "this model was made or loaded without its training data; pass the data to encode."
            raise ValueError(msg)
        layer = self.registry_["setup_args"]["layer"] if layer is None else layer
        names, genes = adata.var_names, self.genes

        def checked(block: Any) -> np.ndarray[Any, Any] | sparse.csr_matrix:
            check_counts(block, adata, layer)
            return align_genes(block, names, genes, fill_missing=fill_missing)

        check_layer(adata, layer)
        if (rows := rows_on_disk(adata, layer, prepare=checked)) is not None:
            # find missing genes before anything is read
            checked(sparse.csr_matrix((0, len(names)), dtype=np.int8))
            return rows
        return checked(counts_of(adata, layer))

    def _slides_to_encode(self, adata: AnnData, slide_key: str | None) -> tuple[np.ndarray[Any, Any] | None, int]:
        if self.slide_key is None:
            if slide_key is not None:
                msg = "slide_key is given, but this model was set up without one and sees one spot only: omit it."
                raise ValueError(msg)
            return None, 0
        return slide_codes(adata, self.slide_key if slide_key is None else slide_key)

    @torch.inference_mode()
    def _encode(
        self,
        counts: Any,
        codes: np.ndarray[Any, Any] | None,
        n_slides: int,
        indices: Sequence[int] | np.ndarray[Any, Any] | None,
        batch_size: int | None,
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        size, device = batch_size or ENCODED_AT_ONCE, self.module.device
        reference = None
        if codes is not None:
            step = size if isinstance(counts, RowsOnDisk) else max(1, len(codes))
            blocks = (counts[start : start + step] for start in range(0, len(codes), step))
            reference = SlideReference.of(with_codes(blocks, codes), n_slides).to(device)
        if indices is not None:
            counts = counts.rows(indices) if isinstance(counts, RowsOnDisk) else counts[np.asarray(indices)]
            codes = None if codes is None else codes[np.asarray(indices)]
        n_spots = len(counts) if isinstance(counts, RowsOnDisk) else counts.shape[0]
        shape = (n_spots, self.module.n_latent)
        mean, variance = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
        was_training = self.module.training
        self.module.eval()
        # a sample is drawn beside the mean, and dropped
        with one_thread(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            for start in range(0, n_spots, size):
                rows = slice(start, start + size)
                block = counts[rows]
                dense = block.toarray() if sparse.issparse(block) else block
                tensor = torch.tensor(dense, dtype=torch.float32, device=device)
                seen = None
                if reference is not None and codes is not None:
                    seen = reference.against(tensor, torch.as_tensor(codes[rows], device=device))
                encoded = self.module.encode(tensor, seen)
                mean[rows], variance[rows] = (values.float().cpu().numpy() for values in encoded)
        self.module.train(was_training)
        return mean, variance

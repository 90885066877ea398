"""Minibatches from one sparse matrix in memory, and what the encoder sees of a spot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField
from scvi.dataloaders import AnnDataLoader, DataSplitter

from stcontrast._models.batch_vae.counts import on_disk, row_blocks
from stcontrast._models.batch_vae.likelihood import Entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anndata import AnnData
    from scvi.data import AnnDataManager

__all__ = [
    "ENCODER_KEY",
    "ENTRIES_KEY",
    "SLIDE_KEY",
    "EncoderView",
    "MinibatchSplitter",
    "SlideField",
    "SlideReference",
    "SpotLoader",
    "slide_codes",
    "with_codes",
]

SLIDE_KEY: Final = "slide"
# counts are scaled to this depth before the logarithm
_DEPTH: Final = 1e4
# added to a standard deviation: a gene that hardly varies on a slide is not blown up
_SMALLEST_SCALE: Final = 0.1
_SEED: Final = 0


class SlideField(CategoricalObsField):
    """scvi-tools' field of a categorical column that takes slides which the model has not seen.

    Parameters
    ----------
    registry_key
        Name of the field.
    attr_key
        Column of ``obs``.
    """

    def transfer_field(self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        """Register the column of another object, whatever its slides are called.

        Parameters
        ----------
        state_registry
            What is registered of the model's data.
        adata_target
            Object to register.
        **kwargs
            Arguments of :meth:`scvi.data.fields.CategoricalObsField.transfer_field`.

        Returns
        -------
        dict
            What is registered.
        """
        kwargs["extend_categories"] = True
        registered: dict[str, Any] = super().transfer_field(state_registry, adata_target, **kwargs)
        return registered


@dataclass(frozen=True)
class SlideReference:
    """Mean and spread of each gene on each slide, at full depth and at depths that spots are thinned to.

    Expression is ``log1p`` of counts per 10 000. The depth of a spot shifts its mean and its spread, so a thinned spot
    is compared with its slide thinned alike.

    Attributes
    ----------
    shares
        Shares of the counts, 1 first.
    mean, spread
        float32, shape ``(n_shares, n_slides, n_genes)``; to the standard deviation 0.1 is added.
    """

    shares: tuple[float, ...]
    mean: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def of(
        cls, blocks: Iterable[tuple[Any, np.ndarray[Any, Any]]], n_slides: int, shares: Sequence[float] = ()
    ) -> SlideReference:
        """That of spots that come block by block.

        Parameters
        ----------
        blocks
            Raw counts, shape ``(n_spots, n_genes)``, dense or CSR, and the code of each spot's slide.
        n_slides
            Number of slides.
        shares
            Shares of the counts that are also asked for, besides all of them.

        Returns
        -------
        SlideReference
            The reference.
        """
        rng = np.random.default_rng(_SEED)
        levels = (1.0, *shares)
        sums: list[Any] = [0.0] * len(levels)
        squares: list[Any] = [0.0] * len(levels)
        n_spots: Any = 0.0
        for counts, codes in blocks:
            matrix = sparse.csr_matrix(counts)
            member = sparse.csr_matrix(
                (np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(n_slides, len(codes))
            )
            n_spots = n_spots + np.asarray(member.sum(axis=1))
            for level, share in enumerate(levels):
                logs = _log_expression(matrix if share == 1 else _thinned(matrix, share, rng))
                sums[level] = sums[level] + (member @ logs).toarray()
                squares[level] = squares[level] + (member @ logs.multiply(logs)).toarray()
        n_spots = np.maximum(n_spots, 1)
        mean = np.stack([total / n_spots for total in sums])
        variance = np.stack([total / n_spots for total in squares]) - mean**2
        spread = np.sqrt(np.maximum(variance, 0)) + _SMALLEST_SCALE
        return cls(levels, torch.tensor(mean, dtype=torch.float32), torch.tensor(spread, dtype=torch.float32))

    def against(self, counts: torch.Tensor, codes: torch.Tensor, level: torch.Tensor | int = 0) -> torch.Tensor:
        """Expression of spots in standard deviations of their slide.

        Parameters
        ----------
        counts
            Raw counts, shape ``(n_spots, n_genes)``.
        codes
            Code of each spot's slide, int64, shape ``(n_spots,)``.
        level
            Share of the counts that is left, as a place in ``shares``: one for all spots or one each.

        Returns
        -------
        torch.Tensor
            float32, shape ``(n_spots, n_genes)``.
        """
        depth = counts.sum(dim=1, keepdim=True).clamp(min=1)
        level = torch.as_tensor(level, device=codes.device).expand(codes.shape)
        logs = torch.log1p(counts * (_DEPTH / depth))
        return logs.sub_(self.mean[level, codes]).div_(self.spread[level, codes])

    def to(self, device: torch.device) -> SlideReference:
        """The same on a device.

        Parameters
        ----------
        device
            Device to compute on.

        Returns
        -------
        SlideReference
            The reference.
        """
        return SlideReference(self.shares, self.mean.to(device), self.spread.to(device))


def slide_codes(adata: AnnData, slide_key: str) -> tuple[np.ndarray[Any, Any], int]:
    """Code of each spot's slide, and the number of slides.

    Parameters
    ----------
    adata
        Object, spots × genes.
    slide_key
        Column of ``obs``.

    Returns
    -------
    tuple
        Codes, int64, shape ``(n_spots,)``, and their number.

    Raises
    ------
    KeyError
        If the column is not there.
    ValueError
        If it has missing values.
    """
    if slide_key not in adata.obs:
        msg = (
            f"slide_key {slide_key!r} is not in adata.obs, which has {list(adata.obs.columns)}. The model compares a "
            f"spot with its slide: name the column with slide_key=, or for a single slide set adata.obs[{slide_key!r}] "
            "to its name."
        )
        raise KeyError(msg)
    codes, names = pd.factorize(adata.obs[slide_key])
    if n_missing := int((codes < 0).sum()):
        msg = f"adata.obs[{slide_key!r}] has {n_missing} missing values; slide_key needs a value for every spot."
        raise ValueError(msg)
    return codes.astype(np.int64), len(names)


def with_codes(blocks: Iterable[Any], codes: np.ndarray[Any, Any]) -> Iterator[tuple[Any, np.ndarray[Any, Any]]]:
    """Pair blocks of spots, which follow one another, with the codes of their slides.

    Parameters
    ----------
    blocks
        Matrices, shape ``(n_spots, n_genes)`` each.
    codes
        Code of the slide of every spot of all of them.

    Yields
    ------
    tuple
        The next block, and its codes.
    """
    start = 0
    for block in blocks:
        stop = start + block.shape[0]
        yield block, codes[start:stop]
        start = stop


def _log_expression(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    depth = np.maximum(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel(), 1)
    logs = np.log1p(counts.data * (_DEPTH / np.repeat(depth, np.diff(counts.indptr))))
    return sparse.csr_matrix((logs, counts.indices, counts.indptr), shape=counts.shape)


def _thinned(counts: sparse.csr_matrix, share: float, rng: np.random.Generator) -> sparse.csr_matrix:
    kept = rng.binomial(counts.data.astype(np.int64), share)
    return sparse.csr_matrix((kept, counts.indices, counts.indptr), shape=counts.shape)


# beside the counts in a minibatch: those that are not zero, and what the encoder sees
ENTRIES_KEY: Final = "X_entries"
ENCODER_KEY: Final = "X_encoder"

_REFERENCES: WeakKeyDictionary[Any, dict[tuple[float, ...], SlideReference]] = WeakKeyDictionary()


class EncoderView:
    """Adds to a minibatch what the encoder is to see of its spots.

    Parameters
    ----------
    reference
        The slides; ``None`` where the model knows none: the encoder sees the counts.
    shares
        Shares of the counts that the encoder gets, one drawn for each spot beside all of them; none for all.
    """

    def __init__(self, reference: SlideReference | None, shares: Sequence[float] = ()) -> None:
        self._reference, self._shares = reference, torch.tensor([1.0, *shares])

    def add(self, minibatch: dict[str, Any]) -> dict[str, Any]:
        """Add it, where it is not the counts themselves.

        Parameters
        ----------
        minibatch
            Tensors by name: counts, and with a reference the code of the slide.

        Returns
        -------
        dict
            The minibatch.
        """
        counts = minibatch[REGISTRY_KEYS.X_KEY]
        level: torch.Tensor | int = 0
        if len(self._shares) > 1:
            level = torch.randint(len(self._shares), (len(counts),))
            spot, _, position, value = minibatch.get(ENTRIES_KEY) or Entries.of(counts)
            kept = torch.binomial(value, self._shares[level][spot])
            counts = torch.zeros_like(counts).view(-1).scatter_(0, position, kept).view(counts.shape)
        if self._reference is not None:
            codes = torch.as_tensor(minibatch[SLIDE_KEY]).long().flatten()
            minibatch[ENCODER_KEY] = self._reference.against(counts, codes, level)
        elif len(self._shares) > 1:
            minibatch[ENCODER_KEY] = torch.log1p(counts)
        return minibatch


class _SparseCounts(torch.utils.data.Dataset[dict[str, Any]]):
    """Spots by numbers: dense counts, those that are not zero, and codes."""

    def __init__(self, manager: AnnDataManager, counts: sparse.csr_matrix, rows: np.ndarray[Any, Any]) -> None:
        self.counts = counts
        self.rows = rows
        keys = {REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY, SLIDE_KEY} & set(manager.data_registry)
        self.codes = {key: torch.as_tensor(np.asarray(manager.get_from_registry(key)).astype(np.int64)) for key in keys}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Any) -> dict[str, Any]:
        rows = self.rows[np.atleast_1d(indices)]
        part = self.counts[rows]
        spot = torch.from_numpy(np.repeat(np.arange(len(rows)), np.diff(part.indptr)))
        gene = torch.from_numpy(part.indices.astype(np.int64))
        value = torch.from_numpy(part.data.astype(np.float32, copy=False))
        position = spot * part.shape[1] + gene
        dense = torch.zeros(part.shape).view(-1).scatter_(0, position, value)
        return {
            REGISTRY_KEYS.X_KEY: dense.view(part.shape),
            ENTRIES_KEY: Entries(spot, gene, position, value),
            **{key: codes[torch.from_numpy(rows)] for key, codes in self.codes.items()},
        }


class _Viewed(torch.utils.data.Dataset[dict[str, Any]]):
    """Minibatches of another dataset, with what the encoder sees."""

    def __init__(self, dataset: Any, view: EncoderView) -> None:
        self._dataset, self._view = dataset, view

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, indices: Any) -> dict[str, Any]:
        tensors = {key: torch.as_tensor(value) if isinstance(value, np.ndarray) else value
                   for key, value in self._dataset[indices].items()}  # fmt: skip
        return self._view.add(tensors)


class _ManagerOfSpots:
    """What scvi-tools' loader asks of a manager: its object, and a dataset of it."""

    def __init__(self, manager: AnnDataManager, shares: Sequence[float]) -> None:
        self.adata = manager.adata
        self._manager, self._shares = manager, shares

    def create_torch_dataset(self, indices: np.ndarray[Any, Any], **kwargs: Any) -> Any:
        counts = _sparse_counts(self._manager)
        if counts is None or kwargs.get("data_and_attributes") is not None:
            dataset = self._manager.create_torch_dataset(indices=indices, **kwargs)
        else:
            dataset = _SparseCounts(self._manager, counts, indices)
        has_slides = SLIDE_KEY in self._manager.data_registry
        if kwargs.get("data_and_attributes") is not None or not (has_slides or self._shares):
            return dataset
        reference = _reference_of(self._manager, tuple(self._shares)) if has_slides else None
        return _Viewed(dataset, EncoderView(reference, self._shares))


class SpotLoader(AnnDataLoader):
    """scvi-tools' loader, with minibatches from one sparse matrix where the counts are one in memory.

    AnnData is indexed row by row, field by field, and the zeros are stored and looked for anew at each step; here one
    call of scipy cuts all rows of a minibatch, and the counts that are not zero come along. Counts that are dense, on
    disk or minified are read by scvi-tools. Where slides are registered, what the encoder sees of a spot is added.

    Parameters
    ----------
    adata_manager
        Manager of the object.
    thin_to
        Shares of the counts that the encoder gets, one drawn for each spot beside all of them; none (default) for all.
    **kwargs
        Arguments of :class:`scvi.dataloaders.AnnDataLoader`.
    """

    def __init__(self, adata_manager: AnnDataManager, *, thin_to: Sequence[float] = (), **kwargs: Any) -> None:
        super().__init__(_ManagerOfSpots(adata_manager, thin_to), **kwargs)


class MinibatchSplitter(DataSplitter):
    """scvi-tools' data splitter with :class:`SpotLoader`; held-out spots are encoded from all of their counts."""

    data_loader_cls = SpotLoader

    def val_dataloader(self) -> Any:
        """Minibatches of the held-out spots.

        Returns
        -------
        SpotLoader or None
            ``None`` without held-out spots.
        """
        thin_to = self.data_loader_kwargs.pop("thin_to", ())
        try:
            return super().val_dataloader()
        finally:
            self.data_loader_kwargs["thin_to"] = thin_to


def _sparse_counts(manager: AnnDataManager) -> sparse.csr_matrix | None:
    minified = REGISTRY_KEYS.LATENT_QZM_KEY in manager.data_registry
    counts = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
    if minified or not sparse.issparse(counts):
        return None
    counts = counts.tocsr()
    if not counts.has_canonical_format or (counts.data == 0).any():
        # the user's matrix stays as it is; a zero that is stored would be an entry
        counts = counts.copy()
        counts.sum_duplicates()
        counts.eliminate_zeros()
    return counts


def _reference_of(manager: AnnDataManager, shares: tuple[float, ...]) -> SlideReference:
    """Of the slides of a manager's object: gone through once, whatever is loaded of it."""
    known = _REFERENCES.setdefault(manager, {})
    if shares not in known:
        codes = np.asarray(manager.get_from_registry(SLIDE_KEY)).astype(np.int64).ravel()
        n_slides = len(manager.get_state_registry(SLIDE_KEY)["categorical_mapping"])
        counts = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        blocks = row_blocks(counts) if on_disk(counts) else [counts]
        known[shares] = SlideReference.of(with_codes(blocks, codes), n_slides, shares)
    return known[shares]

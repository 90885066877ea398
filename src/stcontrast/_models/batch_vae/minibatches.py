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

from stcontrast._models.batch_vae.likelihood import Entries
from stcontrast._reading import on_disk, row_blocks

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
# names in a minibatch: entries that are not zero, and what the encoder sees
ENTRIES_KEY: Final = "X_entries"
ENCODER_KEY: Final = "X_encoder"
# depth that counts are scaled to before the logarithm
DEPTH: Final = 1e4
# added to a standard deviation, so that a gene that hardly varies on a slide is not magnified
SMALLEST_SCALE: Final = 0.1
SEED: Final = 0

# of each manager and choice of shares: all counts are read only once
_REFERENCES: WeakKeyDictionary[Any, dict[tuple[float, ...], SlideReference]] = WeakKeyDictionary()


class SlideField(CategoricalObsField):
    """Field of scvi-tools for a categorical column, which accepts slides that the model has not seen."""

    def transfer_field(self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        """Register the column of another object, with any names of slides."""
        kwargs["extend_categories"] = True
        registered: dict[str, Any] = super().transfer_field(state_registry, adata_target, **kwargs)
        return registered


@dataclass(frozen=True)
class SlideReference:
    """Mean and spread of each gene on each slide, at full depth and at the depths that spots are thinned to.

    Expression is ``log1p`` of counts per 10 000. The depth of a spot shifts its mean and spread, so a thinned spot is
    compared with its slide thinned to the same share.

    Attributes
    ----------
    shares
        Shares of the counts, 1 first.
    mean, spread
        float32 (n_shares, n_slides, n_genes); the spread is the standard deviation plus 0.1.
    """

    shares: tuple[float, ...]
    mean: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def of(
        cls, blocks: Iterable[tuple[Any, np.ndarray[Any, Any]]], n_slides: int, shares: Sequence[float] = ()
    ) -> SlideReference:
        """Reference of blocks of counts (n_spots, n_genes), dense or CSR, each with the slide codes of its spots."""
        rng = np.random.default_rng(SEED)
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
        spread = np.sqrt(np.maximum(variance, 0)) + SMALLEST_SCALE
        return cls(levels, torch.tensor(mean, dtype=torch.float32), torch.tensor(spread, dtype=torch.float32))

    def against(self, counts: torch.Tensor, codes: torch.Tensor, level: torch.Tensor | int = 0) -> torch.Tensor:
        """Expression of spots in standard deviations from the mean of their slide.

        Parameters
        ----------
        counts
            Raw counts (n_spots, n_genes).
        codes
            Code of the slide of each spot (n_spots,), int64.
        level
            Position in `shares`: which share of the counts is left, for all spots or for each.

        Returns
        -------
        float32 (n_spots, n_genes).
        """
        depth = counts.sum(dim=1, keepdim=True).clamp(min=1)
        level = torch.as_tensor(level, device=codes.device).expand(codes.shape)
        logs = torch.log1p(counts * (DEPTH / depth))
        return logs.sub_(self.mean[level, codes]).div_(self.spread[level, codes])

    def to(self, device: torch.device) -> SlideReference:
        """The same reference on a device."""
        return SlideReference(self.shares, self.mean.to(device), self.spread.to(device))


def slide_codes(adata: AnnData, slide_key: str) -> tuple[np.ndarray[Any, Any], int]:
    """Code of the slide of each spot (n_spots,), int64, and the number of slides."""
    if slide_key not in adata.obs:
        msg = (
            f"slide_key {slide_key!r} is not in adata.obs, which has {list(adata.obs.columns)}. The model compares a "
            "spot with its slide: name the column that has the slides with slide_key=, or for a single slide set "
            f"adata.obs[{slide_key!r}] to its name."
        )
        raise KeyError(msg)
    codes, names = pd.factorize(adata.obs[slide_key])
    if n_missing := int((codes < 0).sum()):
        msg = f"adata.obs[{slide_key!r}] has {n_missing} missing values; slide_key needs a value for every spot."
        raise ValueError(msg)
    return codes.astype(np.int64), len(names)


def with_codes(blocks: Iterable[Any], codes: np.ndarray[Any, Any]) -> Iterator[tuple[Any, np.ndarray[Any, Any]]]:
    """Pair consecutive blocks of spots with the slide codes of their spots."""
    start = 0
    for block in blocks:
        stop = start + block.shape[0]
        yield block, codes[start:stop]
        start = stop


def _log_expression(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    depth = np.maximum(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel(), 1)
    logs = np.log1p(counts.data * (DEPTH / np.repeat(depth, np.diff(counts.indptr))))
    return sparse.csr_matrix((logs, counts.indices, counts.indptr), shape=counts.shape)


def _thinned(counts: sparse.csr_matrix, share: float, rng: np.random.Generator) -> sparse.csr_matrix:
    kept = rng.binomial(counts.data.astype(np.int64), share)
    return sparse.csr_matrix((kept, counts.indices, counts.indptr), shape=counts.shape)


class EncoderView:
    """Adds to a minibatch what the encoder sees of its spots.

    Parameters
    ----------
    reference
        The slides; ``None`` for a model without slides, whose encoder sees the counts.
    shares
        Shares of the counts to thin to. For each spot, one of them or all counts is drawn.
    """

    def __init__(self, reference: SlideReference | None, shares: Sequence[float] = ()) -> None:
        self._reference, self._shares = reference, torch.tensor([1.0, *shares])

    def add(self, minibatch: dict[str, Any]) -> dict[str, Any]:
        """Add what the encoder sees to a minibatch, tensors by name, unless it is the counts themselves."""
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
    """Spots by row number: dense counts, the entries that are not zero, and codes."""

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
    """What the loader of scvi-tools needs of a manager: its object, and a dataset of it."""

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
    """Loader of scvi-tools, with minibatches cut from one sparse matrix if the counts are one in memory.

    scvi-tools indexes AnnData row by row and field by field, and stores the zeros at each step. Here one call of scipy
    cuts all rows of a minibatch, and the entries that are not zero come with it. Counts that are dense, on disk or
    minified are read by scvi-tools. If slides are registered, what the encoder sees of a spot is added.

    Parameters
    ----------
    adata_manager
        Manager of the object.
    thin_to
        Shares of the counts to thin to, see :class:`EncoderView`; none by default.
    **kwargs
        Arguments of :class:`scvi.dataloaders.AnnDataLoader`.
    """

    def __init__(self, adata_manager: AnnDataManager, *, thin_to: Sequence[float] = (), **kwargs: Any) -> None:
        super().__init__(_ManagerOfSpots(adata_manager, thin_to), **kwargs)


class MinibatchSplitter(DataSplitter):
    """Data splitter of scvi-tools with :class:`SpotLoader`. Held-out spots are encoded from all of their counts."""

    data_loader_cls = SpotLoader

    def val_dataloader(self) -> Any:
        """Minibatches of the held-out spots; `None` without them."""
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
        # do not change the user's matrix; a stored zero would count as an entry
        counts = counts.copy()
        counts.sum_duplicates()
        counts.eliminate_zeros()
    return counts


def _reference_of(manager: AnnDataManager, shares: tuple[float, ...]) -> SlideReference:
    """Reference of the slides of a manager's object, computed once for each choice of shares."""
    known = _REFERENCES.setdefault(manager, {})
    if shares not in known:
        codes = np.asarray(manager.get_from_registry(SLIDE_KEY)).astype(np.int64).ravel()
        n_slides = len(manager.get_state_registry(SLIDE_KEY)["categorical_mapping"])
        counts = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        blocks = row_blocks(counts) if on_disk(counts) else [counts]
        known[shares] = SlideReference.of(with_codes(blocks, codes), n_slides, shares)
    return known[shares]

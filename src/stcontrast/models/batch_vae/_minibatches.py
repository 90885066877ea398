"""Minibatches cut from one sparse matrix in memory, in place of row-wise indexing of AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.dataloaders import AnnDataLoader, DataSplitter

from stcontrast.models.batch_vae._likelihood import Entries

if TYPE_CHECKING:
    from scvi.data import AnnDataManager

__all__ = ["ENTRIES_KEY", "MinibatchSplitter"]

# beside the counts in a minibatch: those that are not zero
ENTRIES_KEY: Final = "X_entries"


class _SparseCounts(torch.utils.data.Dataset[dict[str, Any]]):
    """Spots by numbers: dense counts, where these are not zero, and the codes of batch and label."""

    def __init__(self, manager: AnnDataManager, counts: sparse.csr_matrix, rows: np.ndarray[Any, Any]) -> None:
        self.counts = counts
        self.rows = rows
        self.codes = {
            key: torch.as_tensor(np.asarray(manager.get_from_registry(key)).astype(np.int64))
            for key in (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY)
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Any) -> dict[str, Any]:
        rows = self.rows[np.atleast_1d(indices)]
        part = self.counts[rows]
        spot = torch.from_numpy(np.repeat(np.arange(len(rows)), np.diff(part.indptr)))
        gene = torch.from_numpy(part.indices.astype(np.int64))
        count = torch.from_numpy(part.data.astype(np.float32, copy=False))
        dense = torch.zeros(part.shape).view(-1).scatter_(0, spot * part.shape[1] + gene, count)
        return {
            REGISTRY_KEYS.X_KEY: dense.view(part.shape),
            ENTRIES_KEY: Entries(spot, gene, count),
            **{key: codes[torch.from_numpy(rows)] for key, codes in self.codes.items()},
        }


class _ManagerOfSparseCounts:
    """What scvi-tools' loader asks of a manager, answered with :class:`_SparseCounts`."""

    def __init__(self, manager: AnnDataManager, counts: sparse.csr_matrix) -> None:
        self.adata = manager.adata
        self._manager, self._counts = manager, counts

    def create_torch_dataset(self, indices: np.ndarray[Any, Any], **_: Any) -> _SparseCounts:
        return _SparseCounts(self._manager, self._counts, indices)


class _SparseLoader(AnnDataLoader):
    def __init__(self, adata_manager: AnnDataManager, **kwargs: Any) -> None:
        counts = _sparse_counts(adata_manager)
        super().__init__(adata_manager if counts is None else _ManagerOfSparseCounts(adata_manager, counts), **kwargs)


class MinibatchSplitter(DataSplitter):
    """scvi-tools' data splitter, with minibatches from one sparse matrix where the counts are one in memory.

    AnnData is indexed row by row, field by field, and the zeros are stored and looked for anew at each step; here one
    call of scipy cuts all rows of a minibatch, and where the counts are not zero comes along. Counts that are dense or
    on disk are read by scvi-tools' own loader.
    """

    data_loader_cls = _SparseLoader


def _sparse_counts(manager: AnnDataManager) -> sparse.csr_matrix | None:
    counts = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
    if not sparse.issparse(counts) or counts.shape != manager.adata.shape:
        return None
    counts = counts.tocsr()
    if not counts.has_canonical_format or (counts.data == 0).any():
        # of the user's matrix, which stays as it is; a zero that is stored has a position and no logarithm to take
        counts = counts.copy()
        counts.sum_duplicates()
        counts.eliminate_zeros()
    return counts

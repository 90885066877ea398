"""Data whose counts were dropped for the posterior of each spot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.data._utils import _get_adata_minify_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

__all__ = ["has_no_counts", "stored_posterior"]


def has_no_counts(adata: AnnData | None) -> bool:
    """Whether ``minify_adata`` put zeros in the place of the counts.

    Parameters
    ----------
    adata
        Object, minified or not; ``None`` for none.
    """
    return adata is not None and _get_adata_minify_type(adata) == ADATA_MINIFY_TYPE.LATENT_POSTERIOR


def stored_posterior(
    adata: AnnData, indices: Sequence[int] | None, *, mean_key: str, variance_key: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Mean and variance of the posterior that stand in for the counts.

    Parameters
    ----------
    adata
        Object without counts.
    indices
        Spots; ``None`` for all.
    mean_key, variance_key
        Slots of ``obsm``.

    Returns
    -------
    tuple of numpy.ndarray
        Mean and variance, float32, each of shape ``(n_spots, n_latent)``.
    """
    mean, variance = (np.array(adata.obsm[key], dtype=np.float32) for key in (mean_key, variance_key))
    return (mean, variance) if indices is None else (mean[list(indices)], variance[list(indices)])

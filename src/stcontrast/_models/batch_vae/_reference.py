"""What the encoder sees of a spot where slides are known: its expression against that of its own slide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi.data.fields import CategoricalObsField

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anndata import AnnData

__all__ = ["SLIDE_KEY", "SlideField", "SlideReference", "slide_codes", "with_codes"]

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

"""Gradient of a whole batch through micro-batches: cached embeddings."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = ["cached_backward"]


def cached_backward(
    parts: Sequence[Callable[[], Tensor]],
    backward: Callable[[Tensor], Tensor],
) -> None:
    """Back-propagate a loss of the whole batch, with the graph of one micro-batch in memory at a time.

    Every micro-batch is embedded without a graph; the loss of all embeddings gives the gradient on each; every
    micro-batch is embedded again, with a graph, and its part of that gradient sent through. The result is the gradient
    of one pass over the whole batch.

    Parameters
    ----------
    parts
        What embeds each micro-batch (n_i, d): the same at every call, random numbers included.
    backward
        Given the embeddings of all micro-batches (n, d), back-propagates the loss into whatever it uses of its own,
        and returns the gradient on the embeddings (n, d).

    References
    ----------
    Gao et al. 2021 (GradCache, arXiv 2101.06983).
    """
    # one part needs no second pass: its graph is all there is
    with nullcontext() if len(parts) == 1 else torch.no_grad():
        embedded = [part() for part in parts]
    gradient = backward(torch.cat([part.detach() for part in embedded]))
    if len(parts) == 1:
        torch.autograd.backward(embedded[0], gradient.to(embedded[0].dtype))
        return
    for part, own in zip(parts, torch.split(gradient, [len(part) for part in embedded]), strict=True):
        again = part()
        torch.autograd.backward(again, own.to(again.dtype))

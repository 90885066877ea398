"""Contrastive losses on a batch of paired embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["info_nce", "similarity_target_loss"]


def info_nce(gene: Tensor, image: Tensor, *, temperature: float | Tensor = 0.1, normalize: bool = True) -> Tensor:
    r"""Symmetric InfoNCE (CLIP): every spot finds its own image among those of the batch, and the reverse.

    With logits :math:`L = S I^\top / \tau` the loss is
    :math:`\tfrac12 [\mathrm{CE}(L, \mathrm{id}) + \mathrm{CE}(L^\top, \mathrm{id})]`.

    Parameters
    ----------
    gene, image
        Paired embeddings, shape (n, d).
    temperature
        Divides the logits.
    normalize
        Bring the embeddings to unit length first. Without it, and with heads that end in a layer norm over d
        features, a temperature of 1 acts like cosine similarity at 1/d.

    Returns
    -------
    Mean loss of a pair; :math:`\ln n` where the embeddings have collapsed.

    References
    ----------
    van den Oord et al. 2018 (arXiv 1807.03748); Radford et al. 2021 (CLIP).
    """
    if normalize:
        gene, image = functional.normalize(gene, dim=1), functional.normalize(image, dim=1)
    logits = gene @ image.T / temperature
    own = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def similarity_target_loss(
    gene: Tensor,
    image: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    normalize: bool = False,
    targets_from: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    r"""BLEEP's loss: pairs that look alike within a modality are not pushed apart across modalities.

    With :math:`T = \mathrm{softmax}_\mathrm{row}\big((I I^\top + S S^\top) / 2 \tau\big)` the loss is the mean
    over i of :math:`\tfrac12 [\mathrm{CE}(L_i, T_i) + \mathrm{CE}(L^\top_i, (T^\top)_i)]`; the rows of
    :math:`T^\top` are not normalised again, as published.

    Parameters
    ----------
    gene, image
        Paired embeddings, shape (n, d).
    temperature
        Divides logits and similarities.
    normalize
        Bring embeddings (and target inputs) to unit length first.
    targets_from
        Gene and image inputs, shapes (n, k) and (n, m), to take the similarities from, detached. By default they
        are taken from the embeddings themselves, with gradient, as published: embeddings that have collapsed are
        then rewarded for staying so.

    Returns
    -------
    Mean loss of a pair.

    References
    ----------
    Xie et al. 2023 (BLEEP, arXiv 2306.01859); targets from inputs: H&Enium 2025.
    """
    of_gene, of_image = (gene, image) if targets_from is None else (part.detach() for part in targets_from)
    if normalize:
        gene, image = functional.normalize(gene, dim=1), functional.normalize(image, dim=1)
        of_gene, of_image = functional.normalize(of_gene, dim=1), functional.normalize(of_image, dim=1)
    logits = gene @ image.T / temperature
    targets = ((of_image @ of_image.T + of_gene @ of_gene.T) / 2 / temperature).softmax(dim=1)
    by_gene = -(targets * logits.log_softmax(dim=1)).sum(dim=1)
    by_image = -(targets.T * logits.T.log_softmax(dim=1)).sum(dim=1)
    return (by_gene + by_image).mean() / 2

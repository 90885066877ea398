"""Contrastive losses on a batch of paired embeddings."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stcontrast.nn._choices import Loss

__all__ = [
    "contrastive_loss",
    "distilled_nce",
    "fused_nce",
    "gaussian_target_loss",
    "info_nce",
    "one_way_nce",
    "rank_loss",
    "sigmoid_loss",
    "similarity_target_loss",
    "soft_target_loss",
    "warn_at_chance",
]

logger = logging.getLogger(__name__)

# a loss this close to that of chance has not told a single pair apart
CHANCE_MARGIN: Final = 0.02
# epochs after which it should have
LONG_ENOUGH: Final = 10
# pairs of spots that a step of the rank loss compares
MOST_PAIRS: Final = 1024


def contrastive_loss(
    gene: Tensor,
    image: Tensor,
    *,
    loss: Loss,
    temperature: float | Tensor,
    normalize: bool = True,
    targets_from: tuple[Tensor, Tensor] | None = None,
    target_temperature: float = 0.1,
    allowed: Tensor | None = None,
) -> Tensor:
    """Contrastive loss by its name.

    Parameters
    ----------
    gene, image
        Paired embeddings, shape (n, d).
    loss
        ``"info_nce"``, see :func:`info_nce`; ``"similarity_target"``, see :func:`similarity_target_loss`;
        ``"soft_target"``, see :func:`soft_target_loss`, with the first of `targets_from`; or ``"sigmoid"``, see
        :func:`sigmoid_loss`.
    temperature, normalize, targets_from, target_temperature, allowed
        As in these functions. InfoNCE and the sigmoid loss have no targets and ignore theirs.

    Returns
    -------
    Mean loss of a pair.
    """
    shared: dict[str, Any] = {"temperature": temperature, "normalize": normalize, "allowed": allowed}
    if loss == "info_nce":
        return info_nce(gene, image, **shared)
    if loss == "sigmoid":
        return sigmoid_loss(gene, image, **shared)
    if loss == "soft_target":
        similar_in = gene if targets_from is None else targets_from[0]
        return soft_target_loss(gene, image, targets_from=similar_in, target_temperature=target_temperature, **shared)
    return similarity_target_loss(
        gene, image, targets_from=targets_from, target_temperature=target_temperature, **shared
    )


def warn_at_chance(losses: Sequence[float], chance: float, *, least: float = 0.0) -> None:
    """Warn if a contrastive loss has made less than 2 % of the way from chance: the towers tell no pair from another.

    Parameters
    ----------
    losses
        Contrastive loss of every epoch. With fewer than ten epochs, nothing is said.
    chance
        Loss of towers that tell nothing apart, ln of the number of pairs that are compared.
    least
        Least loss there could be: that of soft targets is their entropy, not much less than chance.
    """
    if len(losses) >= LONG_ENOUGH and losses[-1] > chance - CHANCE_MARGIN * (chance - least):
        logger.warning(
            "The contrastive loss stays at %.2f, within 2 %% of ln(%.0f): image and genes are not being aligned.",
            losses[-1], math.exp(chance),
        )  # fmt: skip


def info_nce(
    gene: Tensor,
    image: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    allowed: Tensor | None = None,
) -> Tensor:
    r"""Symmetric InfoNCE (CLIP): classify the image of every spot among those of the batch, and the reverse.

    With logits :math:`L = S I^\top / \tau` the loss is
    :math:`\tfrac12 [\mathrm{CE}(L, \mathrm{id}) + \mathrm{CE}(L^\top, \mathrm{id})]`.

    Parameters
    ----------
    gene, image
        Paired embeddings, shape (n, d).
    temperature
        Divides the logits.
    normalize
        Scale the embeddings to unit length. Otherwise, after a layer norm over d features, a temperature of 1 acts like
        cosine similarity with 1/d.
    allowed
        Pairs that are compared, shape (n, n), symmetric and true on the diagonal; all by default.

    Returns
    -------
    Mean loss of a pair; :math:`\ln n` where the embeddings have collapsed.

    References
    ----------
    van den Oord et al. 2018 (arXiv 1807.03748); Radford et al. 2021 (CLIP).
    """
    if normalize:
        gene, image = functional.normalize(gene, dim=1), functional.normalize(image, dim=1)
    logits = _compared(gene @ image.T / temperature, allowed)
    own = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def one_way_nce(
    query: Tensor, key: Tensor, *, temperature: float | Tensor = 0.1, allowed: Tensor | None = None
) -> Tensor:
    r"""InfoNCE in one direction: classify the key of every query among those of the batch, by cosine.

    Parameters
    ----------
    query, key
        Paired embeddings, shape (n, d).
    temperature
        Divides the cosines.
    allowed
        Pairs that are compared, shape (n, n), true on the diagonal; all by default.

    Returns
    -------
    Mean loss of a pair; :math:`\ln n` where the embeddings have collapsed.
    """
    cosine = functional.normalize(query, dim=1) @ functional.normalize(key, dim=1).T
    logits = _compared(cosine / temperature, allowed)
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def gaussian_target_loss(
    gene: Tensor,
    image: Tensor,
    *,
    temperature: float | Tensor = 0.3,
    bandwidth: float = 0.2,
    allowed: Tensor | None = None,
) -> Tensor:
    r"""Soft loss of MViTGene: which images a spot's genes find, against how near all spots are within a modality.

    With embeddings of unit length, logits :math:`L = S I^\top / \tau` and Gaussian kernels
    :math:`K_{ij} = \exp(-d_{ij}^2 / 2 b^2)` of both modalities, the targets are
    :math:`T = \mathrm{softmax}_\mathrm{row}((K_I + K_S) / 2)`, without gradient, and the loss is the Kullback-Leibler
    divergence of :math:`\mathrm{softmax}_\mathrm{row}(L)` from them.

    Parameters
    ----------
    gene, image
        Paired embeddings, shape (n, d).
    temperature
        Divides the cosines, :math:`\tau`.
    bandwidth
        Of the kernels, :math:`b`.
    allowed
        Pairs that are compared, shape (n, n), true on the diagonal; all by default.

    Returns
    -------
    Mean loss of a spot.

    References
    ----------
    MViTGene (2026, Journal of Biomedical Informatics 105003).
    """
    gene, image = functional.normalize(gene, dim=1), functional.normalize(image, dim=1)
    of_both = [
        # of unit length: the squared distance is twice what the cosine lacks to 1
        torch.exp((part @ part.T - 1) / bandwidth**2)
        for part in (gene.detach(), image.detach())
    ]
    targets = _compared((of_both[0] + of_both[1]) / 2, allowed).softmax(dim=1)
    entropy = -torch.xlogy(targets, targets).sum(dim=1)
    logits = _compared(gene @ image.T / temperature, allowed)
    return (_soft_cross_entropy(logits, targets, allowed) - entropy).mean()


def distilled_nce(
    query: Tensor,
    keys: Tensor,
    teacher: Tensor,
    *,
    temperature: float | Tensor,
    share: float | Tensor,
    allowed: Tensor | None = None,
) -> Tensor:
    r"""InfoNCE whose targets are in part those of a teacher, as in ALBEF.

    With :math:`L = Q K^\top / \tau` and :math:`L' = Q' K^\top / \tau` of the teacher, the targets are
    :math:`\alpha\, \mathrm{softmax}(L') + (1 - \alpha)\, \mathrm{id}`, and the loss is the cross-entropy of
    :math:`\mathrm{softmax}(L)` against them.

    Parameters
    ----------
    query
        Embeddings of unit length (n, d).
    keys
        Embeddings of unit length that they are compared with (m, d), m ≥ n; the first n are their partners.
    teacher
        What the teacher makes of the spots of the query (n, d); no gradient goes through it.
    temperature
        Divides the cosines, :math:`\tau`.
    share
        Share of the teacher in the targets, :math:`\alpha`.
    allowed
        Pairs that are compared, shape (n, m), true for partners; all by default.

    Returns
    -------
    Mean loss of a spot; :math:`\ln m` where the embeddings have collapsed.

    References
    ----------
    Li et al. 2021 (ALBEF, arXiv 2107.07651).
    """
    with torch.no_grad():
        soft = _compared(teacher @ keys.T / temperature, allowed).softmax(dim=1)
        targets = share * soft + (1 - share) * torch.eye(*soft.shape, dtype=soft.dtype, device=soft.device)
    return _soft_cross_entropy(_compared(query @ keys.T / temperature, allowed), targets, allowed).mean()


def rank_loss(predicted: Tensor, target: Tensor, slide: Tensor, *, max_pairs: int = MOST_PAIRS) -> Tensor:
    r"""How well the differences between two spots of a slide are predicted, gene by gene.

    With :math:`d = y_s - y_t` of the log expression of two spots, :math:`\sigma(d)` is the share of the first in the
    expression of both. The loss is the cross-entropy of :math:`\sigma(\hat d)` against it, mean over pairs of spots of
    one slide and over genes. A shift or a factor of a slide's expression does not change the pairs, and the prediction
    is free up to a shift.

    Parameters
    ----------
    predicted, target
        Predicted and measured log expression (n, n_genes).
    slide
        Slide of each spot (n,).
    max_pairs
        Compare so many pairs at most, drawn at random.

    Returns
    -------
    Mean loss of a pair and gene; 0 where no two spots are of one slide.

    References
    ----------
    After STRank (NeurIPS 2025), relative expression in the place of levels; the form is ours.
    """
    first, second = torch.triu_indices(len(slide), len(slide), offset=1, device=slide.device)
    together = slide[first] == slide[second]
    first, second = first[together], second[together]
    if len(first) == 0:
        return predicted.sum() * 0.0
    if len(first) > max_pairs:
        drawn = torch.randperm(len(first), device=first.device)[:max_pairs]
        first, second = first[drawn], second[drawn]
    share = (target[first] - target[second]).sigmoid()
    return functional.binary_cross_entropy_with_logits(predicted[first] - predicted[second], share)


def similarity_target_loss(
    gene: Tensor,
    image: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    normalize: bool = False,
    targets_from: tuple[Tensor, Tensor] | None = None,
    target_temperature: float = 0.1,
    allowed: Tensor | None = None,
) -> Tensor:
    r"""Loss of BLEEP: spots that are similar within a modality are not pushed apart across modalities.

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
        Scale the embeddings to unit length.
    targets_from
        Gene and image inputs, shapes (n, k) and (n, m), to compute the similarities from, as cosines, detached. By
        default the similarities are those of the embeddings, with gradient, as published; then collapsed embeddings
        are a minimum of the loss.
    target_temperature
        Temperature of the similarities of inputs. Those of embeddings use `temperature`, as published.
    allowed
        Pairs that are compared, shape (n, n), symmetric and true on the diagonal; all by default.

    Returns
    -------
    Mean loss of a pair; :math:`\ln n` where the embeddings have collapsed.

    References
    ----------
    Xie et al. 2023 (BLEEP, arXiv 2306.01859); targets from inputs: H&Enium 2025.
    """
    if normalize:
        gene, image = functional.normalize(gene, dim=1), functional.normalize(image, dim=1)
    of_gene, of_image = gene, image
    if targets_from is not None:
        of_gene, of_image = (functional.normalize(part.detach(), dim=1) for part in targets_from)
    logits = _compared(gene @ image.T / temperature, allowed)
    of_targets = temperature if targets_from is None else target_temperature
    targets = _compared((of_image @ of_image.T + of_gene @ of_gene.T) / 2 / of_targets, allowed).softmax(dim=1)
    by_gene = _soft_cross_entropy(logits, targets, allowed)
    by_image = _soft_cross_entropy(logits.T, targets.T, allowed)
    return (by_gene + by_image).mean() / 2


def soft_target_loss(
    gene: Tensor,
    image: Tensor,
    *,
    targets_from: Tensor,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    target_temperature: float = 0.3,
    allowed: Tensor | None = None,
) -> Tensor:
    r"""Soft InfoNCE: a spot's partner is every spot that expresses alike.

    With logits :math:`L = S I^\top / \tau`, cosines :math:`C` of the gene coordinates and targets
    :math:`T = \mathrm{softmax}_\mathrm{row}(C / \tau')` the loss is the mean over i of
    :math:`\tfrac12 [\mathrm{CE}(L_i, T_i) + \mathrm{CE}(L^\top_i, T_i)]`. The targets do not depend on what is learnt,
    so that collapse is no minimum.

    Parameters
    ----------
    gene, image
        Paired embeddings, shape (n, d).
    targets_from
        Gene coordinates (n, k) whose cosines are the similarities; no gradient goes through them.
    temperature, target_temperature
        Divide the logits, and the similarities.
    normalize
        Scale the embeddings to unit length.
    allowed
        Pairs that are compared, shape (n, n), symmetric and true on the diagonal; all by default.

    Returns
    -------
    Mean loss of a pair; :math:`\ln n` where the embeddings have collapsed.

    References
    ----------
    After BLEEP (Xie et al. 2023, arXiv 2306.01859), its targets from the genes alone.
    """
    if normalize:
        gene, image = functional.normalize(gene, dim=1), functional.normalize(image, dim=1)
    logits = _compared(gene @ image.T / temperature, allowed)
    targets = soft_targets(targets_from, temperature=target_temperature, allowed=allowed)
    by_gene, by_image = (_soft_cross_entropy(one, targets, allowed) for one in (logits, logits.T))
    return (by_gene + by_image).mean() / 2


def soft_targets(targets_from: Tensor, *, temperature: float, allowed: Tensor | None = None) -> Tensor:
    """Targets (n, n) of :func:`soft_target_loss`; parameters as there."""
    similar = functional.normalize(targets_from.detach(), dim=1)
    return _compared(similar @ similar.T / temperature, allowed).softmax(dim=1)


def sigmoid_loss(
    gene: Tensor,
    image: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    allowed: Tensor | None = None,
) -> Tensor:
    r"""Sigmoid loss (SigLIP): every pair is a question of its own, whether the two belong together.

    With :math:`z_{ij} = C_{ij} / \tau - \ln(n_i - 1)`, :math:`n_i` being the spots that a spot is compared with, the
    loss is the mean over i of :math:`-\ln \sigma(z_{ii}) - \sum_{j \ne i} \ln \sigma(-z_{ij})`. The offset, learnt in the
    paper, is the logarithm of the odds that two spots are a pair.

    Parameters
    ----------
    gene, image
        Paired embeddings, shape (n, d).
    temperature
        Divides the logits.
    normalize
        Scale the embeddings to unit length.
    allowed
        Pairs that are compared, shape (n, n), symmetric and true on the diagonal; all by default.

    Returns
    -------
    Mean loss of a pair.

    References
    ----------
    Zhai et al. 2023 (SigLIP, arXiv 2303.15343).
    """
    if normalize:
        gene, image = functional.normalize(gene, dim=1), functional.normalize(image, dim=1)
    logits = gene @ image.T / temperature
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    compared = torch.ones_like(own) if allowed is None else allowed
    others = (compared.sum(dim=1, keepdim=True) - 1).clamp(min=1)
    logits = logits - others.log()
    surprise = functional.softplus(torch.where(own, -logits, logits)).masked_fill(~compared, 0.0)
    return surprise.sum(dim=1).mean()


def fused_nce(
    image: Tensor, gene: Tensor, *, temperature: float | Tensor = 0.05, negative_scale: float = 0.1
) -> Tensor:
    r"""Loss in the code of NH²ST: one direction, cosine logits, and smaller logits of other pairs.

    With :math:`C_{ij} = \cos(i_i, s_j)`, logits :math:`L_{ii} = C_{ii} / \tau` and
    :math:`L_{ij} = \alpha C_{ij} / \tau`, the loss is :math:`\mathrm{CE}(L, \mathrm{id})`, images being the rows.

    With the factor :math:`\alpha`, collapse is an optimum: if all embeddings are equal, the loss is
    :math:`\ln(1 + (n - 1) e^{-(1 - \alpha) / \tau})`, almost 0, and not :math:`\ln n`.

    Parameters
    ----------
    image, gene
        Paired embeddings, shape (n, d).
    temperature
        Divides the logits, :math:`\tau`.
    negative_scale
        Factor of the logits off the diagonal, :math:`\alpha`.

    Returns
    -------
    Mean loss of a pair.

    References
    ----------
    Qu et al. 2025 (NH²ST, arXiv 2506.23827), as in the published code.
    """
    cosine = functional.normalize(image, dim=1) @ functional.normalize(gene, dim=1).T
    own = torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)
    logits = torch.where(own, cosine, negative_scale * cosine) / temperature
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def _compared(logits: Tensor, allowed: Tensor | None) -> Tensor:
    return logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)


def _soft_cross_entropy(logits: Tensor, targets: Tensor, allowed: Tensor | None) -> Tensor:
    log_probability = logits.log_softmax(dim=1)
    if allowed is not None:
        # the target of a pair that is not compared is zero, and 0 · -inf is not a number
        log_probability = log_probability.masked_fill(~allowed, 0.0)
    return -(targets * log_probability).sum(dim=1)

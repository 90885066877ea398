"""The negative binomial likelihood of counts: log-gamma terms only where a count is not zero."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from scvi.distributions import NegativeBinomial
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property

__all__ = ["CountNegativeBinomial", "Entries"]

# larger counts are rare and use log-gamma instead of the table
TABLE_SIZE = 16
# scvi-tools adds this before a logarithm
EPS = 1e-8


class CountNegativeBinomial(NegativeBinomial):
    """Negative binomial of scvi-tools for integer counts and one inverse dispersion per gene: same values, less time.

    The mean is that of a softmax decoder, library size times proportion. It is computed from the logits of the decoder
    only on request; :meth:`log_prob_of_spots`, which training uses, does not need it.

    Parameters
    ----------
    logits
        Logits of the proportions of the genes, shape ``(..., n_spots, n_genes)``.
    log_library
        Logarithm of the library size, shape ``(..., n_spots, 1)``.
    theta
        Inverse dispersion of each gene, shape ``(n_genes,)``.
    """

    def __init__(self, *, logits: torch.Tensor, log_library: torch.Tensor, theta: torch.Tensor) -> None:
        self._logits, self._log_library, self._gene_theta = logits, log_library, theta
        self._eps = EPS
        self._device = logits.device
        self.on_mps = logits.device.type == "mps"
        # not that of NegativeBinomial, which would broadcast theta and compute the mean
        Distribution.__init__(self, batch_shape=logits.shape, validate_args=False)

    @lazy_property
    def scale(self) -> torch.Tensor:
        """Proportion of every gene, shape of the logits."""
        return torch.softmax(self._logits, dim=-1)

    @lazy_property
    def mu(self) -> torch.Tensor:
        """Mean count, shape of the logits."""
        return torch.exp(self._log_library) * self.scale

    @lazy_property
    def theta(self) -> torch.Tensor:
        """Inverse dispersion, shape of the logits."""
        return self._gene_theta.expand(self._logits.shape)

    def log_prob_of_spots(self, entries: Entries) -> torch.Tensor:
        """Log-probability of the counts of each spot (n_spots,), summed over genes, from the counts that are not zero.

        For a count of zero, all terms vanish except ``theta (log(theta) - log(theta + mu))``, so the others are
        computed only for the remaining counts. For an integer ``x``, ``lgamma(x + theta) - lgamma(theta)`` is a sum of
        ``log(theta + k)`` over ``k < x``: a table of these sums, one row per count and one column per gene, replaces
        three log-gammas and two digammas per entry. Value and gradient are those of
        :class:`scvi.distributions.NegativeBinomial`. The gradient is written out, because the chain of operations that
        torch would record takes three times as long.
        """
        # in half precision a likelihood of thousands would be rounded to the nearest 16
        with torch.autocast(device_type=self._logits.device.type, enabled=False):
            log_prob: torch.Tensor = _NegativeBinomialOfSpots.apply(
                self._logits, self._log_library, self._gene_theta, *entries
            )
        return log_prob


class Entries(NamedTuple):
    """Counts that are not zero: spot, gene and position in the flattened matrix (int64), and the count."""

    spot: torch.Tensor
    gene: torch.Tensor
    position: torch.Tensor
    value: torch.Tensor

    @classmethod
    def of(cls, counts: torch.Tensor) -> Entries:
        """Entries of a matrix of counts (n_spots, n_genes), ordered by spot."""
        spot, gene = counts.nonzero(as_tuple=True)
        return cls(spot, gene, spot * counts.shape[1] + gene, counts[spot, gene])


class _NegativeBinomialOfSpots(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (torch passes them by position)
        ctx: Any,
        logits: torch.Tensor,
        log_library: torch.Tensor,
        theta: torch.Tensor,
        spot: torch.Tensor,
        gene: torch.Tensor,
        position: torch.Tensor,
        count: torch.Tensor,
    ) -> torch.Tensor:
        count = count.to(logits.dtype)
        mu = torch.softmax(logits, dim=1).mul_(torch.exp(log_library))
        total = mu + (theta + EPS)
        log_total = total.log()
        log_theta = torch.log(theta + EPS)
        mu_there, total_there = _at(mu, position), _at(total, position)
        rising, slope = _rising(count, gene, theta)

        log_prob = (theta * log_theta).sum() - log_total @ theta
        there = rising.add_(count * torch.log((mu_there + EPS) / total_there))
        log_prob = log_prob.scatter_add_(0, spot, there)

        share = torch.div(mu, total, out=total)
        slope -= count / total_there
        by_log_mu = count * mu_there * (1 / (mu_there + EPS) - 1 / total_there)
        ctx.save_for_backward(
            mu, share, log_total, log_theta, log_library, theta, spot, gene, position, by_log_mu, slope
        )
        return log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        mu, share, log_total, log_theta, log_library, theta, spot, gene, position, there, slope = ctx.saved_tensors
        # by log(mu): -theta mu / (mu + theta) for all, and a further term for counts that are not zero
        by_log_mu = share * -theta
        by_log_mu.view(-1).scatter_add_(0, position, there)
        by_log_mu *= grad.unsqueeze(1)
        by_library = by_log_mu.sum(1, keepdim=True)
        by_logits = by_log_mu.addcmul_(mu, by_library / torch.exp(log_library), value=-1)
        # by theta: log(theta) + 1 - log(mu + theta) - theta / (mu + theta), where the last is 1 - share
        by_theta = grad.sum() * log_theta + grad @ share - grad @ log_total
        by_theta = by_theta.scatter_add_(0, gene, slope * grad.index_select(0, spot))
        return by_logits, by_library, by_theta, None, None, None, None


def _at(matrix: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    # a third of the time of matrix[...]
    return matrix.reshape(-1).index_select(0, position)


def _rising(count: torch.Tensor, gene: torch.Tensor, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each entry, lgamma(x + theta) - lgamma(theta) - lgamma(x + 1), and its derivative by theta."""
    last = TABLE_SIZE - 1
    row = count.clamp(max=last).long()
    cell = row * len(theta) + gene
    steps = torch.arange(last, dtype=theta.dtype, device=theta.device).unsqueeze(1)
    factors = theta + steps
    value = _at(_cumulated(factors.log()), cell)
    value -= _at(_cumulated((1 + steps).log()), row)
    slope = _at(_cumulated(1 / factors), cell)
    large = (count > last).nonzero().squeeze(1)
    if large.numel():
        x, theta_there = count[large], theta[gene[large]]
        value[large] += torch.lgamma(x + theta_there) - torch.lgamma(theta_there + last)
        value[large] -= torch.lgamma(x + 1) - torch.lgamma(torch.full_like(x, last + 1))
        slope[large] += torch.digamma(x + theta_there) - torch.digamma(theta_there + last)
    return value, slope


def _cumulated(terms: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(terms[:1]), terms.cumsum(0)])

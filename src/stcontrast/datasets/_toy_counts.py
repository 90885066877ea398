"""Counts of the toy data: what each gene follows, and what donor and depth do to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import softmax

from stcontrast.datasets._toy_layout import SUBTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast.datasets._toy_layout import Layout

__all__ = ["MIN_GENES", "DonorEffect", "draw_counts", "expected_fraction", "gene_truth"]

_ROLE_CYCLE: Final = (
    *("marker",) * 4, "programme", "gradient", "donor", "housekeeping", "noise",
    *("marker",) * 4, "programme", "noise", "donor", "noise", "noise", "gradient", "noise",
)  # fmt: skip
MIN_GENES: Final = 9
"""With fewer genes some role would have none."""

_COUNTS_PER_GENE = 8.0
_DONOR_SD: Final = {"donor": 0.8, "housekeeping": 0.05}
_LOG_EXPRESSION: Final = {"housekeeping": 1.8, "noise": -0.8}


class DonorEffect(NamedTuple):
    """What is measured differently in one donor."""

    depth: float
    """Factor on the sequencing depth."""
    log_shift: NDArray[np.float64]
    """Shift of each gene's log expression, (n_genes,)."""

    @classmethod
    def of_donor(cls, donor: int, genes: pd.DataFrame, rng: np.random.Generator) -> DonorEffect:
        """Draw the effect of one donor; depths of successive donors are spread over a factor of five."""
        spread = ((donor + 1) * 0.6180) % 1 - 0.5
        sd = genes["role"].astype(str).map(_DONOR_SD).fillna(0.15).to_numpy(dtype=np.float64)
        return cls(depth=float(5**spread), log_shift=rng.normal(0, sd))


def gene_truth(n_genes: int, rng: np.random.Generator) -> pd.DataFrame:
    """Give every gene a role, a mean, an effect and a dispersion.

    Parameters
    ----------
    n_genes
        Number of genes.
    rng
        Source of randomness.

    Returns
    -------
    A row per gene: `role`; `marker_of`, the subtype that a marker marks; `effect`, natural log fold change (markers) or
    slope (programme and gradient genes); `log_mean`, log expression without any effect; `dispersion`, the inverse
    dispersion of its negative binomial.
    """
    role = np.array([_ROLE_CYCLE[i % len(_ROLE_CYCLE)] for i in range(n_genes)])
    is_marker = role == "marker"
    marker_of = np.full(n_genes, None, dtype=object)
    marker_of[is_marker] = np.resize(np.array(SUBTYPES, dtype=object), int(is_marker.sum()))
    sign = rng.choice([-1.0, 1.0], n_genes)
    effect = np.zeros(n_genes)
    effect[is_marker] = rng.uniform(0.9, 2.0, n_genes)[is_marker]
    for name, low, high in (("programme", 0.8, 1.6), ("gradient", 0.4, 0.8)):
        effect[role == name] = (sign * rng.uniform(low, high, n_genes))[role == name]
    base = pd.Series(role).map(_LOG_EXPRESSION).fillna(0.0).to_numpy(dtype=np.float64)
    return pd.DataFrame(
        {
            "role": pd.Categorical(role),
            "marker_of": pd.Categorical(marker_of, categories=SUBTYPES),
            "effect": effect,
            "log_mean": base + rng.normal(0, 0.8, n_genes) * (role != "housekeeping"),
            "dispersion": rng.lognormal(np.log(8), 0.4, n_genes),
        },
        index=[f"GENE{i + 1}" for i in range(n_genes)],
    )


def expected_fraction(genes: pd.DataFrame, layout: Layout) -> NDArray[np.float64]:
    """Share of each gene in the RNA of each spot, before donor and depth; rows sum to 1, (n_spots, n_genes)."""
    effect, role = genes["effect"].to_numpy(), genes["role"].astype(str).to_numpy()
    log_profile = genes["log_mean"].to_numpy() + effect * np.stack(
        [(genes["marker_of"] == subtype).to_numpy() for subtype in SUBTYPES]
    )
    mixture = layout.spot_fraction @ softmax(log_profile, axis=1)
    log_effect = np.multiply.outer(2 * layout.spot_cellularity - 1, effect * (role == "programme"))
    log_effect += np.multiply.outer(layout.spot_gradient, effect * (role == "gradient"))
    fraction = mixture * np.exp(log_effect)
    return fraction / fraction.sum(axis=1, keepdims=True)


def draw_counts(
    fraction: NDArray[np.float64],
    layout: Layout,
    *,
    genes: pd.DataFrame,
    donor: DonorEffect,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Draw negative-binomial counts, (n_spots, n_genes), float32 whole numbers."""
    seen = fraction * np.exp(donor.log_shift)
    seen /= seen.sum(axis=1, keepdims=True)
    # Cells hold RNA: empty fat gives little, crowded tissue gives much.
    cells = (1 - 0.6 * layout.spot_fraction[:, SUBTYPES.index("fat")]) * (0.6 + 0.8 * layout.spot_cellularity)
    depth = _COUNTS_PER_GENE * len(genes) * donor.depth * cells * rng.lognormal(0, 0.3, len(cells))
    dispersion = genes["dispersion"].to_numpy()
    rate = rng.gamma(dispersion, seen * depth[:, None] / dispersion)
    return rng.poisson(rate).astype(np.float32)

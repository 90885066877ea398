"""Counts of donors with tissue types, batch effects and different depths, drawn from known proportions."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

N_GENES = 60


def make_adata(
    donors: str = "ABC", *, n_spots: int = 80, seed: int = 0, dense: bool = False, depth: float = 400.0
) -> ad.AnnData:
    """Spots of several donors: three types with ten marker genes each, a batch effect on every gene."""
    rng = np.random.default_rng(seed)
    program = np.random.default_rng(99).gamma(2.0, size=N_GENES)
    batch = {donor: np.exp(0.4 * np.random.default_rng(ord(donor)).normal(size=N_GENES)) for donor in "ABCDEFGHIJ"}
    donor = np.repeat(list(donors), n_spots)
    kind = rng.integers(3, size=len(donor))
    proportions = np.stack([program * batch[name] for name in donor])
    for k in range(3):
        proportions[kind == k, 10 * k : 10 * (k + 1)] *= 6.0
    proportions /= proportions.sum(1, keepdims=True)
    counts = rng.poisson(proportions * depth * rng.lognormal(0, 0.3, size=(len(donor), 1))).astype(np.float32)
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical(donor),
            "slide": pd.Categorical([f"{d}{i % 2 + 1}" for i, d in enumerate(donor)]),
            "kind": pd.Categorical([f"kind{k}" for k in kind]),
        },
        index=[f"{d}_{i}" for i, d in enumerate(donor)],
    )
    var = pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)])
    return ad.AnnData(counts if dense else sparse.csr_matrix(counts), obs=obs, var=var)

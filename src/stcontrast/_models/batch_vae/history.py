"""How the training of a VAE went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["vae_losses"]

# names of scvi-tools, and ours; those of held-out spots begin with "held_out_"
LOSSES: Final = {"elbo": "elbo", "reconstruction_loss": "reconstruction", "kl_local": "kl"}
PARTS: Final = {"train": "", "validation": "held_out_"}


def vae_losses(history: Mapping[str, Any] | None) -> pd.DataFrame:
    """What scvi-tools logged, as a table with a row for every epoch; without rows where there is nothing.

    Parameters
    ----------
    history
        The `history` of a model of scvi-tools.
    """
    found = {
        f"{prefix}{ours}": np.asarray((history or {})[f"{theirs}_{part}"], dtype=np.float64).ravel()
        for theirs, ours in LOSSES.items()
        for part, prefix in PARTS.items()
        if f"{theirs}_{part}" in (history or {})
    }
    # validation may be made less often than once in an epoch
    n_epochs = max(map(len, found.values()), default=0)
    whole = {name: values for name, values in found.items() if len(values) == n_epochs}
    return pd.DataFrame({"epoch": np.arange(1, n_epochs + 1), **whole} if n_epochs else {})

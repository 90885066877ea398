"""Whether a gene can be trusted: one rule, stated in the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RULE", "RULE_WITHOUT_FOLDS", "judged"]

GOOD: Final = 0.3
SOME: Final = 0.1
OF_CEILING: Final = 0.5
COVERED: Final = 0.8

YES, PARTLY, NO, UNKNOWN = "yes", "partly", "no", "unknown"

RULE: Final = (
    f"“Yes”: the mean r over held-out donors is at least {GOOD:g} and at least {OF_CEILING:.0%} of its ceiling, r is above 0 "
    f"in every held-out donor, and the 90 % interval holds at least {COVERED:.0%} of the measurements. “Partly”: the mean r "
    f"is at least {SOME:g}. “No”: everything below. “Unknown”: the gene has no r. If the ceiling or the interval "
    "is unknown, the rule leaves it out."
)
RULE_WITHOUT_FOLDS: Final = (
    f"“Yes”: r on the held-out part of the training data is at least {GOOD:g}. “Partly”: it is at least {SOME:g}. “No”: "
    "everything below. “Unknown”: the gene has no r. This is a rule of thumb: a cross-validation over donors says more."
)


def judged(genes: pd.DataFrame) -> pd.DataFrame:
    """Add the column ``trust`` to a table of genes.

    Parameters
    ----------
    genes
        Columns ``r``, and, if known, ``lowest`` (r in the worst donor), ``ceiling``, ``coverage``.
    """
    r = genes["r"].to_numpy(dtype=np.float64)

    def unless_known(name: str, at_least: np.ndarray | float, *, strictly: bool = False) -> np.ndarray:
        if name not in genes:
            return np.ones(len(r), dtype=bool)
        values = genes[name].to_numpy(dtype=np.float64)
        return np.isnan(values) | ((values > at_least) if strictly else (values >= at_least))

    ceiling = genes["ceiling"].to_numpy(dtype=np.float64) if "ceiling" in genes else np.full(len(r), np.nan)
    near = np.isnan(ceiling) | (r >= OF_CEILING * ceiling)
    good = (r >= GOOD) & near & unless_known("lowest", 0.0, strictly=True) & unless_known("coverage", COVERED)
    trust = np.select([np.isnan(r), good, r >= SOME], [UNKNOWN, YES, PARTLY], NO)
    return genes.assign(trust=trust)

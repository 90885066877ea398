"""The page: whether each gene can be trusted, and from plain values to HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._files import written_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd

__all__ = ["RULE", "RULE_WITHOUT_FOLDS", "judged", "write_page"]

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


def write_page(path: Path, content: Mapping[str, Any]) -> None:
    """Fill the template with plain values, and write the page whole or not at all."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("stcontrast._report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["two"] = _two_digits
    page = environment.get_template("report.html.jinja").render(**content)
    with written_whole(path) as scratch:
        scratch.write_text(page, encoding="utf-8")


def _two_digits(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "–" if value is None or not np.isfinite(value) else f"{value:.2f}".replace("-", "−")

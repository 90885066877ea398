"""From plain values to the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stcontrast._files import written_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["write_page"]


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

"""From plain values to the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stcontrast._files import written_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["check_page", "write_page"]


def check_page(path: str | Path, *, overwrite: bool) -> Path:
    """Where a report will be written.

    Raises
    ------
    ValueError
        If the name does not end in ``.html``.
    FileExistsError
        If something is there and `overwrite` is off, or it is a folder.
    """
    place = Path(path)
    if place.suffix.lower() not in {".html", ".htm"}:
        msg = f"`path`: the report is a web page, and its name ends in '.html'; found {str(path)!r}."
        raise ValueError(msg)
    if place.is_dir() or (place.exists() and not overwrite):
        msg = f"{str(place)!r} exists" + (
            " and is a folder." if place.is_dir() else ": give another path, or `overwrite=True`."
        )
        raise FileExistsError(msg)
    return place


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

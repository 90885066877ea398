"""Progress bars, one switch for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from stcontrast._settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["progress"]


def progress(
    iterable: Iterable[Any] | None = None, *, description: str, total: int | None = None, unit: str = "it"
) -> tqdm:
    """A bar that appears after a second, unless ``stcontrast.settings.progress`` is off."""
    return tqdm(
        iterable, desc=description, total=total, unit=unit, delay=1.0, leave=False, disable=not settings.progress
    )

"""Progress bars, one switch for all of them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from stcontrast._settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tqdm import tqdm

__all__ = ["progress"]


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    description: str,
    total: int | None = None,
    initial: int = 0,
    unit: str = "it",
) -> tqdm:
    """A bar that appears after a second, unless ``stcontrast.settings.progress`` is off."""
    # in a notebook without ipywidgets, tqdm.auto warns of what it lacks; text does as well
    if find_spec("ipywidgets") is None:
        from tqdm import tqdm as bar
    else:
        from tqdm.auto import tqdm as bar
    return bar(
        iterable, desc=description, total=total, initial=initial, unit=unit, delay=1.0, leave=False,
        disable=not settings.progress,
    )  # fmt: skip

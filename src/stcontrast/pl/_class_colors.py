"""One colour for a class, in every panel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

__all__ = ["class_colors"]


def class_colors(table: AnnData, keys: Sequence[str]) -> dict[str, str]:
    """Colours of the categories of some columns of `obs`.

    Parameters
    ----------
    table
        Table that holds the columns, and perhaps their colours in ``uns[f"{key}_colors"]``; it is not changed.
    keys
        The columns; where two name a category alike, the colour of the first holds.

    Returns
    -------
    A colour for every category. Those without a colour of their own take the next free ones of scanpy's palette.
    """
    from matplotlib.colors import to_hex
    from scanpy.plotting import palettes

    names: list[str] = []
    colors: dict[str, str] = {}
    for key in keys:
        categories = [str(name) for name in pd.Categorical(table.obs[key]).categories]
        names += [name for name in categories if name not in names]
        # written for other categories: scanpy ignores such colours as well
        stored = list(table.uns.get(f"{key}_colors", []))
        if len(stored) == len(categories):
            colors = {name: to_hex(color) for name, color in zip(categories, stored, strict=True)} | colors
    palette = next(
        (p for p in (palettes.default_20, palettes.default_28, palettes.default_102) if len(p) >= len(names)),
        palettes.default_102,
    )
    taken = set(colors.values())
    free = [color for color in map(to_hex, palette) if color not in taken] or [to_hex("0.5")]
    rest = [name for name in names if name not in colors]
    colors |= {name: free[i % len(free)] for i, name in enumerate(rest)}
    return {name: colors[name] for name in names}

"""Colours: of classes, of numbers on H&E, and of text on any background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast._reading import obs_column
from stcontrast._report import CLASS_COLORS

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = [
    "CLASS_COLORS",
    "CMAP",
    "COLORS",
    "WIDTH_CMAP",
    "Limit",
    "Palette",
    "class_colors",
    "class_names",
    "color_scale",
    "faded",
    "ink",
    "is_limit",
]

type Limit = float | str | None
type Palette = str | Sequence[str] | Mapping[str, str]

# Petroff 2021 (Accessible color sequences for data visualization), told apart with any colour vision
COLORS: Final = (
    "#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#94a4a2", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
# from light to dark without purple and blue: neither end sinks into haematoxylin and eosin
CMAP: Final = "YlOrBr"
WIDTH_CMAP: Final = "YlGn"
QUANTILES: Final = (0.01, 0.99)
CONSTANT: Final = 1e-5
MAX_CLASSES: Final = 102
FEW_FLOATS: Final = 30
# what a class without confidence fades to
PALE: Final = (0.93, 0.93, 0.93)


def ink(figure: Figure | Axes) -> str:
    """Colour of text that is visible on the background of a figure, or of axes."""
    import matplotlib as mpl
    from matplotlib.colors import to_rgba

    red, green, blue, alpha = to_rgba(figure.get_facecolor())
    if alpha < 0.5:
        return str(mpl.rcParams["text.color"])
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"


def faded(color: str, confidence: NDArray[np.float64], *, chance: float) -> NDArray[np.float64]:
    """A colour (n, 3) that pales as the confidence falls from 1 to that of a guess; NaN is a guess."""
    from matplotlib.colors import to_rgb

    full, pale = np.array(to_rgb(color)), np.array(PALE)
    share = np.clip((np.nan_to_num(confidence) - chance) / (1 - chance), 0, 1)[:, None] if chance < 1 else 1.0
    return pale + share * (full - pale)


def class_names(table: AnnData, key: str) -> pd.Categorical | None:
    """A column of `obs` as named classes; `None` if it holds numbers that are no classes.

    Whole numbers are classes if they are few: readers turn the ids of clusters into numbers.
    """
    column = obs_column(table, key).infer_objects()
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        values = column.dropna().to_numpy(dtype=np.float64)
        whole = bool((np.isfinite(values) & (values % 1 == 0)).all())
        # ids become floating numbers where some are missing; so do counts
        few = FEW_FLOATS if pd.api.types.is_float_dtype(column) else MAX_CLASSES
        if not whole or len(np.unique(values)) > few or _is_confidence(table, key):
            return None
        codes = [None if pd.isna(value) else f"{value:.0f}" for value in column]
        return pd.Categorical(codes, categories=[f"{value:.0f}" for value in np.unique(values)])
    found = pd.Categorical(column)
    names = [str(name) for name in found.categories]
    # two categories may have one name: 1 and "1"
    return pd.Categorical(
        [names[code] if code >= 0 else None for code in found.codes], categories=list(dict.fromkeys(names))
    )


def _is_confidence(table: AnnData, key: str) -> bool:
    """Whether a column goes with a column of classes; it may hold 0 and 1 alone."""
    return key.endswith("_confidence") and key.removesuffix("_confidence") in table.obs


def class_colors(
    tables: AnnData | Sequence[AnnData], keys: Sequence[str], palette: Palette | None = None
) -> dict[str, str]:
    """Colours of the classes of some columns of `obs`.

    Parameters
    ----------
    tables
        Table or tables with the columns, and optionally their colours in ``uns[f"{key}_colors"]``; they are not changed.
    keys
        The columns; if a class is in several, the colour of the first is used.
    palette
        Colours in the order of the classes, the name of a colour map, or a mapping from class to colour; instead of the
        stored ones.

    Returns
    -------
    A colour for every class. Those without one get the next free ones of `CLASS_COLORS`, and of scanpy's longest
    palette where these are too few.

    Raises
    ------
    ValueError
        If the palette holds something else than colours.
    """
    from matplotlib.colors import to_hex
    from scanpy.plotting import palettes

    names: list[str] = []
    colors: dict[str, str] = {}
    of_each = [tables] if not isinstance(tables, Sequence) else tables
    for table, key in ((table, key) for key in keys for table in of_each):
        found = class_names(table, key)
        categories = [] if found is None else list(found.categories)
        names += [name for name in categories if name not in names]
        # colours of another number of categories are outdated: scanpy ignores them too
        stored = list(table.uns.get(f"{key}_colors", []))
        if palette is None and len(stored) == len(categories):
            colors = {name: to_hex(color) for name, color in zip(categories, stored, strict=True)} | colors
    if palette is not None:
        colors = _of_palette(palette, names)
    taken = set(colors.values())
    enough = CLASS_COLORS if len(names) <= len(CLASS_COLORS) else palettes.default_102
    free = [color for color in map(to_hex, enough) if color not in taken] or [to_hex("0.5")]
    rest = [name for name in names if name not in colors]
    colors |= {name: free[i % len(free)] for i, name in enumerate(rest)}
    return {name: colors[name] for name in names}


def _of_palette(palette: Palette, names: Sequence[str]) -> dict[str, str]:
    import matplotlib as mpl
    from matplotlib.colors import is_color_like, to_hex

    if isinstance(palette, str):
        if palette not in mpl.colormaps:
            msg = f"`palette`: matplotlib has no colour map {palette!r}. Give the name of one, colours, or a mapping from class to colour."
            raise ValueError(msg)
        cmap = mpl.colormaps[palette]
        # a list of colours is taken as it is, a gradient from end to end
        places = np.arange(len(names)) % cmap.N if cmap.N <= 20 else np.linspace(0, 1, max(len(names), 2))
        return {name: to_hex(tuple(np.ravel(cmap(place)))) for name, place in zip(names, places, strict=False)}
    # matplotlib's own cycles of colours name them
    listed = palette.by_key().get("color", []) if hasattr(palette, "by_key") else palette
    pairs = listed.items() if isinstance(listed, Mapping) else zip(names, _repeated(listed, len(names)), strict=False)
    chosen = {str(name): color for name, color in pairs}
    wrong = [color for color in chosen.values() if not is_color_like(color)]
    if wrong or not chosen:
        msg = f"`palette` must hold colours that matplotlib knows; found {wrong or 'none'}."
        raise ValueError(msg)
    return {name: to_hex(color) for name, color in chosen.items() if name in names}


def _repeated(colors: Sequence[str], n: int) -> list[str]:
    colors = list(colors)
    return colors * -(-n // len(colors)) if colors else []


def color_scale(values: NDArray[np.float64], *, vmin: Limit = None, vmax: Limit = None) -> tuple[Normalize, str]:
    """The scale of some panels, and the ends beyond which there are values.

    Parameters
    ----------
    values
        All values that are drawn.
    vmin, vmax
        The ends: a number, or ``"p2.5"`` for that percentile; the 1 % and 99 % quantiles by default.
    """
    from matplotlib.colors import Normalize

    values = values[np.isfinite(values)]
    if not len(values):
        return Normalize(0.0, 1.0), "neither"
    low, high = (
        float(np.quantile(values, default if limit is None else float(limit[1:]) / 100))
        if limit is None or isinstance(limit, str)
        else float(limit)
        for limit, default in zip((vmin, vmax), QUANTILES, strict=True)
    )
    # a constant, or one up to rounding
    least = CONSTANT * max(abs(low), 1.0)
    if high - low <= least and vmax is None:
        high = float(values.max()) if values.max() - low > least else low + 1.0
    below, above = bool(values.min() < low), bool(values.max() > high)
    return Normalize(low, high), {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]


def is_limit(value: Any) -> bool:
    """Whether a value is an end of a colour scale."""
    if isinstance(value, str):
        try:
            return value.startswith("p") and 0 <= float(value[1:]) <= 100
        except ValueError:
            return False
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(np.isfinite(value))

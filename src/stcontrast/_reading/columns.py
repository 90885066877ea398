"""Columns of `obs`: read from any AnnData, and as names by which donors, classes, slides and spots are told apart."""

from __future__ import annotations

import numbers
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["are_numbers", "is_missing", "look_alike", "names_of", "obs_column", "obsm_array"]

# what becomes of a missing value in a column that was made text; "NA" and "None" may be meant
MISSING: Final = ("", "nan", "<na>")
WHOLE: Final = re.compile(r"[+-]?\d+\.0+")


def obs_column(table: AnnData, key: str) -> pd.Series:
    """A column of `obs` in memory, also of an AnnData that was opened lazily."""
    column = table.obs[key]
    return column if isinstance(column, pd.Series) else column.to_series()


def obsm_array(table: AnnData, slot: str) -> NDArray[Any]:
    """A slot of `obsm` in memory, also of a data frame or an AnnData that was opened lazily."""
    values = np.asarray(table.obsm[slot])
    # a data frame of Arrow or nullable types gives objects
    return np.asarray(values, dtype=np.float64) if values.dtype.hasobject and are_numbers(values.ravel()) else values


def names_of(values: Any) -> NDArray[np.str_]:
    """Values (n,) as names. 1, 1.0, "1" and "1.0" are one name, as files differ in how they keep it; missing is "nan"."""
    codes, distinct = pd.factorize(pd.Series(values).astype(object), use_na_sentinel=False)
    names = np.array([_name_of(value) for value in distinct], dtype=np.str_)
    return names[codes] if len(names) else np.zeros(0, dtype=np.str_)


def is_missing(values: pd.Series) -> NDArray[np.bool_]:
    """Where a column has no value (n,): also an empty text, and "nan" or "<NA>", which a column that is made text keeps."""
    distinct = values.astype(object).drop_duplicates()
    missing = [value for value in distinct if isinstance(value, str) and value.strip().casefold() in MISSING]
    return (values.isna() | values.isin(missing)).to_numpy(dtype=np.bool_)


def are_numbers(values: Iterable[Any]) -> bool:
    """Whether all values are numbers; truth values are none."""
    return all(isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_) for value in values)


def look_alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in case, spaces around them, or leading zeros."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(re.sub(r"(?<!\d)0+(?=\d)", "", name.strip().casefold()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _name_of(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return str(value)
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real) and float(value).is_integer():
        return str(int(float(value)))
    text = "nan" if pd.isna(value) else str(value)
    return text.partition(".")[0] if WHOLE.fullmatch(text) else text

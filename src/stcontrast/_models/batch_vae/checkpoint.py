"""A saved scvi-tools model is a pickle: what it may hold, so that a stranger's file runs no code."""

from __future__ import annotations

import pickle
import re
import stat
from typing import TYPE_CHECKING, Any, Final
from zipfile import ZIP_STORED, BadZipFile, ZipFile

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_checkpoint"]

# what scvi-tools writes beside tensors: the registry (NumPy arrays of names) and the training's history (pandas), under
# the names that pandas 2 and 3, NumPy 1 and 2 give them. All of them only hold data.
SAFE: Final = (
    "_codecs.encode", "builtins.bytearray", "builtins.bytes", "builtins.dict", "builtins.set", "builtins.slice", "collections.OrderedDict",
    "collections.defaultdict", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar", "numpy.dtype", "numpy.ndarray",
    "pandas.Categorical", "pandas.CategoricalDtype", "pandas.DataFrame", "pandas.Index", "pandas.RangeIndex",
    "pandas.Series", "pandas.StringDtype", "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked",
    "pandas._libs.internals._unpickle_block", "pandas.arrays.ArrowStringArray", "pandas.arrays.StringArray",
    "pandas.core.arrays.categorical.Categorical", "pandas.core.arrays.string_.StringArray",
    "pandas.core.arrays.string_.StringDtype", "pandas.core.arrays.string_arrow.ArrowStringArray",
    "pandas.core.dtypes.dtypes.CategoricalDtype", "pandas.core.frame.DataFrame", "pandas.core.indexes.base.Index",
    "pandas.core.indexes.base._new_Index", "pandas.core.indexes.range.RangeIndex", "pandas.core.internals.blocks.new_block",
    "pandas.core.internals.managers.BlockManager", "pandas.core.internals.managers.SingleBlockManager",
    "pandas.core.series.Series", "pyarrow.lib._restore_array", "pyarrow.lib.py_buffer", "pyarrow.lib.type_for_alias",
)  # fmt: skip

MOST_BYTES: Final = 2**28
UNREADABLE: Final = (
    OSError, EOFError, BadZipFile, pickle.UnpicklingError, RuntimeError, ValueError, TypeError,
    AttributeError, LookupError, ImportError,
)  # fmt: skip


def check_checkpoint(path: Path) -> None:
    """Raise unless a file holds a scvi-tools model and nothing that could run code.

    Its pickle is read once with a list of what it may name; scvi-tools reads it again.

    Raises
    ------
    ValueError
        If it holds anything else, or cannot be read.
    """
    try:
        told = _what_is_wrong(path)
    except _UnknownError as error:
        told = f"it would run {error}"
    except UNREADABLE as error:
        told = (str(error) or type(error).__name__).splitlines()[0]
    if told:
        msg = f"No BatchAgnosticVAE can be read from {str(path)!r}: {told}. Copy it again, or ask whoever saved it."
        raise ValueError(msg)


def _what_is_wrong(path: Path) -> str:
    if not stat.S_ISREG(path.stat().st_mode):
        return "it is not a plain file"
    with ZipFile(path) as archive:
        inside = next((item for item in archive.infolist() if item.filename.endswith("/data.pkl")), None)
        if inside is None or inside.compress_type != ZIP_STORED or inside.file_size > MOST_BYTES:
            return "it is no checkpoint of torch"
        with archive.open(inside) as file:
            found = _Unpickler(file).load()
        # every entry has a checksum
        if (broken := archive.testzip()) is not None:
            return f"{broken} in it was changed"
    whole = isinstance(found, dict) and {"model_state_dict", "attr_dict"} <= found.keys()
    return "" if whole else "it holds something else"


class _UnknownError(Exception):
    """Something that a model does not need."""


class _Nothing:
    """Stands for a tensor."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    """Finds nothing but what only holds data; tensors are not made."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name.replace('__builtin__', 'builtins')}.{global_name}"
        if re.fullmatch(r"torch\.(_utils\._rebuild_(tensor_v2|parameter)|[A-Za-z]+Storage)", name):
            return _Nothing
        if name not in SAFE and not re.fullmatch(r"numpy\.dtypes\.[A-Za-z0-9]+DType", name):
            raise _UnknownError(name)
        return super().find_class(module_name, global_name)

    def persistent_load(self, _: Any) -> Any:
        return _Nothing()

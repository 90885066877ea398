"""What recognises the code of a method again that the package did not bring."""

from __future__ import annotations

from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final

from stcontrast.methods._base import Method

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["code_of"]

PACKAGE: Final = Method.__module__.partition(".")[0]
PLAIN: Final = (bool, int, float, str, bytes)


def code_of(cls: type) -> list[str]:
    """The byte code of a class, of its parents, and of what these use out of their own modules.

    Empty for what belongs to the package, which its version tells. Other modules are not followed.
    """
    found: list[str] = []
    _visit(cls, cls.__module__, found, set())
    return found


def _visit(item: Any, module: str, found: list[str], seen: set[int]) -> None:
    if isinstance(item, PLAIN):
        found.append(repr(item))
        return
    if id(item) in seen or getattr(item, "__module__", None) != module or module.partition(".")[0] == PACKAGE:
        return
    seen.add(id(item))
    if isinstance(item, FunctionType):
        found += [item.__qualname__, repr(item.__defaults__), repr(item.__kwdefaults__), *_described(item.__code__)]
        used = [item.__globals__.get(name) for name in item.__code__.co_names]
        # a cell is empty until what it holds is made
        used += [cell.cell_contents for cell in item.__closure__ or () if cell != type(cell)()]
        for part in used:
            _visit(part, module, found, seen)
    elif isinstance(item, type):
        for name, value in sorted(vars(item).items()):
            if not (isinstance(value, PLAIN) and name.startswith("__")):
                found.append(name)
                for part in _parts(value):
                    _visit(part, module, found, seen)
        for parent in item.__bases__:
            _visit(parent, parent.__module__, found, seen)


def _parts(value: Any) -> Iterator[Any]:
    """An attribute of a class, and the functions behind it."""
    yield value
    for name in ("__func__", "func", "fget", "fset"):
        yield getattr(value, name, None)


def _described(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _described(constant)
        else:
            # the order of a set changes from session to session
            yield repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)

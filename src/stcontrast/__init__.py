"""Expression and tissue subtypes from H&E, learnt from your own spatial transcriptomics, honest across donors."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = version("stcontrast")
__all__ = ["__version__", "datasets", "methods", "metrics", "models", "pl", "pp", "settings", "tl"]

if TYPE_CHECKING:
    from stcontrast import datasets, methods, metrics, models, pl, pp, tl
    from stcontrast._settings import settings

if "IPython" in sys.modules and find_spec("ipywidgets") is None:
    # in a notebook tqdm warns, once, of widgets that it can do without: libraries import this part of it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tqdm.auto


def __getattr__(name: str) -> Any:
    # torch and scvi take seconds to import: nothing is imported before it is used (PEP 562).
    if name == "settings":
        return import_module("stcontrast._settings").settings
    if name in __all__:
        return import_module(f"stcontrast.{name}")
    msg = f"module 'stcontrast' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)

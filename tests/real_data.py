"""Real data for tests: found beside the project, or in the folder named in ``STCONTRAST_TEST_DATA``."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

__all__ = ["require", "require_tool"]


def require(*parts: str) -> Path:
    """Path of a file or folder of the test data; the test that asks is skipped where it is absent."""
    path = _root().joinpath(*parts)
    if not path.exists():
        pytest.skip(f"test data {'/'.join(parts)} not found in {_root()} (name its folder in STCONTRAST_TEST_DATA)")
    return path


def require_tool(name: str) -> Any:
    """A script that makes test data, from the folder ``tools`` next to the data; the test is skipped where it is absent."""
    path = _root().with_name("tools") / f"{name}.py"
    if not path.exists():
        pytest.skip(f"{path.name} not found in {path.parent} (name the folder of the data in STCONTRAST_TEST_DATA)")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _root() -> Path:
    named = os.environ.get("STCONTRAST_TEST_DATA")
    return Path(named) if named else Path(__file__).parents[2] / "shared" / "data"

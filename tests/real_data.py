"""Real data for tests: found beside the project, or in the folder named in ``STCONTRAST_TEST_DATA``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["require"]


def require(*parts: str) -> Path:
    """Path of a file or folder of the test data; the test that asks is skipped where it is absent."""
    named = os.environ.get("STCONTRAST_TEST_DATA")
    root = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"test data {'/'.join(parts)} not found in {root} (name its folder in STCONTRAST_TEST_DATA)")
    return path

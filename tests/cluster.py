"""A dask cluster on this machine, for tests."""

from __future__ import annotations

import pytest

# workers are processes of their own: what they warn of is not what is tested
WARNINGS_OF_WORKERS = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed"),
    pytest.mark.filterwarnings("ignore:Port .* is already in use"),
]

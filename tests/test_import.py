from __future__ import annotations

import subprocess
import sys

import pytest

import stcontrast as stc

TIMED = """
import sys, time
start = time.perf_counter()
import stcontrast
elapsed = time.perf_counter() - start
print(elapsed, *(name for name in ("torch", "scvi", "spatialdata") if name in sys.modules))
"""


def test_import_is_quick_and_brings_no_heavy_package() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", TIMED], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    ]
    assert all(run[1:] == [] for run in runs)
    assert min(float(run[0]) for run in runs) < 0.3


def test_every_public_name_exists() -> None:
    assert set(stc.__all__) <= set(dir(stc))
    for name in stc.__all__:
        assert getattr(stc, name) is not None
    for module in (stc.pp, stc.tl, stc.pl, stc.methods, stc.metrics, stc.models, stc.datasets):
        assert module.__all__
        for name in module.__all__:
            assert getattr(module, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        stc.nonsense  # noqa: B018


def test_settings_and_version() -> None:
    assert stc.settings is stc.settings
    assert stc.__version__.count(".") == 2

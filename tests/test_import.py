from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import stcontrast as stc
import stcontrast.nn

if TYPE_CHECKING:
    from types import ModuleType

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


# what takes seconds, and no import of a part needs; anndata brings dask.array, xarray and zarr itself
HEAVY = (
    "distributed", "geopandas", "lightning", "matplotlib", "scanpy", "scipy.optimize", "scipy.stats", "scvi", "skimage",
    "sklearn", "spatialdata", "spatialdata_plot", "squidpy", "timm", "torch", "torchvision",
)  # fmt: skip
PARTS = ("pp", "tl", "pl", "methods", "metrics", "models", "datasets", "nn", "fitted", "cli")
LOADED = """
import importlib, sys
import anndata
before = set(sys.modules)
for part in {parts!r}:
    importlib.import_module(f"stcontrast.{{part}}")
    found = set({heavy!r}) & (set(sys.modules) - before)
    print(part, *sorted(found))
    before |= found
"""


def test_no_part_imports_a_heavy_package() -> None:
    # one process: anndata alone takes seconds
    code = LOADED.format(parts=PARTS, heavy=HEAVY)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == list(PARTS)


@pytest.mark.parametrize("package", [stc.models, stc.methods, stcontrast.nn], ids=lambda package: package.__name__)
def test_names_that_wait_are_listed_and_found(package: ModuleType) -> None:
    assert dir(package) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


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

"""The notebooks of the documentation run, and no library says anything in them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def run_notebooks() -> Any:
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "scripts/run_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gallery", "first_steps", "several_patients", "visium", "few_labels", "your_own", "paper"]
)
def test_a_notebook_runs(name: str) -> None:
    pytest.importorskip("nbclient")
    notebook = run_notebooks().executed(ROOT / f"docs/notebooks/{name}.ipynb")
    said = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stderr"
    ]
    # the one library that speaks at import, where ipywidgets is absent
    assert [text for text in said if "IProgress not found" not in text] == []
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 2

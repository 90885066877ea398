"""The notebooks of the documentation run, and no library says anything in them."""

from __future__ import annotations

import base64
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def run_notebooks() -> Any:
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "scripts/run_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SHORT = ["first_steps", "gallery", "visium", "your_own"]
LONG = ["several_patients", "whole_slide", "few_labels", "paper"]


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in (ROOT / "docs/notebooks").glob("*.ipynb")} == {*SHORT, *LONG}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) for name in SHORT]
    + [pytest.param(name, marks=pytest.mark.long) for name in LONG],
)
def test_a_notebook_runs(name: str) -> None:
    pytest.importorskip("nbclient")
    if name == "whole_slide":
        pytest.importorskip("wsidata")
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
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if {"image/png", "image/jpeg"} & set(output.get("data", {}))
    ]
    assert len(pictures) >= 2


@pytest.mark.parametrize("noise", [0, 120])
def test_a_picture_of_a_notebook_keeps_its_colour_bar(noise: int) -> None:
    script = pytest.importorskip("nbclient") and run_notebooks()
    bar = np.repeat(np.linspace(0, 255, 300).astype(np.uint8)[:, None], 20, axis=1)
    pixels = np.zeros((300, 400, 3), np.uint8)
    pixels[:, :20] = np.stack([bar, 255 - bar // 2, 128 + bar // 4], axis=-1)
    # the rest is a picture in which no two pixels are alike, or none
    pixels[:, 40:] = np.random.default_rng(0).integers(0, noise + 1, (300, 360, 3))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    [(kind, encoded)] = script.compressed(base64.b64encode(file.getvalue()).decode()).items()
    assert kind == ("image/jpeg" if noise else "image/png")
    decoded = base64.b64decode(encoded)
    assert len(decoded) < (0.7 * file.tell() if noise else script.LARGEST_PNG)
    kept = np.asarray(Image.open(io.BytesIO(decoded)).convert("RGB"))[:, 8].astype(int)
    assert np.abs(kept - pixels[:, 8]).max() <= (6 if noise else 0)

"""Execute the notebooks of the documentation in place, with small pictures.

    python scripts/run_notebooks.py [docs/notebooks/first_steps.ipynb ...]

A large picture becomes a JPEG, and what changes from run to run (times of cells, kernel) is left out.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"
# bytes of a picture that is kept without loss
LARGEST_PNG = 40_000
JPEG_QUALITY = 78


def executed(path: Path) -> Any:
    """A notebook with the output of its cells; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", record_timing=False)
    # elsewhere there may be no screen, and a backend that shows nothing
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # of `stcontrast`
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PATH": scripts}
    client.execute(cwd=str(path.parent), env=environment)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data |= compressed(data.pop("image/png"))
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def without_widgets_warning(notebook: Any) -> Any:
    """The notebook without what tqdm says, with a path of this machine, where ipywidgets is absent."""
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if "IProgress not found" not in output.get("text", "")]
    return notebook


def compressed(png: str) -> dict[str, str]:
    """A picture (base64) by its type: PNG without loss while it is small, else JPEG. Both keep a colour bar smooth."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    kind = "image/png"
    if file.tell() > LARGEST_PNG:
        file, kind = io.BytesIO(), "image/jpeg"
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return {kind: base64.b64encode(file.getvalue()).decode()}


def main() -> None:
    """Execute the notebooks that are named, or all."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        nbformat.write(without_widgets_warning(executed(path)), path)


if __name__ == "__main__":
    main()

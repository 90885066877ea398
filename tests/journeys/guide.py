"""The code of the guide's page on journeys, section by section, as a user would run it."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

__all__ = ["direct_crops", "follow", "sections"]

PAGE = Path(__file__).parents[2] / "docs/user_guide/journeys.md"


def sections() -> dict[str, str]:
    """Code of every section by its heading; the first are the imports."""
    first, *rest = re.split(r"^## (.+)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {"imports": first, **dict(zip(rest[::2], rest[1::2], strict=True))}
    return {name: "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)) for name, text in named.items()}  # fmt: skip


def follow(section: str) -> dict[str, Any]:
    """Run the code of a section in the working directory, and return all of its variables."""
    code = sections()
    names: dict[str, Any] = {}
    # readers and squidpy warn of what they will change; our own warnings are logged
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code["imports"] + code[section], f"<{section}>", "exec"), names)
    plt.close("all")
    return names


def direct_crops(pixels: np.ndarray, centers: np.ndarray, *, field_px: float, size_px: int) -> np.ndarray:
    """Crops cut from the full-resolution pixels and made smaller by Pillow, for centres whose crops lie inside."""
    picture = Image.fromarray(pixels)
    half = field_px / 2
    boxes = [(x - half, y - half, x + half, y + half) for x, y in centers]
    return np.stack(
        [np.asarray(picture.resize((size_px, size_px), Image.Resampling.BILINEAR, box=box)) for box in boxes]
    )

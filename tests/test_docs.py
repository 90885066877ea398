"""What the documentation says of the code and its tests."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import timm
from safetensors.torch import save_file

import stcontrast as stc
from stcontrast.methods._base import METHODS

ROOT = Path(__file__).parents[1]
# a download; a cluster, which tests of its own start
NOT_HERE = ("densenet121", "dask.distributed")
PROMISES = re.findall(r"`(tests/[^`]+)` \|$", (ROOT / "docs/user_guide/promises.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(set(PROMISES)))
def test_a_promise_names_a_test_that_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    assert f"def {function}" in (ROOT / file).read_text()


def test_every_promise_has_a_test() -> None:
    promises, _ = (ROOT / "docs/user_guide/promises.md").read_text().split("## Measured")
    rows = [line for line in promises.splitlines() if line.startswith("| ")]
    # four tables, each with a head of two lines
    assert len(rows) == len(PROMISES) + 4 * 2


def code_of(page: Path) -> list[str]:
    """The blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        "your_data", "new_slides", "whole_slides", "image_features", "encoders", "fit_predict_classify", "search",
        "gene_latent", "large_data", "evaluation", "fine_tuning",
    ],
)  # fmt: skip
def test_the_code_of_a_page_of_the_guide_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Block after block, as the first page of the guide says. What a comment says of a `print` is printed."""
    if page == "whole_slides":
        pytest.importorskip("lazyslide", reason="lazyslide is not installed")
    monkeypatch.chdir(tmp_path)
    blocks = code_of(ROOT / f"docs/user_guide/{page}.md")
    blocks = [block for block in blocks if not any(name in block for name in NOT_HERE)]
    names: dict[str, Any] = {"stc": stc, "sdata": stc.datasets.toy(n_donors=3, n_spots=60, n_genes=60)}
    if "mobilenetv2_100.safetensors" in "".join(blocks):  # the file of the user
        save_file(timm.create_model("mobilenetv2_100").state_dict(), "mobilenetv2_100.safetensors")
    expected = []
    for number, block in enumerate(blocks):
        # other packages warn of what they will change; our own warnings are logged
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(block, f"{page}.md, block {number}", "exec"), names)
        expected += re.findall(r"^print\(.*\)  # (\(\d.*|\d+\.?\d*|True|False|\[.*|\{.*|Point)$", block, re.MULTILINE)
    plt.close("all")
    said = capsys.readouterr().out.splitlines()
    assert [line for line in expected if line not in said] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", ["others", "your_own"])
def test_the_code_of_a_page_on_methods_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(code_of(ROOT / f"docs/methods/{page}.md"))
    names: dict[str, Any] = {"__name__": page}
    before = dict(METHODS)
    try:
        exec(compile(code, page, "exec"), names)
    finally:
        METHODS.clear()
        METHODS.update(before)
    assert "ridge" in capsys.readouterr().out
    assert names["cv"].failures.empty

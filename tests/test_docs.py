"""What the documentation says of the code and its tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from stcontrast.methods._base import METHODS

ROOT = Path(__file__).parents[1]
PROMISES = re.findall(r"`(tests/[^`]+)` \|$", (ROOT / "docs/user_guide/promises.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(set(PROMISES)))
def test_a_promise_names_a_test_that_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    assert f"def {function}" in (ROOT / file).read_text()


def test_every_promise_has_a_test() -> None:
    rows = [line for line in (ROOT / "docs/user_guide/promises.md").read_text().splitlines() if line.startswith("| ")]
    # four tables, each with a head of two lines
    assert len(rows) == len(PROMISES) + 4 * 2


@pytest.mark.slow
@pytest.mark.parametrize("page", ["others", "your_own"])
def test_the_code_of_a_page_on_methods_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / f"docs/methods/{page}.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    names: dict[str, Any] = {"__name__": page}
    before = dict(METHODS)
    try:
        exec(compile(code, page, "exec"), names)
    finally:
        METHODS.clear()
        METHODS.update(before)
    assert "ridge" in capsys.readouterr().out
    assert names["cv"].failures.empty

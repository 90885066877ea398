"""What the documentation says of the code and its tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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

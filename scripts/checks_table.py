"""Make the page "What we check" from the tests: one line for each test that is marked as a situation.

    python scripts/checks_table.py          # print the page
    python scripts/checks_table.py --write  # write docs/user_guide/checks.md

The mark is ``@pytest.mark.situation(group, situation, outcome, message)``. The test compares the message with what the
package says, and the parameters of the test are the variants. ``tests/test_checks_table.py`` fails if the committed page
is out of date.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/user_guide/checks.md"
GROUPS = (
    "µm per pixel", "Images", "Tables, shapes and images", "Image features", "Counts", "Genes", "Donors, slides, labels",
    "Prediction",
)  # fmt: skip
OUTCOMES = (
    "error",
    "warning",
    "works",
    "not used",
    "derived correctly, or an error asks for it",
    "an error asks for it",
)
# parameters that say what is expected, and calls, are no situations
MOST_VARIANTS = 12
HEAD = """# What we check

This page lists what happens with unusual or wrong input. An error is raised before any work starts, and your data are not
changed. A warning goes to the logger `stcontrast`. `scripts/checks_table.py` makes the page from the tests: each line is a
test, and the variants are its parameters.
"""


class Situation(NamedTuple):
    """A line of the page."""

    group: str
    situation: str
    outcome: str
    message: str
    variants: tuple[str, ...]


def situations() -> list[Situation]:
    """All situations of the tests, group by group, in the order of the files."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    marked = sorted(
        path for path in (ROOT / "tests").rglob("test_*.py") if "mark.situation(" in path.read_text("utf-8")
    )
    found = [
        situation
        for path in marked
        for test in vars(importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))).values()
        if inspect.isfunction(test) and (situation := of_test(test)) is not None
    ]
    return sorted(found, key=lambda one: GROUPS.index(one.group))


def of_test(test: Callable[..., Any]) -> Situation | None:
    """The situation of a test; `None` if it has none.

    Raises
    ------
    ValueError
        If group or outcome are unknown, or the test has nothing that could fail without the error, warning or message.
    """
    marks = getattr(test, "pytestmark", [])
    named = next((mark.args for mark in marks if mark.name == "situation"), None)
    if named is None:
        return None
    group, situation, outcome, *said = named
    message = said[0] if said else ""
    source = inspect.getsource(test)
    body = source[source.index("def ") :]
    wants = {"error": "pytest.raises", "warning": "caplog"}.get(outcome, "")
    known = group in GROUPS and outcome in OUTCOMES
    # the message stands in the test: in its body, or among its parameters; patterns escape some letters
    told = source.replace("\\", "").split("\n")
    if not known or wants not in body or not any(message in line for line in told if "mark.situation(" not in line):
        msg = f"{test.__module__}.{test.__name__}: {named} is no situation that this test checks."
        raise ValueError(msg)
    variants = [", ".join(names) for mark in marks if mark.name == "parametrize" if (names := _names(mark))]
    return Situation(group, situation, outcome, message or _matched(body), tuple(variants))


def _matched(body: str) -> str:
    """What a test without a message of its own matches an error with, up to the first wild card."""
    found = re.search(r'match=rf?"(.*?)"|match="(.*?)"', body)
    pattern = next((group for group in found.groups() if group), "") if found else ""
    text = re.split(r"\.\*|[{|(]", pattern.replace("\\", ""))[0].strip(" .,")
    return text if len(text) > 2 else ""


def _names(parametrize: Any) -> tuple[str, ...]:
    """Names of the values of a parameter, as pytest has them; none where they have no names of their own."""
    ids = parametrize.kwargs.get("ids")
    values = list(parametrize.args[1])
    if ids is not None and not callable(ids):
        names = [str(name) for name in ids]
    else:
        names = [_name(value, ids) for value in values]
    return tuple(names) if all(names) and len(names) <= MOST_VARIANTS else ()


def _name(value: Any, ids: Callable[[Any], Any] | None) -> str:
    if getattr(value, "id", None) is not None:
        return str(value.id)
    if ids is not None:
        return str(ids(value))
    return str(value) if isinstance(value, str | int | float) else ""


def page(found: Iterable[Situation]) -> str:
    """The page in Markdown."""
    parts = [HEAD]
    for group, lines in groupby(found, key=lambda one: one.group):
        parts.append(
            f"\n## {group}\n\n| Situation | What happens | What it says | Variants in the tests |\n| --- | --- | --- | --- |\n"
        )
        for one in lines:
            message = f"`` {one.message} ``" if "`" in one.message else f"`{one.message}`" if one.message else ""
            cells = (one.situation, one.outcome, message, "; ".join(one.variants))
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def main() -> None:
    """Print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page instead of printing it")
    text = page(situations())
    if parser.parse_args().write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()

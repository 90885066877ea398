from __future__ import annotations

from pathlib import Path

import pytest
from scripts.architecture import ROWS, between_parts, circles, draw, imports, upward

PICTURE = Path(__file__).parents[1] / "docs" / "_static" / "architecture.svg"
MADE_UP = {
    "": "",
    "tl/__init__": "from stcontrast.tl._fit import fit",
    "tl/_fit": "from stcontrast.methods import Method\nfrom stcontrast import _keys",
    "methods/__init__": "from stcontrast.methods._base import Method",
    "methods/_base": "import numpy as np\nfrom stcontrast import _keys",
    "_keys": "",
}


@pytest.fixture
def made_up(tmp_path):
    """A small package of three parts: write some of its modules anew, and read its imports."""

    def graph(**changed: str) -> dict[str, set[str]]:
        for name, text in (MADE_UP | changed).items():
            path = tmp_path / "stcontrast" / f"{name or '__init__'}.py"
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text)
        return imports(tmp_path)

    return graph


def test_no_module_imports_itself_through_others():
    assert circles(imports()) == []


def test_imports_run_downward_only():
    assert upward(imports()) == []


def test_the_committed_picture_is_the_current_one():
    assert PICTURE.read_text(encoding="utf-8") == draw(imports()), (
        "The picture is out of date: python scripts/architecture.py --draw docs/_static/architecture.svg"
    )


def test_every_part_is_in_the_picture():
    # it is three boxes wide
    assert max(map(len, ROWS)) <= 3


def test_imports_are_read_from_the_code(made_up):
    graph = made_up()
    assert graph["tl._fit"] == {"methods", "_keys"}
    assert graph["methods._base"] == {"_keys"}
    assert circles(graph) == upward(graph) == []


def test_a_circle_is_found(made_up):
    # in a function, or for types only: it is an import all the same
    graph = made_up(_keys="def late():\n    from stcontrast.tl._fit import fit")
    assert circles(graph) == [["_keys", "methods", "methods._base", "tl._fit"]]


@pytest.mark.parametrize(
    ("module", "text", "found"),
    [
        ("_keys", "from stcontrast.methods import Method", "_keys imports methods"),
        ("methods/_base", "import stcontrast as stc\nstc.tl.fit", "methods._base imports stcontrast"),
        ("methods/_base", "import stcontrast.tl", "methods._base imports tl"),
        ("rest", "", "rest: no row in scripts/architecture.py"),
    ],
)
def test_an_upward_import_is_found(made_up, module, text, found):
    assert found in upward(made_up(**{module: text}))


def test_an_import_that_another_one_implies_is_not_a_step(made_up):
    steps, others = between_parts(made_up())
    assert (steps["tl"], others["tl"]) == (["methods"], ["_keys"])
    assert (steps["methods"], others["methods"]) == (["_keys"], [])


def test_the_picture_depends_on_the_imports_alone(made_up):
    picture = draw(made_up())
    assert picture == draw(made_up(rest="", _keys="x = 1"))
    assert picture != draw(made_up(**{"methods/_base": ""}))

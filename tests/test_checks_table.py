from __future__ import annotations

import pytest
from scripts.checks_table import PAGE, Situation, of_test, page, situations


def test_the_committed_page_is_the_current_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(situations()), (
        "The page is out of date: python scripts/checks_table.py --write"
    )


@pytest.mark.parametrize(
    ("marked", "found"),
    [
        (("Counts", "a", "warning", "said"), Situation("Counts", "a", "warning", "said", ("one, two",))),
        (("Counts", "a", "error"), None), (("Counts", "a", "warning", "unsaid"), None), (("Else", "a", "warning"), None),
        (("Counts", "a", "sometimes"), None),
    ],
    ids=["right", "no error in it", "a message that it does not check", "unknown group", "unknown outcome"],
)  # fmt: skip
def test_a_line_must_be_what_its_test_checks(marked: tuple[str, ...], found: Situation | None) -> None:
    @pytest.mark.situation(*marked)
    @pytest.mark.parametrize("kind", [1, 2], ids=["one", "two"])
    def checks(kind: int, caplog: pytest.LogCaptureFixture) -> None:
        assert "said" in caplog.text

    if found is not None:
        assert of_test(checks) == found
        return
    with pytest.raises(ValueError, match="is no situation that this test checks"):
        of_test(checks)


def test_other_tests_are_no_lines() -> None:
    assert of_test(test_other_tests_are_no_lines) is None

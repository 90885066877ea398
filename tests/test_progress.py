from __future__ import annotations

from typing import TYPE_CHECKING

import stcontrast as stc
from stcontrast._progress import progress

if TYPE_CHECKING:
    import pytest


def test_one_switch_turns_bars_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stc.settings, "progress", True)
    assert not progress([1, 2], description="x").disable
    monkeypatch.setattr(stc.settings, "progress", False)
    assert progress([1, 2], description="x").disable


def test_a_bar_hands_on_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), description="x", total=3)) == ["a", "b", "c"]
    # quick loops show nothing
    assert "100%" not in capsys.readouterr().err

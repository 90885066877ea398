from __future__ import annotations

import pytest
from scripts.schedules_table import PAGE, optimiser, page, steps, trained_methods

from stcontrast.methods.published import Bleep, Mclstexp, Nh2st

PUBLISHED = {
    Bleep: (5593, 3, 10, 1500),
    Mclstexp: (11548, 32, 90, 8100),
}


def test_the_committed_page_is_the_current_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "The page is out of date: python scripts/schedules_table.py --write"
    )


@pytest.mark.parametrize(("kind", "known"), PUBLISHED.items(), ids=["bleep", "mclstexp"])
def test_at_the_size_of_the_published_data_the_steps_are_the_published_ones(kind, known) -> None:
    n_spots, n_slides, an_epoch, in_all = known
    assert steps(kind(), n_spots, n_slides)[:2] == (an_epoch, in_all)
    assert kind.published.n_steps == in_all


@pytest.mark.parametrize(("kind", "expected"), [(Mclstexp, 11250), (Bleep, 4650)])
def test_steps_grow_with_the_data(kind, expected) -> None:
    """Of four slides of 4000 spots, as many as the original takes."""
    assert steps(kind(), 16000, 4).all == expected


def test_the_code_of_nh2st_takes_the_steps_of_its_readme() -> None:
    assert steps(Nh2st(variant="code"), 11548, 32)[:2] == (1443, 288600)
    assert Nh2st.published.n_steps == 288600


def test_every_method_is_on_the_page() -> None:
    text = page()
    assert {f"## {title}" for title in trained_methods()} == {
        line for line in text.splitlines() if line.startswith("## ")
    }


@pytest.mark.parametrize("kind", PUBLISHED)
def test_rates_are_those_published(kind) -> None:
    _, rate, decay, falls = optimiser(kind())
    there = kind.published
    assert (rate, decay, falls) == (there.learning_rate, there.weight_decay, "")

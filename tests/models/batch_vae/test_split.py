from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stcontrast._models.batch_vae._split import hold_out_groups

SLIDES = pd.Series(["A1", "B1", "A2", "A1", "B1", "C1", "A2"], name="slide")


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.sampled_from("ABCDE"), min_size=2, max_size=40).filter(lambda g: len(set(g)) > 1),
    data=st.data(),
    seed=st.integers(0, 1000),
)
def test_whole_groups_and_every_row_once(groups: list[str], data: st.DataObject, seed: int):
    n_held_out = data.draw(st.integers(0, len(set(groups)) - 1))
    split = hold_out_groups(pd.Series(groups, name="donor"), n_held_out, seed=seed)
    names = np.array(groups)
    assert sorted([*split.train, *split.validation]) == list(range(len(groups)))
    assert set(names[split.validation]) == set(split.held_out)
    assert not set(names[split.train]) & set(split.held_out)
    assert len(split.held_out) == n_held_out


def test_named_groups():
    split = hold_out_groups(SLIDES, ["C1", "A1"], seed=0)
    assert split.held_out == ["A1", "C1"]
    np.testing.assert_array_equal(split.validation, [0, 3, 5])
    assert hold_out_groups(SLIDES, "B1", seed=0).held_out == ["B1"]


def test_the_draw_depends_on_the_seed_alone():
    draws = [hold_out_groups(SLIDES, 1, seed=seed).held_out[0] for seed in range(20)]
    assert draws == [hold_out_groups(SLIDES, 1, seed=seed).held_out[0] for seed in range(20)]
    assert len(set(draws)) > 1


def test_group_that_is_not_there():
    with pytest.raises(ValueError, match=r"groups \['Z9'\] are not in 'slide', which has \['A1', 'A2', 'B1', 'C1'\]"):
        hold_out_groups(SLIDES, ["A1", "Z9"], seed=0)


@pytest.mark.parametrize("held_out", [4, -1, ["A1", "A2", "B1", "C1"]])
def test_something_must_be_left(held_out: int | list[str]):
    with pytest.raises(ValueError, match="at least one must be left"):
        hold_out_groups(SLIDES, held_out, seed=0)


def test_a_single_group_is_trained_on_whole_and_said_so(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        split = hold_out_groups(pd.Series(["A"] * 5, name="donor"), 1, seed=0)
    assert len(split.train) == 5
    assert len(split.validation) == 0
    assert "All 5 spots are of one group (A)" in caplog.text

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stcontrast._models.batch_vae.training import hold_out_groups

SLIDES = pd.Series(["A1", "B1", "A2", "A1", "B1", "C1", "A2"], name="slide")


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.sampled_from("ABCDE"), min_size=2, max_size=40).filter(lambda g: len(set(g)) > 1),
    data=st.data(),
    seed=st.integers(0, 1000),
)
def test_whole_groups_and_every_row_once(groups: list[str], data: st.DataObject, seed: int):
    n_held_out = data.draw(st.integers(0, len(set(groups)) - 1))
    train, validation = hold_out_groups(pd.Series(groups, name="donor"), n_held_out, seed=seed)
    names = np.array(groups)
    assert sorted([*train, *validation]) == list(range(len(groups)))
    assert not set(names[train]) & set(names[validation])
    assert len(set(names[validation])) == n_held_out


def test_named_groups():
    np.testing.assert_array_equal(hold_out_groups(SLIDES, ["C1", "A1"], seed=0)[1], [0, 3, 5])
    np.testing.assert_array_equal(hold_out_groups(SLIDES, "B1", seed=0)[1], [1, 4])


def test_the_draw_depends_on_the_seed_alone():
    first, second = ([hold_out_groups(SLIDES, 1, seed=seed)[1].tolist() for seed in range(20)] for _ in range(2))
    assert first == second
    assert len(set(map(tuple, first))) > 1


def test_a_missing_group_is_an_error():
    with pytest.raises(ValueError, match=r"groups \['Z9'\] are not in 'slide', which has \['A1', 'A2', 'B1', 'C1'\]"):
        hold_out_groups(SLIDES, ["A1", "Z9"], seed=0)


@pytest.mark.parametrize("held_out", [4, -1, ["A1", "A2", "B1", "C1"]])
def test_one_group_must_be_left_to_train_on(held_out: int | list[str]):
    with pytest.raises(ValueError, match="at least one must be left"):
        hold_out_groups(SLIDES, held_out, seed=0)


def test_a_single_group_is_trained_on_and_a_message_says_so(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        train, validation = hold_out_groups(pd.Series(["A"] * 5, name="donor"), 1, seed=0)
    assert len(train) == 5
    assert len(validation) == 0
    assert "All 5 spots belong to one group (A)" in caplog.text

from __future__ import annotations

import pytest
from scripts.plant_faults import FAULTS, ROOT, SRC


@pytest.mark.parametrize("fault", FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_can_be_planted_and_names_tests_that_exist(fault):
    _, path, before, after, tests = fault
    assert (ROOT / SRC / path).read_text().count(before) == 1
    assert before != after
    assert all((ROOT / test).exists() for test in tests.split())

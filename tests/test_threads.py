from __future__ import annotations

import pytest
import torch

from stcontrast._training import one_thread


def test_threads_are_put_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="half-way"), one_thread():
            raise RuntimeError("half-way")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

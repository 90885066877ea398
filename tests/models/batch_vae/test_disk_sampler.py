from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("annbatch")

from stcontrast._models.batch_vae.disk_sampler import ChosenRows


def minibatches(sampler: ChosenRows) -> list[np.ndarray[Any, Any]]:
    return [request["requests"][split] for request in sampler.sample(1000) for split in request["splits"]]


@settings(deadline=None, max_examples=60)
@given(
    n_rows=st.integers(1, 120),
    batch_size=st.integers(1, 50),
    chunk_size=st.integers(1, 40),
    n_in_memory=st.integers(1, 60),
    shuffled=st.booleans(),
)
def test_every_row_once_in_full_minibatches_of_bounded_reads(
    n_rows: int, batch_size: int, chunk_size: int, n_in_memory: int, shuffled: bool
):
    rows = np.sort(np.random.default_rng(n_rows).choice(1000, size=n_rows, replace=False))
    rng = np.random.default_rng(0) if shuffled else None
    sampler = ChosenRows(rows, batch_size=batch_size, chunk_size=chunk_size, n_in_memory=n_in_memory, rng=rng)
    reads = [len(request["requests"]) for request in sampler.sample(1000)]
    batches = minibatches(sampler)
    assert max(reads) <= max(n_in_memory, batch_size)
    assert len(batches) == sampler.n_batches(1000)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), rows)
    if not shuffled:
        np.testing.assert_array_equal(np.concatenate(batches), rows)
    assert (sampler.batch_size, sampler.shuffle) == (batch_size, shuffled)


def test_neighbours_are_read_together_and_chunks_in_a_new_order_each_pass():
    sampler = ChosenRows(np.arange(100), batch_size=10, chunk_size=5, n_in_memory=20, rng=np.random.default_rng(1))
    first, second = ([request["requests"] for request in sampler.sample(100)] for _ in range(2))
    for read in first:
        chunks = read.reshape(4, 5)
        np.testing.assert_array_equal(chunks, chunks[:, :1] + np.arange(5))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))

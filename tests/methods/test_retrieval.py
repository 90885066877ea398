from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stcontrast.methods import _retrieval
from stcontrast.methods._retrieval import Neighbors, combine, most_similar, retrieve

METRICS = ["cosine", "l2", "l1"]
WEIGHTINGS = ["uniform", "inverse_square", "exponential", "similarity"]

grids = arrays(np.float32, st.tuples(st.integers(1, 8), st.just(2)), elements=st.integers(-2, 2).map(float))


def plain_distance(a: np.ndarray, b: np.ndarray, metric: str) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    if metric == "l2":
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    if metric == "l1":
        return sum(abs(x - y) for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(sum(a**2) * sum(b**2))
    return 1.0 if lengths == 0 else 1.0 - sum(a * b) / lengths


def plain_ids(query: np.ndarray, bank: np.ndarray, k: int, metric: str) -> list[list[int]]:
    ids = []
    for one in query:
        # equal in the eleventh digit: of those, the lower row
        ranked = sorted((round(plain_distance(one, row, metric), 11), j) for j, row in enumerate(bank))
        ids.append([j for _, j in ranked[:k]])
    return ids


def plain_weights(query: np.ndarray, chosen: np.ndarray, weights: str, metric: str) -> np.ndarray:
    if weights == "similarity":
        raw = [max(0.0, 1.0 - plain_distance(query, row, "cosine")) for row in chosen]
        raw = [value if value > 1e-12 else 0.0 for value in raw]
        raw = raw if sum(raw) > 0 else [1.0] * len(chosen)
    elif weights == "uniform":
        raw = [1.0] * len(chosen)
    else:
        squared = [plain_distance(query, row, metric) ** 2 for row in chosen]
        if weights == "exponential":
            raw = [math.exp(-(value - min(squared))) for value in squared]
        elif min(squared) == 0:
            raw = [float(value == 0) for value in squared]
        else:
            raw = [1 / value for value in squared]
    return np.array(raw) / sum(raw)


def embeddings(n_queries: int = 12, n_bank: int = 40, d: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n_queries, d)).astype(np.float32), rng.normal(size=(n_bank, d)).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weights", WEIGHTINGS)
@pytest.mark.parametrize("weight_metric", ["l2", "l1"])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_neighbours_and_weights_are_those_of_a_loop(metric, weights, weight_metric, k):
    query, bank = embeddings()
    found = retrieve(query, bank, k=k, metric=metric, weights=weights, weight_metric=weight_metric)
    assert found.ids.tolist() == plain_ids(query, bank, k, metric)
    for q, ids, of_row in zip(query, found.ids, found.weights, strict=True):
        np.testing.assert_allclose(of_row, plain_weights(q, bank[ids], weights, weight_metric), atol=1e-9)


@pytest.mark.parametrize("metric", ["l2", "l1"])
@given(query=grids, bank=grids, k=st.integers(1, 9))
def test_of_equally_near_rows_the_lower_one_comes_first(metric, query, bank, k):
    assert retrieve(query, bank, k=k, metric=metric).ids.tolist() == plain_ids(query, bank, min(k, len(bank)), metric)


@given(query=grids, bank=grids, k=st.integers(1, 9))
def test_neighbours_by_cosine_are_the_nearest_ones_where_some_tie(query, bank, k):
    """Rows of the same direction and another length tie up to rounding: which of them is taken is open."""
    found = retrieve(query, bank, k=k).ids
    for q, ids, expected in zip(query, found, plain_ids(query, bank, k, "cosine"), strict=True):
        assert len(set(ids.tolist())) == len(ids)
        distances = [[plain_distance(q, bank[j], "cosine") for j in rows] for rows in (ids, expected)]
        np.testing.assert_allclose(distances[0], distances[1], atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weights", WEIGHTINGS)
@pytest.mark.parametrize("weight_metric", ["l2", "l1"])
@given(query=grids, bank=grids, k=st.integers(1, 9))
def test_weights_on_a_grid_are_those_of_a_loop(metric, weights, weight_metric, query, bank, k):
    found = retrieve(query, bank, k=k, metric=metric, weights=weights, weight_metric=weight_metric)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1)
    assert (found.weights >= 0).all()
    for q, ids, of_row in zip(query, found.ids, found.weights, strict=True):
        similarity = [1 - plain_distance(q, bank[j], "cosine") for j in ids]
        if weights == "similarity" and max(similarity) < 1e-9:
            # right angles: no weight but that of rounding
            continue
        np.testing.assert_allclose(of_row, plain_weights(q, bank[ids], weights, weight_metric), atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weights", WEIGHTINGS)
@pytest.mark.parametrize("chunk", [1, 41, 100, 130])
def test_chunks_do_not_change_the_result(monkeypatch, metric, weights, chunk):
    query, bank = embeddings()
    values = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    options: dict[str, Any] = {"k": 7, "metric": metric, "weights": weights}
    whole = retrieve(query, bank, **options)
    expected = combine(whole, values)
    monkeypatch.setattr(_retrieval, "CHUNK", chunk)
    parts = retrieve(query, bank, **options)
    np.testing.assert_array_equal(parts.ids, whole.ids)
    np.testing.assert_allclose(parts.weights, whole.weights, atol=1e-12)
    np.testing.assert_allclose(combine(parts, values), expected, atol=1e-6)


def test_more_than_there_are_is_all():
    query, bank = embeddings(n_bank=3)
    found = retrieve(query, bank, k=50)
    assert found.ids.shape == found.weights.shape == (12, 3)
    np.testing.assert_array_equal(np.sort(found.ids, axis=1), np.tile([0, 1, 2], (12, 1)))


def test_no_query():
    _, bank = embeddings()
    found = retrieve(np.zeros((0, 5), dtype=np.float32), bank, k=4)
    assert found.ids.shape == (0, 4)
    assert combine(found, bank).shape == (0, 5)


def test_exact_matches_share_all_the_weight():
    bank = np.array([[0, 1], [2, 0], [0, 1], [0, 1.5]], dtype=np.float32)
    found = retrieve(bank[:1], bank, k=4, metric="l2", weights="inverse_square")
    assert found.ids.tolist() == [[0, 2, 3, 1]]
    np.testing.assert_array_equal(found.weights, [[0.5, 0.5, 0, 0]])


@pytest.mark.parametrize("gap", [1e-20, 1e-45])
def test_matches_that_are_all_but_exact_keep_weights_finite(gap):
    bank = np.array([[gap, 0], [1, 0]], dtype=np.float32)
    found = retrieve(np.zeros((1, 2), dtype=np.float32), bank, k=2, metric="l2", weights="inverse_square")
    np.testing.assert_allclose(found.weights, [[1, 0]], atol=1e-12)


def test_far_neighbours_keep_exponential_weights_finite():
    bank = np.array([[1000, 0], [1001, 0]], dtype=np.float32)
    found = retrieve(np.zeros((1, 2), dtype=np.float32), bank, k=2, metric="l2", weights="exponential")
    np.testing.assert_array_equal(found.weights, [[1, 0]])


@pytest.mark.parametrize("weights", WEIGHTINGS)
def test_embeddings_of_length_zero_are_as_far_as_a_right_angle(weights):
    bank = np.array([[-1, 0], [0, 0], [1, 0]], dtype=np.float32)
    found = retrieve(np.array([[2, 0], [0, 0]], dtype=np.float32), bank, k=3, weights=weights)
    assert found.ids.tolist() == [[2, 1, 0], [0, 1, 2]]
    assert np.isfinite(found.weights).all()
    if weights == "similarity":
        np.testing.assert_allclose(found.weights, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])


def test_length_matters_to_distances_and_not_to_the_cosine():
    query = np.array([[1, 0.2]], dtype=np.float32)
    bank = np.array([[100, 20], [1, 0]], dtype=np.float32)
    assert retrieve(query, bank, k=1, metric="cosine").ids.tolist() == [[0]]
    assert retrieve(query, bank, k=1, metric="l2").ids.tolist() == [[1]]
    # weights are by distance, whatever the neighbours were found by
    by_distance = retrieve(query, bank, k=2, metric="cosine", weights="inverse_square")
    assert by_distance.ids.tolist() == [[0, 1]]
    assert by_distance.weights[0, 1] > 0.99


@pytest.mark.parametrize("weights", WEIGHTINGS)
def test_a_prediction_is_the_weighted_mean(weights):
    query, bank = embeddings()
    values = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    found = retrieve(query, bank, k=5, weights=weights)
    expected = [
        sum(w * values[j].astype(np.float64) for w, j in zip(of_row, ids, strict=True))
        for of_row, ids in zip(found.weights, found.ids, strict=True)
    ]
    predicted = combine(found, values)
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, expected, atol=1e-6)
    assert (predicted <= values[found.ids].max(axis=1) + 1e-6).all()


def test_effective_k():
    found = Neighbors(np.zeros((3, 4), dtype=np.int64), np.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]]))
    np.testing.assert_allclose(found.effective_k, [4, 1, 2])
    query, bank = embeddings()
    np.testing.assert_allclose(retrieve(query, bank, k=9).effective_k, 9)
    weighted = retrieve(query, bank, k=9, weights="inverse_square").effective_k
    assert (weighted >= 1).all()
    assert (weighted < 9).all()


def test_histogram_counts_the_weight_of_each_group():
    found = Neighbors(np.array([[0, 1, 3], [2, 2, 1]]), np.array([[0.5, 0.3, 0.2], [0.4, 0.1, 0.5]]))
    shares = found.histogram(np.array([0, 2, 0, 2]), 4)
    np.testing.assert_allclose(shares, [[0.5, 0, 0.5, 0], [0.5, 0, 0.5, 0]])


@pytest.mark.parametrize("weights", WEIGHTINGS)
def test_histograms_sum_to_one(weights):
    query, bank = embeddings()
    group = np.random.default_rng(2).integers(0, 3, size=40)
    found = retrieve(query, bank, k=9, weights=weights)
    shares = found.histogram(group, 3)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    for row, ids, of_row in zip(shares, found.ids, found.weights, strict=True):
        np.testing.assert_allclose(row, [of_row[group[ids] == code].sum() for code in range(3)])


def test_equal_rows_tie_in_cosine_too():
    rng = np.random.default_rng(0)
    query, bank = (rng.normal(size=(n, 7)).astype(np.float32) for n in (50, 20))
    doubled = np.concatenate([bank, bank])
    ids = retrieve(query, doubled, k=5).ids
    for row in ids:
        for other in row[row >= 20]:
            assert other - 20 in row
    assert (retrieve(query, doubled, k=1).ids < 20).all()


def unit(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 50), n_bank=st.integers(1, 30))
def test_the_most_similar_rows_are_those_of_a_loop(seed, k, n_bank):
    query, bank = unit(6, 4, seed), unit(n_bank, 4, seed + 1)
    ids, similarity = most_similar(query, bank, k=k)
    assert ids.shape == similarity.shape == (6, min(k, n_bank))
    assert similarity.dtype == np.float32
    for row, chosen, cosines in zip(query, ids, similarity, strict=True):
        cosine = [float(np.dot(row.astype(np.float64), other)) for other in bank]
        ranked = sorted(range(n_bank), key=lambda j, cosine=cosine: -cosine[j])[:k]
        np.testing.assert_allclose(cosines, [cosine[j] for j in ranked], atol=1e-6)
        np.testing.assert_allclose([cosine[j] for j in chosen], cosines, atol=1e-6)
        assert len(set(chosen)) == len(chosen)


def test_of_equally_similar_rows_the_lower_one():
    """Also at the last place, where a partition may take any. The products of these embeddings are exact."""
    rng = np.random.default_rng(0)
    bank = np.eye(4, dtype=np.float32)[rng.integers(0, 4, 200)]
    query = np.concatenate([np.eye(4), [[0.5, 0.5, 0.5, 0.5]]]).astype(np.float32)
    for k in (1, 3, 30, 70, 199, 200):
        ids, similarity = most_similar(query, bank, k=k)
        cosine = query @ bank.T
        expected = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_array_equal(similarity, np.take_along_axis(cosine, expected, axis=1))


@pytest.mark.parametrize("chunk", [1, 40, 130, 2**20])
def test_the_most_similar_rows_do_not_depend_on_chunks(monkeypatch, chunk):
    query, bank = unit(23, 5, 0), unit(40, 5, 1)
    whole = most_similar(query, bank, k=7)
    monkeypatch.setattr(_retrieval, "CHUNK", chunk)
    parts = most_similar(query, bank, k=7)
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_allclose(parts[1], whole[1], atol=1e-6)
    assert most_similar(query[:0], bank, k=7)[0].shape == (0, 7)

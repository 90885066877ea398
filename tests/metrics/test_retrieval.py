from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stcontrast.metrics import _embeddings, retrieval_recall


def embeddings(n: int = 60, d: int = 8, *, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gene = rng.normal(size=(n, d)).astype(np.float32)
    return (gene + noise * rng.normal(size=gene.shape)).astype(np.float32), gene


def one_slide(n: int) -> np.ndarray:
    return np.zeros(n, dtype=int)


def by_hand(image: np.ndarray, gene: np.ndarray, k: int) -> float:
    found = 0
    for i, query in enumerate(image):
        alike = [query @ other / np.linalg.norm(query) / np.linalg.norm(other) for other in gene]
        found += i in np.argsort(alike)[::-1][:k]
    return found / len(image)


@given(n=st.integers(1, 40), k=st.integers(1, 45), seed=st.integers(0, 99))
def test_by_hand(n, k, seed):
    image, gene = embeddings(n, seed=seed)
    table = retrieval_recall(image, gene, one_slide(n), k=k)
    assert table.loc[0, "recall"] == pytest.approx(by_hand(image, gene, k))
    assert table.loc[0, "chance"] == min(1, k / n)
    assert table.loc[0, "n_spots"] == n


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_the_own_embedding_is_found_at_any_length(scale):
    _, gene = embeddings(200)
    assert retrieval_recall(scale * gene, gene, one_slide(200), k=1)["recall"].tolist() == [1.0]


def test_random_embeddings_score_chance_within_its_error():
    rng = np.random.default_rng(0)
    slide = np.repeat(np.arange(20), 200)
    table = retrieval_recall(rng.normal(size=(4000, 16)), rng.normal(size=(4000, 16)), slide, k=10)
    error = np.sqrt(0.05 * 0.95 / 4000)
    assert table["chance"].tolist() == [0.05] * 20
    assert abs(table["recall"].mean() - 0.05) < 4 * error


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e-20, 1e20])
@pytest.mark.parametrize("which", ["gene", "both"])
@pytest.mark.parametrize("n", [1, 7, 10, 333])
def test_collapsed_embeddings_score_chance(value, which, n):
    image, gene = embeddings(n, 48)
    gene = np.full_like(gene, value, dtype=float) * np.linspace(1, 2, 48)
    if which == "both":
        image = gene
    table = retrieval_recall(image, gene, one_slide(n), k=10)
    assert table.loc[0, "recall"] == pytest.approx(min(1, 10 / n), abs=1e-12)


def test_a_tie_counts_by_its_probability():
    image = np.array([[1.0, 0.0]] * 4)
    gene = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, -1.0], [0.0, 1.0]])
    # one is before all, two tie for the second and third place, one is last
    for k, expected in [(1, 1.0), (2, 1 + 0.5 + 0.5), (3, 3.0), (4, 4.0)]:
        assert retrieval_recall(image, gene, one_slide(4), k=k).loc[0, "recall"] == pytest.approx(expected / 4)


@given(seed=st.integers(0, 99), k=st.integers(1, 20))
def test_neither_order_nor_rotation_nor_length_matters(seed, k):
    image, gene = (part.astype(float) for part in embeddings(seed=seed))
    rng = np.random.default_rng(seed)
    slide = rng.integers(0, 3, len(image))
    expected = retrieval_recall(image, gene, slide, k=k)
    order = rng.permutation(len(image))
    pd.testing.assert_frame_equal(retrieval_recall(image[order], gene[order], slide[order], k=k), expected)
    rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    length = rng.uniform(0.1, 10, (len(image), 1))
    pd.testing.assert_frame_equal(retrieval_recall(image @ rotation * length, gene @ rotation, slide, k=k), expected)


def test_slides_are_searched_separately():
    image, gene = embeddings(90)
    slide = np.repeat(["c", "a", "b"], [20, 30, 40])
    table = retrieval_recall(image, gene, slide, k=5)
    assert table.index.tolist() == ["a", "b", "c"]
    assert table.index.name == "slide"
    for name in "abc":
        here = slide == name
        alone = retrieval_recall(image[here], gene[here], slide[here], k=5)
        pd.testing.assert_frame_equal(table.loc[[name]], alone)
    far = np.where((slide == "a")[:, None], 1000.0, 0.0)
    assert retrieval_recall(image + far, gene + far, slide, k=5).loc["b", "recall"] == table.loc["b", "recall"]


def test_spots_without_an_embedding_or_a_slide_are_left_out():
    image, gene = embeddings(50)
    slide = np.repeat(["a", "b"], [40, 10]).astype(object)
    gene[:5] = np.nan
    image[5:8, 0] = np.nan
    gene[40:] = np.inf
    slide[8] = None
    table = retrieval_recall(image, gene, slide, k=5)
    assert table.index.tolist() == ["a"]
    assert table.loc["a", "n_spots"] == 31
    assert table.loc["a", "recall"] == pytest.approx(by_hand(image[9:40], gene[9:40], 5))


def test_no_usable_spot_gives_an_empty_table():
    table = retrieval_recall(np.full((3, 2), np.nan), np.ones((3, 2)), one_slide(3))
    assert table.empty
    assert table.columns.tolist() == ["recall", "chance", "n_spots"]


def test_the_result_does_not_depend_on_the_chunks(monkeypatch):
    image, gene = embeddings(101)
    expected = retrieval_recall(image, gene, one_slide(101), k=5)
    for chunk in (1, 101 * 7, 101 * 100):
        monkeypatch.setattr(_embeddings, "CHUNK", chunk)
        pd.testing.assert_frame_equal(retrieval_recall(image, gene, one_slide(101), k=5), expected)


def test_wrong_arguments_are_an_error():
    image, gene = embeddings()
    with pytest.raises(ValueError, match=r"`image` has shape \(60, 8\), `gene` \(60, 7\)"):
        retrieval_recall(image, gene[:, :7], one_slide(60))
    with pytest.raises(ValueError, match=r"`slide` has shape \(59,\), expected \(60,\)"):
        retrieval_recall(image, gene, one_slide(59))
    with pytest.raises(ValueError, match="`k` is 0"):
        retrieval_recall(image, gene, one_slide(60), k=0)

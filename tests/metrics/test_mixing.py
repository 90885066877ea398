from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stcontrast.metrics import batch_mixing, lisi


def spots(n: int = 120, d: int = 4, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.choice(["a", "b", "c"], n, p=[0.5, 0.3, 0.2]), rng.choice(["x", "y"], n)


def by_hand(embedding: np.ndarray, batch: np.ndarray, label: np.ndarray, k: int) -> pd.DataFrame:
    rows = []
    for name in np.unique(batch):
        same, agreement = [], []
        for i in np.flatnonzero(batch == name):
            order = np.argsort(np.linalg.norm(embedding - embedding[i], axis=1))
            same.append((batch[order[order != i][:k]] == name).mean())
            agreement.append((label[order[batch[order] != name][:k]] == label[i]).mean())
        own = label[batch == name]
        elsewhere = label[batch != name]
        rows.append(
            {
                "same_batch_fraction": np.mean(same),
                "expected": (len(own) - 1) / (len(batch) - 1),
                "n_spots": len(own),
                "label_agreement": np.mean(agreement),
                "label_expected": np.mean([(elsewhere == one).mean() for one in own]),
            }
        )
    return pd.DataFrame(rows, index=pd.Index(np.unique(batch), name="batch"))


@given(seed=st.integers(0, 99), k=st.integers(1, 40))
def test_by_hand(seed, k):
    embedding, batch, label = spots(seed=seed)
    expected = by_hand(embedding, batch, label, k)
    found = batch_mixing(embedding, batch, label=label, n_neighbors=k)
    pd.testing.assert_frame_equal(found, expected, check_index_type=False)


@pytest.mark.parametrize("shuffled", [True, False])
def test_separate_batches_score_1_and_shuffled_ones_the_expected_fraction(shuffled):
    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1, 2], [300, 400, 800])
    label = rng.choice(["x", "y"], 1500)
    embedding = rng.normal(size=(1500, 5)) + 3 * (label == "x")[:, None]
    if not shuffled:
        embedding += 100 * batch[:, None]
    table = batch_mixing(embedding, batch, label=label, n_neighbors=50)
    if shuffled:
        np.testing.assert_allclose(table["same_batch_fraction"], table["expected"], atol=0.02)
        assert (table["label_agreement"] > 0.95).all()
    else:
        np.testing.assert_array_equal(table["same_batch_fraction"], 1)
    np.testing.assert_allclose(table["label_expected"], 0.5, atol=0.03)


def test_random_labels_agree_as_expected():
    rng = np.random.default_rng(0)
    table = batch_mixing(rng.normal(size=(2000, 5)), rng.integers(0, 2, 2000), label=rng.choice(3, 2000))
    np.testing.assert_allclose(table["label_agreement"], table["label_expected"], atol=0.01)


def test_a_collapsed_embedding_scores_chance_though_batches_are_in_order():
    batch = np.repeat(["a", "b"], 500)
    label = np.tile(np.repeat(["x", "y"], 250), 2)
    for d in (2, 30):
        table = batch_mixing(np.full((1000, d), 0.1), batch, label=label, n_neighbors=90)
        np.testing.assert_allclose(table["same_batch_fraction"].mean(), 0.5, atol=0.01)
        np.testing.assert_allclose(table["label_agreement"], 0.5, atol=0.01)


@given(seed=st.integers(0, 99))
def test_neither_order_nor_rotation_matters(seed):
    embedding, batch, label = spots(seed=seed)
    expected = batch_mixing(embedding, batch, label=label, n_neighbors=15)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(batch))
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    turned = batch_mixing(embedding[order] @ rotation, batch[order], label=label[order], n_neighbors=15)
    pd.testing.assert_frame_equal(turned, expected)


def test_missing_values_are_left_out():
    embedding, batch, label = spots()
    label = label.astype(object)
    batch = batch.astype(object)
    embedding[:5, 0] = np.nan
    batch[5:7] = None
    label[7:40] = None
    table = batch_mixing(embedding, batch, label=label, n_neighbors=9)
    pd.testing.assert_frame_equal(
        table[["same_batch_fraction", "expected", "n_spots"]], batch_mixing(embedding[7:], batch[7:], n_neighbors=9)
    )
    labelled = batch_mixing(embedding[40:], batch[40:], label=label[40:], n_neighbors=9)
    columns = ["label_agreement", "label_expected"]
    pd.testing.assert_frame_equal(table[columns], labelled[columns])


def test_a_class_of_one_batch_is_expected_nowhere_else():
    """The last of the classes, so that the other batches hold fewer of them."""
    embedding, batch, label = spots()
    label = np.where(batch == "a", "zebra", label.astype(object))
    table = batch_mixing(embedding, batch, label=label)
    assert table["label_agreement"].iloc[0] == table["label_expected"].iloc[0] == 0


def test_a_batch_without_labels_has_no_agreement():
    embedding, batch, label = spots()
    label = np.where(batch == "a", None, label.astype(object))
    table = batch_mixing(embedding, batch, label=label)
    assert table["label_agreement"].isna().tolist() == [True, False, False]
    label = np.where(batch == "b", None, label)
    assert batch_mixing(embedding, batch, label=label)["label_agreement"].isna().all()


def test_more_neighbors_than_spots_are_all():
    embedding, batch, label = spots(30)
    table = batch_mixing(embedding, batch, label=label, n_neighbors=1000)
    np.testing.assert_allclose(table["same_batch_fraction"], table["expected"])
    np.testing.assert_allclose(table["label_agreement"], table["label_expected"])


def test_wrong_arguments_are_an_error():
    embedding, batch, label = spots()
    with pytest.raises(ValueError, match=r"`embedding` has shape \(480,\)"):
        batch_mixing(embedding.ravel(), batch)
    with pytest.raises(ValueError, match=r"`batch` has shape \(119,\), expected \(120,\)"):
        batch_mixing(embedding, batch[1:])
    with pytest.raises(ValueError, match=r"`label` has shape \(119,\), expected \(120,\)"):
        batch_mixing(embedding, batch, label=label[1:])
    with pytest.raises(ValueError, match="`n_neighbors` is 0"):
        batch_mixing(embedding, batch, n_neighbors=0)
    with pytest.raises(ValueError, match="are from 1"):
        batch_mixing(embedding, np.zeros(120))


def test_lisi_says_what_to_install(monkeypatch):
    embedding, batch, _ = spots()
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(ImportError, match=r'pip install "stcontrast\[benchmark\]"'):
        lisi(embedding, batch)
    batch_mixing(embedding, batch)


# umap, which scib-metrics imports, says so
@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
class TestLisi:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("scib_metrics")

    def test_separate_batches_score_0_and_mixed_ones_nearly_1(self):
        rng = np.random.default_rng(0)
        batch = np.repeat(["a", "b"], 300)
        label = np.tile(["x", "y"], 300)
        embedding = rng.normal(size=(600, 5))
        mixed = lisi(embedding, batch)
        assert mixed.index.tolist() == ["ilisi"]
        assert mixed["ilisi"] > 0.9
        apart = lisi(embedding + 50 * (batch == "b")[:, None], batch, label=label)
        assert apart["ilisi"] == pytest.approx(0, abs=1e-4)
        assert apart["clisi"] < 0.1
        told = lisi(embedding + 50 * (label == "y")[:, None], batch, label=label)
        assert told["clisi"] == pytest.approx(1, abs=1e-4)

    def test_the_index_by_hand_where_neighbors_are_equally_near(self):
        # all distances are equal and all neighbours count: no perplexity below their number changes the weights
        batch = np.repeat([0, 1, 2], [10, 8, 6])
        share = np.array([[(batch[np.arange(24) != i] == code).mean() for code in range(3)] for i in range(24)])
        expected = (np.median(1 / (share**2).sum(axis=1)) - 1) / 2
        assert lisi(np.eye(24), batch)["ilisi"] == pytest.approx(expected, rel=1e-5)

    def test_values_equal_those_of_scib_metrics(self):
        from scib_metrics import clisi_knn, ilisi_knn
        from scib_metrics.nearest_neighbors import NeighborsResults
        from sklearn.neighbors import NearestNeighbors

        embedding, batch, label = spots(400)
        embedding[:, 0] += 2 * (label == "x") + (batch == "a")
        distances, near = NearestNeighbors().fit(embedding).kneighbors(n_neighbors=90)
        results = NeighborsResults(indices=near, distances=distances)
        found = lisi(embedding, batch, label=label)
        assert found["ilisi"] == pytest.approx(ilisi_knn(results, batch), rel=1e-3)
        assert found["clisi"] == pytest.approx(clisi_knn(results, label), rel=1e-3)

    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
    def test_distances_that_are_nearly_equal_do_not_break_it(self, scale):
        rng = np.random.default_rng(0)
        assert lisi(scale * rng.normal(size=(300, 2000)), np.tile(["a", "b"], 150))["ilisi"] > 0.9

    def test_spots_without_a_label_are_left_out(self):
        embedding, batch, label = spots()
        some = label.astype(object)
        some[:40] = None
        expected = lisi(embedding[40:], batch[40:], label=label[40:], n_neighbors=30)["clisi"]
        assert lisi(embedding, batch, label=some, n_neighbors=30)["clisi"] == pytest.approx(expected)
        assert np.isnan(lisi(embedding, batch, label=np.full(120, "x"))["clisi"])
        assert np.isnan(lisi(embedding, batch, label=np.full(120, None))["clisi"])

    def test_a_collapsed_embedding_is_mixed_though_batches_are_in_order(self):
        batch = np.repeat(["a", "b"], 500)
        assert lisi(np.full((1000, 3), 0.1), batch)["ilisi"] > 0.9

    def test_too_few_neighbors_are_an_error(self):
        embedding, batch, _ = spots()
        with pytest.raises(ValueError, match="5 neighbours are too few"):
            lisi(embedding, batch, n_neighbors=5)
        with pytest.raises(ValueError, match="are from 1"):
            lisi(embedding, np.zeros(120))

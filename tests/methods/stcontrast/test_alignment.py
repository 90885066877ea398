from __future__ import annotations

import numpy as np
import pytest

from stcontrast.fitted._disk import read_state, write_state
from stcontrast.methods.stcontrast._alignment import Alignment


def paired(seed: int, n: int = 200):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 3))
    weights = np.random.default_rng(7)
    image = np.tanh(shared @ weights.normal(size=(3, 10))) + 0.1 * rng.normal(size=(n, 10))
    gene = shared @ weights.normal(size=(3, 5)) + 0.1 * rng.normal(size=(n, 5))
    return image.astype(np.float32), gene.astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    image, gene = paired(0)
    alignment = Alignment(loss="info_nce", temperature=0.1, seed=0)
    alignment.fit(image, gene, np.zeros(200, dtype=np.int64), np.random.default_rng(0).uniform(size=(200, 2)))
    return alignment


def test_new_pairs_are_near_each_other(fitted):
    image, gene = paired(1, n=100)
    one, other = fitted.embed_image(image), fitted.embed_genes(gene)
    for embedding in (one, other):
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)
    similarity = one @ other.T
    rank = (similarity > np.diag(similarity)[:, None]).sum(axis=1)
    # by chance 10 of 100 are among the first ten
    assert (rank < 10).mean() > 0.6


def test_saved_and_read_again(fitted, tmp_path):
    image, gene = paired(1)
    write_state(tmp_path, fitted.state())
    again = Alignment(loss="info_nce", temperature=0.1, seed=0)
    again.restore(read_state(tmp_path))
    np.testing.assert_array_equal(again.embed_image(image), fitted.embed_image(image))
    np.testing.assert_array_equal(again.embed_genes(gene), fitted.embed_genes(gene))


def test_without_counts_nothing_is_aligned(tmp_path):
    alignment = Alignment(loss="similarity_target", temperature=0.1, seed=0)
    write_state(tmp_path, alignment.state())
    alignment.restore(read_state(tmp_path))
    with pytest.raises(RuntimeError, match="not been fitted with counts"):
        alignment.embed_genes(paired(0)[1])

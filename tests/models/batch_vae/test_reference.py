from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scvi import REGISTRY_KEYS

from stcontrast._models.batch_vae.minibatches import (
    ENCODER_KEY,
    ENTRIES_KEY,
    MinibatchSplitter,
    SlideReference,
    SpotLoader,
)
from stcontrast.models import BatchAgnosticVAE
from tests.models.batch_vae.synthetic import make_adata

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def model() -> BatchAgnosticVAE:
    """A model that compares spots with their slide, trained on donors A, B and C."""
    adata = make_adata("ABC", depth=300)
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor", slide_key="slide")
    model = BatchAgnosticVAE(adata, n_latent=6, n_hidden=32)
    model.train(max_epochs=40, validation_groups=0, batch_size=64, thin_to=(0.5, 0.25))
    return model


def expected_input(counts: np.ndarray[Any, Any], slide: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    logs = np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1))
    seen = np.empty_like(logs)
    for name in np.unique(slide):
        rows = slide == name
        seen[rows] = (logs[rows] - logs[rows].mean(0)) / (logs[rows].std(0) + 0.1)
    return seen


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("n_blocks", [1, 4])
def test_reference_is_mean_and_spread_of_log_expression(form: Any, n_blocks: int):
    rng = np.random.default_rng(0)
    counts, codes = rng.poisson(2.0, size=(60, 9)).astype(np.float32), rng.integers(3, size=60)
    counts[7] = 0
    blocks = ((form(counts[rows]), codes[rows]) for rows in np.array_split(np.arange(60), n_blocks))
    reference = SlideReference.of(blocks, 3)
    seen = reference.against(torch.tensor(counts), torch.tensor(codes))
    np.testing.assert_allclose(seen.numpy(), expected_input(counts.astype(float), codes), rtol=1e-4, atol=1e-5)


def test_a_thinned_slide_is_the_reference_of_its_thinned_spots():
    rng = np.random.default_rng(0)
    counts = rng.poisson(30.0, size=(4000, 5)).astype(np.float32)
    codes = np.zeros(4000, dtype=np.int64)
    reference = SlideReference.of([(counts, codes)], 1, shares=(0.25,))
    thinned = torch.tensor(rng.binomial(counts.astype(int), 0.25), dtype=torch.float32)
    seen = reference.against(thinned, torch.tensor(codes), torch.ones(4000, dtype=torch.long))
    assert seen.mean(0).abs().max() < 0.1
    # against the full slide it would be off
    assert reference.against(thinned, torch.tensor(codes)).std(0).min() > 1.5 * seen.std(0).max()


def minibatches(adata: AnnData, *, thin_to: tuple[float, ...] = (), key: str | None = "slide") -> list[dict[str, Any]]:
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor", slide_key=key)
    manager = BatchAgnosticVAE._get_most_recent_anndata_manager(adata)
    return list(SpotLoader(manager, batch_size=50, thin_to=thin_to))


@pytest.mark.parametrize("dense", [False, True])
def test_minibatches_hold_what_the_encoder_sees(dense: bool):
    adata = make_adata("AB", dense=dense)
    counts = adata.X if dense else adata.X.toarray()
    found = torch.cat([batch[ENCODER_KEY] for batch in minibatches(adata)]).numpy()
    np.testing.assert_allclose(found, expected_input(counts, adata.obs["slide"].to_numpy()), rtol=1e-3, atol=1e-4)


def test_minibatches_of_a_sparse_matrix_hold_its_entries_and_leave_it_as_it_was():
    adata = make_adata("AB")
    adata.X.data[:5] = 0  # zeros that are stored
    before = adata.X.copy()
    for start, batch in enumerate(minibatches(adata, key=None)):
        assert ENCODER_KEY not in batch
        counts = batch[REGISTRY_KEYS.X_KEY]
        np.testing.assert_array_equal(counts, before[50 * start : 50 * start + 50].toarray())
        spot, gene, position, value = batch[ENTRIES_KEY]
        assert torch.equal(position, spot * counts.shape[1] + gene)
        assert (value > 0).all()
        rebuilt = torch.zeros_like(counts).index_put((spot, gene), value)
        assert torch.equal(rebuilt, counts)
    assert (before != adata.X).nnz == 0
    assert adata.X.nnz == before.nnz


@pytest.mark.parametrize("key", [None, "slide"])
def test_thinning_changes_what_the_encoder_sees_and_not_what_is_decoded(key: str | None):
    torch.manual_seed(0)
    adata = make_adata("AB")
    full = torch.cat([batch[REGISTRY_KEYS.X_KEY] for batch in minibatches(adata, key=key)])
    thinned = minibatches(adata, thin_to=(0.5,), key=key)
    assert torch.equal(torch.cat([batch[REGISTRY_KEYS.X_KEY] for batch in thinned]), full)
    seen = torch.cat([batch[ENCODER_KEY] for batch in thinned])
    if key is None:
        kept = seen.expm1().sum(1) / full.sum(1)
        as_is = kept > 0.999
        assert 0.3 < as_is.float().mean() < 0.7
        assert abs(kept[~as_is].mean() - 0.5) < 0.02


def test_held_out_spots_are_encoded_from_all_counts():
    adata = make_adata("AB")
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    manager = BatchAgnosticVAE._get_most_recent_anndata_manager(adata)
    rows = np.arange(adata.n_obs)
    splitter = MinibatchSplitter(manager, external_indexing=[rows[:100], rows[100:], rows[:0]], thin_to=(0.5,))
    splitter.setup()
    assert all(ENCODER_KEY in batch for batch in splitter.train_dataloader())
    assert not any(ENCODER_KEY in batch for batch in splitter.val_dataloader())
    assert all(ENCODER_KEY in batch for batch in splitter.train_dataloader())


# --- an unseen donor ---------------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), others=st.sampled_from(["", "A", "ABE"]))
def test_the_latent_of_an_unseen_donor_does_not_depend_on_other_donors_or_on_the_order(
    model: BatchAgnosticVAE, seed: int, others: str
):
    rng = np.random.default_rng(seed)
    together = make_adata(others + "D", seed=seed % 1000)
    alone = together[together.obs["donor"] == "D"].copy()
    order = rng.permutation(together.n_obs)
    genes = rng.permutation(together.n_vars)
    shuffled = together[order][:, genes]
    found = model.get_latent_representation(shuffled)[np.argsort(order)][(together.obs["donor"] == "D").to_numpy()]
    np.testing.assert_allclose(found, model.get_latent_representation(alone), atol=TOLERANCE)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.5, 0.3]))
def test_less_depth_moves_the_latent_by_less_than_half_the_distance_of_spots(
    model: BatchAgnosticVAE, seed: int, share: float
):
    rng = np.random.default_rng(seed)
    full = make_adata("D", seed=seed, depth=300)
    thinned = full.copy()
    thinned.X.data = rng.binomial(full.X.data.astype(int), share).astype(np.float32)
    before, after = (model.get_latent_representation(adata) for adata in (full, thinned))
    apart = np.linalg.norm(before[:, None] - before[None], axis=2).mean()
    assert np.linalg.norm(after - before, axis=1).mean() < 0.5 * apart
    # and what moves is noise: the slide as a whole stays
    assert np.linalg.norm((after - before).mean(0)) < 0.1 * apart


def test_a_donor_fifteen_times_shallower_lies_among_the_others(model: BatchAgnosticVAE):
    deep, shallow = make_adata("D", seed=1, depth=600), make_adata("D", seed=2, depth=40)
    latents = [model.get_latent_representation(adata) for adata in (deep, shallow)]
    kinds = [adata.obs["kind"].to_numpy() for adata in (deep, shallow)]
    for kind in np.unique(kinds[0]):
        of_kind = [latent[labels == kind].mean(0) for latent, labels in zip(latents, kinds, strict=True)]
        others = [latents[0][kinds[0] == other].mean(0) for other in np.unique(kinds[0]) if other != kind]
        nearest_other = min(np.linalg.norm(of_kind[1] - other) for other in others)
        assert np.linalg.norm(of_kind[1] - of_kind[0]) < nearest_other


def test_indices_take_spots_and_not_the_slide(model: BatchAgnosticVAE):
    adata = make_adata("D", seed=3)
    taken = model.get_latent_representation(adata, indices=[5, 1, 5])
    np.testing.assert_allclose(taken, model.get_latent_representation(adata)[[5, 1, 5]], rtol=1e-6, atol=1e-6)


def test_training_and_unseen_data_are_encoded_alike_by_every_path(model: BatchAgnosticVAE, tmp_path: Path):
    adata = model.adata.copy()
    latent = model.get_latent_representation()
    counts = adata.X
    np.testing.assert_allclose(model.encode_counts(counts, slide=adata.obs["slide"]), latent, atol=1e-6)
    loader = model._make_data_loader(model.adata, batch_size=32)
    np.testing.assert_allclose(model.get_latent_representation(dataloader=loader), latent, atol=TOLERANCE)
    model.save(str(tmp_path / "model"))
    loaded = BatchAgnosticVAE.load(tmp_path / "model")
    assert loaded.slide_key == "slide"
    np.testing.assert_array_equal(loaded.get_latent_representation(adata), latent)
    adata.write_h5ad(tmp_path / "spots.h5ad")
    import anndata as ad

    stored = ad.read_h5ad(tmp_path / "spots.h5ad", backed="r")
    np.testing.assert_allclose(loaded.get_latent_representation(stored, batch_size=50), latent, atol=TOLERANCE)
    stored.file.close()


def test_decoding_with_slides(model: BatchAgnosticVAE):
    unseen = make_adata("C", seed=9)
    unseen.obs["slide"] = "a new one"
    expression = model.get_normalized_expression(unseen, transform_batch="A", return_numpy=True)
    assert np.isfinite(expression).all()
    query = BatchAgnosticVAE.load_query_data(make_adata("D", seed=4), model)
    query.is_trained_ = True
    np.testing.assert_allclose(
        query.get_latent_representation(), model.get_latent_representation(make_adata("D", seed=4)), atol=TOLERANCE
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda obs: obs.drop(columns="slide"), KeyError, "slide_key 'slide' is not in adata.obs, .* single slide set"),
        (lambda obs: obs.assign(slide=None), ValueError, "has 80 missing values"),
    ],
)
def test_spots_without_a_slide(model: BatchAgnosticVAE, change: Any, error: type[Exception], message: str):
    adata = make_adata("D")
    adata.obs = change(adata.obs)
    with pytest.raises(error, match=message):
        model.get_latent_representation(adata)


def test_other_mistakes(model: BatchAgnosticVAE):
    with pytest.raises(ValueError, match="slide has 2 names for 80 spots"):
        model.encode_counts(make_adata("D").X, slide=["a", "b"])
    adata = make_adata("AB")
    with pytest.raises(KeyError, match="slide_key 'section' is not in"):
        BatchAgnosticVAE.setup_anndata(adata, slide_key="section")
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    alone = BatchAgnosticVAE(adata, n_latent=3)
    with pytest.raises(ValueError, match=r"thin_to is \(0.5, 2\)"):
        alone.train(max_epochs=1, thin_to=(0.5, 2))
    alone.train(max_epochs=1)
    with pytest.raises(ValueError, match="set up without one"):
        alone.get_latent_representation(adata, slide_key="slide")

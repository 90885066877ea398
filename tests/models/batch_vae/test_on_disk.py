from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from stcontrast.models import BatchAgnosticVAE, SpotsOnDisk
from tests.models.batch_vae.synthetic import make_adata

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


pytest.importorskip("annbatch")

from stcontrast._models.batch_vae.disk_sampler import ChosenRows

# anndata gathers the metadata of a store that it writes, which zarr warns of; no user can do anything about it
pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part:UserWarning")


def write(adata: ad.AnnData, path: Path) -> Path:
    adata.write_zarr(path)
    return path


def stores_of(adata: ad.AnnData, folder: Path, key: str = "donor") -> list[Path]:
    return [write(adata[adata.obs[key] == name].copy(), folder / f"{name}.zarr") for name in adata.obs[key].unique()]


def make_model(spots: SpotsOnDisk, **kwargs: Any) -> BatchAgnosticVAE:
    return BatchAgnosticVAE(registry=spots.registry, **{"n_latent": 4, "n_hidden": 16} | kwargs)


def weights(model: BatchAgnosticVAE) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.module.parameters()])


def everything(minibatches: Any) -> dict[str, np.ndarray[Any, Any]]:
    batches = list(minibatches)
    names = [name for name, values in batches[0].items() if isinstance(values, torch.Tensor)]
    return {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in names}


def sorted_rows(tensors: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    table = np.hstack([tensors["X"], tensors["batch"], tensors["labels"]])
    return table[np.lexsort(table.T)]


def test_few_lines_from_disk_to_latents_of_an_unseen_donor(tmp_path: Path):
    adata = make_adata("ABCD", n_spots=40)
    spots = SpotsOnDisk(stores_of(adata, tmp_path), batch_key="donor")
    model = make_model(spots)
    model.train(max_epochs=3, datamodule=spots, batch_size=32)
    assert len(model.history["elbo_train"]) == 3
    assert len(model.history["elbo_validation"]) == 3
    unseen = make_adata("E", n_spots=30)
    latent = model.get_latent_representation(unseen)
    assert latent.shape == (30, 4)
    model.save(str(tmp_path / "model"))
    again = BatchAgnosticVAE.load(tmp_path / "model")
    np.testing.assert_array_equal(again.get_latent_representation(unseen), latent)
    again.train(max_epochs=1, datamodule=spots)
    assert not torch.equal(weights(again), weights(model))


def test_a_model_from_disk_loads_with_its_data_in_memory(tmp_path: Path):
    adata = make_adata("AB", n_spots=20)
    spots = SpotsOnDisk(stores_of(adata, tmp_path), batch_key="donor")
    model = make_model(spots)
    model.train(max_epochs=1, datamodule=spots)
    model.save(str(tmp_path / "model"))
    loaded = BatchAgnosticVAE.load(tmp_path / "model", adata)
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation(adata))
    loaded.train(max_epochs=1)


@pytest.mark.parametrize("unlabeled", [None, "kind0", "unknown"])
@pytest.mark.parametrize("batch_key", [None, "donor"])
def test_registry_and_first_weights_are_those_of_the_data_in_memory(
    tmp_path: Path, batch_key: str | None, unlabeled: str | None
):
    adata = make_adata("BA", n_spots=20)
    adata.obs["kind"] = adata.obs["kind"].astype(str)
    adata.obs["donor"] = adata.obs["donor"].astype(str)
    if unlabeled is not None:
        adata.obs.loc[adata.obs_names[::3], "kind"] = unlabeled
    setup: dict[str, Any] = {"batch_key": batch_key, "labels_key": "kind", "unlabeled_category": unlabeled}
    stores = stores_of(adata, tmp_path)
    spots = SpotsOnDisk(stores, **setup)
    BatchAgnosticVAE.setup_anndata(adata, **setup)
    options: dict[str, Any] = {"n_latent": 4, "n_hidden": 16, "class_weight": 0.0 if unlabeled is None else 5.0}
    in_memory, from_disk = BatchAgnosticVAE(adata, **options), BatchAgnosticVAE(registry=spots.registry, **options)
    assert torch.equal(weights(in_memory), weights(from_disk))
    assert in_memory.summary_stats == from_disk.summary_stats
    theirs, ours = in_memory.registry["field_registries"], from_disk.registry["field_registries"]
    assert theirs.keys() == ours.keys()
    for field, registered in theirs.items():
        for entry, value in registered["state_registry"].items():
            np.testing.assert_array_equal(np.asarray(ours[field]["state_registry"][entry]), np.asarray(value))


def test_minibatches_hold_what_those_in_memory_hold(tmp_path: Path):
    adata = make_adata("AB", n_spots=25)
    adata.obs["kind"] = adata.obs["kind"].cat.add_categories("none")
    adata.obs.loc[adata.obs_names[::4], "kind"] = "none"
    setup: dict[str, Any] = {"batch_key": "donor", "labels_key": "kind", "unlabeled_category": "none"}
    spots = SpotsOnDisk(stores_of(adata, tmp_path), **setup, chunk_size=3, n_in_memory=16)
    BatchAgnosticVAE.setup_anndata(adata, **setup)
    in_memory = everything(BatchAgnosticVAE(adata)._make_data_loader(adata, batch_size=16))
    spots.arrange(np.arange(50), np.arange(50), batch_size=16)
    as_they_lie = everything(spots.val_dataloader())
    for name in ("X", "batch", "labels"):
        np.testing.assert_array_equal(as_they_lie[name], in_memory[name])
        assert as_they_lie[name].dtype == in_memory[name].dtype
    np.testing.assert_array_equal(sorted_rows(everything(spots.train_dataloader())), sorted_rows(in_memory))


@pytest.mark.parametrize(("batch_size", "chunk_size", "n_in_memory"), [(8, 1, 20), (8, 5, 1), (7, 100, 13), (90, 4, 9)])
def test_every_training_spot_once_an_epoch_in_full_minibatches(
    tmp_path: Path, batch_size: int, chunk_size: int, n_in_memory: int
):
    adata = make_adata("AB", n_spots=30)
    numbered = np.zeros(adata.shape, dtype=np.float32)
    numbered[:, 0] = np.arange(60)
    adata.X = sparse.csr_matrix(numbered)
    spots = SpotsOnDisk(stores_of(adata, tmp_path), chunk_size=chunk_size, n_in_memory=n_in_memory)
    train = np.flatnonzero(np.arange(60) % 5 != 0)
    spots.arrange(train, np.setdiff1d(np.arange(60), train), batch_size=batch_size)
    loader = spots.train_dataloader()
    epochs = [[batch["X"][:, 0].numpy() for batch in loader] for _ in range(2)]
    for epoch in epochs:
        assert len(epoch) == len(loader)
        assert all(len(batch) == batch_size for batch in epoch[:-1])
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), train)
    assert not np.array_equal(np.concatenate(epochs[0]), np.concatenate(epochs[1]))
    np.testing.assert_array_equal(everything(spots.val_dataloader())["X"][:, 0], np.arange(0, 60, 5))


def test_result_does_not_depend_on_how_the_spots_are_spread_over_stores(tmp_path: Path):
    adata = make_adata("ABC", n_spots=30)
    (tmp_path / "apart").mkdir()
    together = SpotsOnDisk(write(adata, tmp_path / "all.zarr"), batch_key="donor")
    apart = SpotsOnDisk(stores_of(adata, tmp_path / "apart"), batch_key="donor")
    trained = []
    for spots in (together, apart):
        model = make_model(spots)
        model.train(max_epochs=2, datamodule=spots, batch_size=32, validation_groups=["B"])
        trained.append(model)
    assert torch.equal(weights(trained[0]), weights(trained[1]))
    assert float(trained[0].history["elbo_validation"].iloc[-1, 0]) == pytest.approx(
        float(trained[1].history["elbo_validation"].iloc[-1, 0])
    )


def test_same_seed_same_weights_whatever_the_session_drew(tmp_path: Path):
    spots = SpotsOnDisk(write(make_adata("AB", n_spots=30), tmp_path / "a.zarr"), batch_key="donor", chunk_size=4)
    results = []
    for noise, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        model = make_model(spots)
        model.train(max_epochs=2, datamodule=spots, batch_size=16, seed=seed)
        results.append(weights(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_training_from_disk_is_as_good_as_in_memory(tmp_path: Path):
    adata = make_adata("ABC", n_spots=80)
    spots = SpotsOnDisk(stores_of(adata, tmp_path), batch_key="donor")
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    in_memory, from_disk = BatchAgnosticVAE(adata, n_latent=6, n_hidden=32), make_model(spots, n_latent=6, n_hidden=32)
    settings: dict[str, Any] = {"max_epochs": 30, "batch_size": 64, "validation_groups": ["C"], "early_stopping": False}
    in_memory.train(**settings)
    from_disk.train(**settings, datamodule=spots)
    for name in ("elbo_train", "elbo_validation"):
        last = [float(model.history[name].iloc[-1, 0]) for model in (in_memory, from_disk)]
        assert last[1] == pytest.approx(last[0], rel=0.02)


def test_held_out_spots_are_those_of_whole_groups(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    adata = make_adata("ABCD", n_spots=20)
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    spots = SpotsOnDisk(write(adata, tmp_path / "a.zarr"), batch_key="donor")
    model = make_model(spots)
    with caplog.at_level(logging.INFO, logger="stcontrast"):
        model.train(max_epochs=1, datamodule=spots, validation_key="slide", validation_groups=["A2", "B1"])
    assert "Validating on A2, B1 of 'slide': 20 spots" in caplog.text
    assert set(adata.obs["slide"].iloc[model.validation_indices]) == {"A2", "B1"}
    assert not set(adata.obs["slide"].iloc[model.train_indices]) & {"A2", "B1"}
    assert len(model.train_indices) + len(model.validation_indices) == 80
    model.train(max_epochs=1, datamodule=spots)
    assert adata.obs["donor"].iloc[model.validation_indices].nunique() == 1


def test_few_donors_or_none_are_all_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    spots = SpotsOnDisk(write(make_adata("AB", n_spots=20), tmp_path / "a.zarr"))
    model = make_model(spots)
    with caplog.at_level(logging.INFO, logger="stcontrast"):
        model.train(max_epochs=1, datamodule=spots)
    assert "Training on all 40 spots, without a validation set" in caplog.text
    assert "elbo_validation" not in model.history


def test_classes_guide_the_latent_from_disk_too(tmp_path: Path):
    from sklearn.linear_model import LogisticRegression

    # "a" comes first by name: the unlabelled category has to be last all the same
    adata = make_adata("ABC", n_spots=60, depth=60)
    known = adata.obs["kind"].astype(str)
    adata.obs["kind"] = known.where(np.arange(adata.n_obs) % 3 != 0, "a")
    spots = SpotsOnDisk(stores_of(adata, tmp_path), batch_key="donor", labels_key="kind", unlabeled_category="a")
    accuracy = []
    for weight in (0.0, 50.0):
        model = make_model(spots, class_weight=weight, n_latent=2)
        model.train(max_epochs=15, datamodule=spots, batch_size=32)
        latent = model.get_latent_representation(adata)
        accuracy.append(LogisticRegression(max_iter=1000).fit(latent, known).score(latent, known))
    assert accuracy[1] > max(accuracy[0], 0.9)


def test_a_collection_made_by_annbatch_of_h5ad_files(tmp_path: Path):
    from annbatch import DatasetCollection

    adata = make_adata("ABCD", n_spots=25)
    adata.obs_names = [f"spot{i}" for i in range(100)]
    paths: list[Path] = []
    for name in "ABCD":
        paths.append(tmp_path / f"{name}.h5ad")
        adata[adata.obs["donor"] == name].copy().write_h5ad(paths[-1])
    DatasetCollection(tmp_path / "spots.zarr").add_adatas(paths, dataset_size=60, shuffle_chunk_size=10)
    spots = SpotsOnDisk(tmp_path / "spots.zarr", batch_key="donor")
    assert (spots.n_obs, spots.n_vars) == adata.shape
    spots.arrange(np.arange(100), np.arange(0))
    shuffled = everything(spots.train_dataloader())["X"]
    assert shuffled.sum() == adata.X.sum()
    model = make_model(spots)
    model.train(max_epochs=1, datamodule=spots, validation_groups=["C"])
    assert len(model.validation_indices) == 25


@pytest.mark.parametrize("dense", [False, True])
def test_counts_in_a_layer_and_of_any_form(tmp_path: Path, dense: bool):
    adata = make_adata("AB", n_spots=10, dense=dense)
    adata.layers["raw"] = adata.X.astype("int64")
    adata.X = adata.X / 3
    spots = SpotsOnDisk(stores_of(adata, tmp_path), layer="raw")
    spots.arrange(np.arange(20), np.arange(20))
    read = everything(spots.val_dataloader())["X"]
    counts = adata.layers["raw"]
    np.testing.assert_array_equal(read, counts if dense else counts.toarray())
    assert read.dtype == np.float32


def test_spots_without_a_count_are_read(tmp_path: Path):
    adata = make_adata("AB", n_spots=10)
    counts = adata.X.toarray()
    counts[[0, 3, 4, 19]] = 0
    adata.X = sparse.csr_matrix(counts)
    spots = SpotsOnDisk(stores_of(adata, tmp_path), batch_key="donor")
    for rows in (np.array([3]), np.array([0, 3, 4, 19]), np.arange(20)):
        spots.arrange(np.arange(20), rows, batch_size=4)
        np.testing.assert_array_equal(everything(spots.val_dataloader())["X"], counts[rows])
    make_model(spots).train(max_epochs=1, datamodule=spots)


def test_no_more_spots_are_read_at_once_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from annbatch import Loader

    read: list[int] = []
    index = Loader._index_datasets

    async def noted(self: Loader, rows: dict[int, np.ndarray[Any, Any]]) -> Any:
        read.append(sum(map(len, rows.values())))
        return await index(self, rows)

    monkeypatch.setattr(Loader, "_index_datasets", noted)
    spots = SpotsOnDisk(stores_of(make_adata("AB", n_spots=50), tmp_path), n_in_memory=32, chunk_size=8)
    make_model(spots).train(max_epochs=1, datamodule=spots, batch_size=16)
    assert max(read) == 32
    assert sum(read) == 100


def refusal(stores: Any, **kwargs: Any) -> str:
    with pytest.raises((ValueError, KeyError, FileNotFoundError)) as caught:
        SpotsOnDisk(stores, **kwargs)
    return str(caught.value)


def test_invalid_stores(tmp_path: Path):
    adata = make_adata("A", n_spots=6)
    good = write(adata, tmp_path / "good.zarr")
    other = write(adata[:, 2:].copy(), tmp_path / "other.zarr")
    turned = write(adata[:, ::-1].copy(), tmp_path / "turned.zarr")
    by_gene = write(ad.AnnData(adata.X.tocsc(), obs=adata.obs, var=adata.var), tmp_path / "csc.zarr")
    dense = write(make_adata("A", n_spots=6, dense=True), tmp_path / "dense.zarr")
    halves = write(ad.AnnData(adata.X / 2, obs=adata.obs, var=adata.var), tmp_path / "halves.zarr")
    assert "is HDF5; training reads zarr. annbatch.DatasetCollection" in refusal(tmp_path / "a.h5ad")
    assert refusal(tmp_path / "none.zarr").endswith("none.zarr does not exist.")
    assert refusal([]) == "there are no stores; give at least one folder."
    (tmp_path / "folder").mkdir()
    assert "is not a zarr group; AnnData.write_zarr writes one" in refusal(tmp_path / "folder")
    assert "holds no AnnData: it has ['obs', 'var']" in refusal(_without_x(good, tmp_path / "bare.zarr"))
    assert "genes differ between stores: G0, G1 only in" in refusal([good, other])
    assert "turned.zarr has them in another order" in refusal([good, turned])
    assert "are stored as csc_matrix; training reads rows" in refusal(by_gene)
    assert "counts are stored in different forms" in refusal([good, dense])
    assert "does not hold raw counts: it has the value" in refusal([good, halves])
    assert "chunk_size is 0" in refusal(good, chunk_size=0)


def _without_x(store: Path, path: Path) -> Path:
    import zarr

    old, new = zarr.open_group(store, mode="r"), zarr.open_group(path, mode="w")
    for name in ("obs", "var"):
        ad.io.write_elem(new, name, ad.io.read_elem(old[name]))
    return path


def test_invalid_columns(tmp_path: Path):
    adata = make_adata("AB", n_spots=6)
    adata.obs["age"] = 3
    adata.obs["site"] = pd.Categorical(["x", None] * 6)
    first = write(adata[:6].copy(), tmp_path / "first.zarr")
    adata.obs["age"] = "three"
    second = write(adata[6:].copy(), tmp_path / "second.zarr")
    assert "batch_key 'patient' is not in obs of" in refusal(first, batch_key="patient")
    assert "which has ['donor', 'slide', 'kind', 'age', 'site']" in refusal(first, labels_key="patient")
    assert "has 3 missing values; batch_key needs a value for every spot" in refusal(first, batch_key="site")
    assert "obs['age'] holds values of different types" in refusal([first, second], batch_key="age")
    assert "layer 'raw' is not in" in refusal(first, layer="raw")
    assert "unlabeled_category needs labels_key" in refusal(first, unlabeled_category="x")
    spots = SpotsOnDisk([first, second], batch_key="donor")
    with pytest.raises(KeyError, match="validation_key 'patient' is not in obs of"):
        make_model(spots).train(max_epochs=1, datamodule=spots, validation_key="patient")


def test_what_is_not_a_count_is_found_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stcontrast._models.batch_vae.stores.N_CHECKED_AT_FIRST", 5)
    adata = make_adata("A", n_spots=20)
    adata.X[15, 2] = 0.5
    spots = SpotsOnDisk(write(adata, tmp_path / "a.zarr"))
    with pytest.raises(ValueError, match=r"X does not hold raw counts: it has the value 0.5"):
        make_model(spots).train(max_epochs=1, datamodule=spots)


def test_a_model_of_other_data_is_refused(tmp_path: Path):
    def spots_of(donors: str, genes: Sequence[int]) -> SpotsOnDisk:
        path = tmp_path / f"{donors}{len(genes)}.zarr"
        return SpotsOnDisk(write(make_adata(donors, n_spots=5)[:, list(genes)].copy(), path), batch_key="donor")

    model = make_model(spots_of("AB", range(60)))
    with pytest.raises(ValueError, match="made for other genes than datamodule has"):
        model.train(max_epochs=1, datamodule=spots_of("AB", range(40)))
    with pytest.raises(ValueError, match="made for other batches than datamodule has: A, B against A, C"):
        model.train(max_epochs=1, datamodule=spots_of("AC", range(60)))


def test_without_data_or_with_a_data_module_of_another_kind(tmp_path: Path):
    from lightning.pytorch import LightningDataModule

    spots = SpotsOnDisk(write(make_adata("A", n_spots=6), tmp_path / "a.zarr"))
    model = make_model(spots)
    with pytest.raises(ValueError, match=r"no training data in memory.*as datamodule="):
        model.train(max_epochs=1)
    with pytest.raises(TypeError, match=r"datamodule is a LightningDataModule; BatchAgnosticVAE trains on"):
        model.train(max_epochs=1, datamodule=LightningDataModule())
    model.train(max_epochs=1, datamodule=spots)
    with pytest.raises(ValueError, match="pass the data to encode"):
        model.get_latent_representation()


def test_without_annbatch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "annbatch", None)
    with pytest.raises(ImportError, match=r'pip install "stcontrast\[large\]"'):
        SpotsOnDisk(tmp_path)


@pytest.mark.parametrize("thin_to", [(), (0.5,)])
def test_slides_are_the_reference_on_disk_as_in_memory(tmp_path: Path, thin_to: tuple[float, ...]):
    from stcontrast._models.batch_vae.minibatches import ENCODER_KEY, SpotLoader

    adata = make_adata("ABC", n_spots=40)
    spots = SpotsOnDisk(stores_of(adata, tmp_path), batch_key="donor", slide_key="slide")
    model = make_model(spots)
    assert model.slide_key == "slide"
    model.train(max_epochs=2, datamodule=spots, batch_size=32, validation_groups=["B"], thin_to=thin_to)
    unseen = make_adata("D", n_spots=40, seed=3)
    latent = model.get_latent_representation(unseen)
    model.save(str(tmp_path / "model"))
    np.testing.assert_array_equal(BatchAgnosticVAE.load(tmp_path / "model").get_latent_representation(unseen), latent)
    # what the encoder sees of the held-out donor is what it would see in memory
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor", slide_key="slide")
    manager = BatchAgnosticVAE._get_most_recent_anndata_manager(adata)
    in_memory = torch.cat([batch[ENCODER_KEY] for batch in SpotLoader(manager, batch_size=32)])
    on_disk = torch.cat([batch[ENCODER_KEY] for batch in spots.val_dataloader()])
    of_b = torch.tensor((adata.obs["donor"] == "B").to_numpy())
    torch.testing.assert_close(on_disk, in_memory[of_b], rtol=1e-3, atol=1e-4)


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

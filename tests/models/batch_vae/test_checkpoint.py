"""A saved VAE is a pickle: a file that could run code, or was changed, is refused before it is unpickled."""

from __future__ import annotations

import os
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from anndata import AnnData

import stcontrast as stc
from stcontrast.models import BatchAgnosticVAE

if TYPE_CHECKING:
    from pathlib import Path


class Runs:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def adata() -> AnnData:
    counts = np.random.default_rng(0).poisson(2.0, size=(40, 12)).astype(np.float32)
    adata = AnnData(counts)
    adata.obs["donor"] = ["A"] * 20 + ["B"] * 20
    adata.obs["class"] = ["one", "two"] * 20
    return adata


@pytest.fixture
def saved(adata: AnnData, tmp_path: Path) -> Path:
    adata = adata.copy()
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor", labels_key="class", unlabeled_category="two")
    model = BatchAgnosticVAE(adata, n_latent=3, n_hidden=8, class_weight=1.0)
    model.train(max_epochs=2, enable_progress_bar=False)
    model.save(str(tmp_path / "vae"), save_anndata=True)
    return tmp_path / "vae"


def test_a_model_that_was_trained_and_saved_is_read(saved: Path) -> None:
    assert BatchAgnosticVAE.load(saved).is_trained


WAYS = {
    "load": BatchAgnosticVAE.load,
    "load_query_data": lambda folder: BatchAgnosticVAE.load_query_data(AnnData(np.ones((2, 12))), str(folder)),
    "prepare_query_anndata": lambda folder: BatchAgnosticVAE.prepare_query_anndata(
        AnnData(np.ones((2, 12))), str(folder)
    ),
    "embed_genes": lambda folder: stc.tl.embed_genes(AnnData(np.ones((2, 12))), model=folder),
    "fit": lambda folder: stc.tl.fit(
        stc.datasets.toy(n_donors=2, n_spots=20, n_genes=12), batch_key="donor", options={"gene_space": folder}
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["pickle", "checkpoint", "in the registry"])
def test_no_code_is_run(saved: Path, tmp_path: Path, kind: str, way: str) -> None:
    marker, file = tmp_path / "code was run", saved / "model.pt"
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Runs(marker)))
    elif kind == "checkpoint":
        torch.save({"model_state_dict": {}, "attr_dict": Runs(marker)}, file)
    else:
        content = torch.load(file, weights_only=False)
        content["attr_dict"]["registry_"]["more"] = [Runs(marker)]
        torch.save(content, file)
    with pytest.raises(ValueError, match=r"No BatchAgnosticVAE can be read from .*model\.pt"):
        WAYS[way](saved)
    assert not marker.exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    """A bit of a weight."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size if "/data/" in item.filename else 0)
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    file.write_bytes(bytes(content))


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def something_else(file: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, file)


@pytest.mark.parametrize("damage", [cut, flip, pipe, something_else])
def test_what_was_changed_is_refused(saved: Path, damage: Any) -> None:
    damage(saved / "model.pt")
    with pytest.raises(ValueError, match=r"No BatchAgnosticVAE can be read"):
        BatchAgnosticVAE.load(saved)

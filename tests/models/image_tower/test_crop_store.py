from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest

import stcontrast as stc
from stcontrast._models.image_tower import CropRows, CropStore
from stcontrast._reading import resolve_slides

if TYPE_CHECKING:
    from pathlib import Path


def test_crops_of_all_objects_are_those_of_the_public_function() -> None:
    one = stc.datasets.toy(n_donors=2, n_spots=12, n_genes=9)
    other = stc.datasets.toy(n_donors=1, n_spots=12, n_genes=9, seed=1)
    with CropStore.cut([resolve_slides(one), resolve_slides(other)], (100.0, 250.0), 16) as store:
        assert store.shape == (36, 2, 16, 16, 3)
        for field, field_um in enumerate((100, 250)):
            expected = [stc.pp.crops(sdata, field_um=field_um, size_px=16) for sdata in (one, other)]
            np.testing.assert_array_equal(store[np.arange(36)][:, field], np.concatenate(expected))


def test_the_file_is_there_for_another_process_and_gone_after_use(tmp_path: Path) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4, 3), dtype=np.uint8)
    with CropStore(5, 1, 4, directory=tmp_path) as store:
        for row in range(5):
            store.write(row, 0, crops[row, 0])
        rows = CropRows(pickle.loads(pickle.dumps(store)), np.array([4, 1, 2]))
        np.testing.assert_array_equal(rows[np.array([0, 2])], crops[[4, 2]])
        np.testing.assert_array_equal(np.concatenate(list(rows.batches())), crops[[4, 1, 2]])
        print_ = rows.fingerprint()
        assert CropRows(store, np.array([4, 1, 2])).fingerprint() == print_
        assert CropRows(store, np.array([1, 4, 2])).fingerprint() != print_
        store.write(2, 0, crops[0, 0])
        assert rows.fingerprint() != print_
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_failure_while_cutting_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def broken(*args: object, **kwargs: object) -> None:
        msg = "unreadable"
        raise OSError(msg)

    monkeypatch.setattr("stcontrast._models.image_tower.crop_store.iter_batches", broken)
    with pytest.raises(OSError, match="unreadable"):
        CropStore.cut([resolve_slides(stc.datasets.toy(n_donors=1, n_spots=12, n_genes=9))], (100.0,), 16)
    assert not list(tmp_path.iterdir())


def test_too_little_disk_space_is_an_error_before_crops_are_cut(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"take 3000000.0 GB, and .* GB are free"):
        CropStore(10**9, 1, 1000, directory=tmp_path)
    assert not list(tmp_path.iterdir())

"""A picture gives the same crops whether its pyramid is held in memory as a recipe, or stored."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata

import stcontrast as stc


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    made = stc.datasets.toy(n_donors=1, n_spots=40, n_genes=20)
    store = tmp_path_factory.mktemp("store") / "toy.zarr"
    made.write(store)
    return made, spatialdata.read_zarr(store)


@pytest.mark.parametrize("field_um", [50, 200, 600])
def test_the_same_crops_at_every_level(both, field_um):
    in_memory, on_disk = (stc.pp.crops(sdata, field_um=field_um, size_px=64) for sdata in both)
    np.testing.assert_array_equal(in_memory, on_disk)


def test_the_same_features(both):
    for sdata in both:
        stc.pp.image_features(sdata)
    features = [sdata["table"].obsm["X_image"] for sdata in both]
    np.testing.assert_allclose(*features, atol=1e-6)

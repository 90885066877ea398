from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import pytest

import stcontrast as stc
from tests.tl.toy import LABELS, OPTIONS, parts_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stcontrast.fitted import Predictor


@pytest.fixture(scope="session")
def toy() -> SpatialData:
    """Three donors with image features; tests work on copies of its tables."""
    sdata = stc.datasets.toy(n_donors=3, n_spots=40, n_genes=40)
    stc.pp.image_features(sdata)
    return sdata


def copied(sdata: SpatialData) -> SpatialData:
    """Tables of one's own, images and shapes shared."""
    from spatialdata import SpatialData as Container

    tables = {name: deepcopy(table) for name, table in sdata.tables.items()}
    return Container(images=dict(sdata.images), shapes=dict(sdata.shapes), tables=tables)


@pytest.fixture
def sdata(toy: SpatialData) -> SpatialData:
    """A copy to write into."""
    return copied(toy)


@pytest.fixture
def raw(sdata: SpatialData) -> SpatialData:
    """As it comes from a reader: no image features yet."""
    del sdata["table"].obsm["X_image"], sdata["table"].uns["stcontrast"]["image_features"]
    return sdata


@pytest.fixture(scope="session")
def fitted(toy: SpatialData) -> tuple[Predictor, SpatialData]:
    """Our method on donors 1 and 2, and what it wrote; not to be changed."""
    train = parts_of(copied(toy), "donor1", "donor2")
    model = stc.tl.fit(train, batch_key="donor", label_key=LABELS, options=OPTIONS)
    return model, train


@pytest.fixture(scope="session")
def model(fitted: tuple[Predictor, SpatialData]) -> Predictor:
    """The model alone."""
    return fitted[0]


@pytest.fixture(scope="session")
def joint(toy: SpatialData) -> tuple[Predictor, SpatialData]:
    """A model with a joint embedding, of donors 1 and 2, and what it wrote; not to be changed."""
    train = parts_of(copied(toy), "donor1", "donor2")
    return stc.tl.fit(train, batch_key="donor", n_genes=25, options={"max_epochs": 5}), train


@pytest.fixture
def unseen(raw: SpatialData) -> SpatialData:
    """Donor 3, with counts and labels, without image features."""
    return parts_of(raw, "donor3")

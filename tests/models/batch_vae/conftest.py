from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stcontrast.models import BatchAgnosticVAE
from tests.models.batch_vae.synthetic import make_adata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData


@pytest.fixture(autouse=True)
def _no_progress_bar() -> Iterator[None]:
    from stcontrast import settings

    before, settings.progress = settings.progress, False
    yield
    settings.progress = before


@pytest.fixture(scope="session")
def model() -> BatchAgnosticVAE:
    """A model trained on donors A, B and C; tests must not train it further."""
    adata = make_adata()
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor", labels_key="kind")
    model = BatchAgnosticVAE(adata, n_latent=6, n_hidden=32)
    model.train(max_epochs=40, validation_groups=0, enable_progress_bar=False, batch_size=64)
    return model


@pytest.fixture
def unseen() -> AnnData:
    """Donor D, as it would come from a reader: no batch column, not set up."""
    adata = make_adata("D", seed=5)
    del adata.obs["donor"], adata.obs["slide"]
    return adata

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import stcontrast as stc
from stcontrast.models import ContrastiveModel
from tests.models.contrastive.synthetic import pairs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="session")
def _no_progress_bar() -> Iterator[None]:
    with stc.settings.override(progress=False):
        yield


@pytest.fixture(scope="session")
def trained():
    """Trained on groups 0 to 2 of the pairs, stopped by group 3; tests must not train it further."""
    model = ContrastiveModel(
        n_image=10, n_gene=5, n_targets=12, n_classes=2, n_embedding=32, contrastive_weight=1.0, max_epochs=40, batch_size=60, learning_rate=1e-2
    )  # fmt: skip
    model.train(**pairs(), held_out=[3])
    return model

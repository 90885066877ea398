from __future__ import annotations

import pytest

from stcontrast.models import ContrastiveModel
from tests.models.contrastive.synthetic import pairs


@pytest.fixture(scope="session")
def trained():
    """Trained on groups 0 to 2 of the pairs, stopped by group 3; tests must not train it further."""
    model = ContrastiveModel(
        n_image=10, n_gene=5, n_targets=12, n_classes=2, n_embedding=32, contrastive_weight=1.0, max_epochs=40, batch_size=60, learning_rate=1e-2
    )  # fmt: skip
    model.train(**pairs(), held_out=[3])
    return model

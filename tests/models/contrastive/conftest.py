from __future__ import annotations

import pytest

from stcontrast.models import ContrastiveModel
from tests.models.contrastive.synthetic import pairs


@pytest.fixture(scope="session")
def trained():
    """Trained on pairs; tests must not train it further."""
    model = ContrastiveModel(
        n_image=10, n_gene=5, n_embedding=32, max_epochs=40, batch_size=60, input_dropout=0.1, dropout=0.1
    )
    model.train(**pairs())
    return model

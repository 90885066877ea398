"""The batch-agnostic variational autoencoder of gene counts."""

from __future__ import annotations

from stcontrast._models.batch_vae._model import BatchAgnosticVAE
from stcontrast._models.batch_vae._module import BatchAgnosticVAEModule
from stcontrast._models.batch_vae._on_disk import SpotsOnDisk

__all__ = ["BatchAgnosticVAE", "BatchAgnosticVAEModule", "SpotsOnDisk"]

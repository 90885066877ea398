"""The batch-agnostic variational autoencoder of gene counts."""

from __future__ import annotations

from stcontrast._models.batch_vae.counts import align_genes
from stcontrast._models.batch_vae.history import vae_losses
from stcontrast._models.batch_vae.model import BatchAgnosticVAE, fit_vae, make_vae
from stcontrast._models.batch_vae.module import BatchAgnosticVAEModule
from stcontrast._models.batch_vae.on_disk import SpotsOnDisk

__all__ = [
    "BatchAgnosticVAE",
    "BatchAgnosticVAEModule",
    "SpotsOnDisk",
    "align_genes",
    "fit_vae",
    "make_vae",
    "vae_losses",
]

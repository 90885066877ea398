"""The batch-agnostic variational autoencoder of gene counts."""

from __future__ import annotations

from stcontrast._models.batch_vae.counts import align_genes
from stcontrast._models.batch_vae.fitting import few_spots_of_a_kind, fit_vae, make_vae, vae_losses, with_unlabelled
from stcontrast._models.batch_vae.model import BatchAgnosticVAE
from stcontrast._models.batch_vae.module import BatchAgnosticVAEModule
from stcontrast._models.batch_vae.on_disk import SpotsOnDisk

__all__ = [
    "BatchAgnosticVAE",
    "BatchAgnosticVAEModule",
    "SpotsOnDisk",
    "align_genes",
    "few_spots_of_a_kind",
    "fit_vae",
    "make_vae",
    "vae_losses",
    "with_unlabelled",
]

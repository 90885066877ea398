"""The batch-agnostic VAE as a part of a method: fitted on its training spots, applied to any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast._training import seeded

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from scipy import sparse

    from stcontrast._data.spots import TrainingData
    from stcontrast._models.batch_vae import BatchAgnosticVAE

__all__ = ["GeneLatent"]

# against a log-likelihood of hundreds: the order of scANVI's classification ratio
CLASS_WEIGHT: Final = 50.0


class GeneLatent:
    """Counts to a latent that does not know the batch, and back to expression.

    Parameters
    ----------
    n_latent
        Dimensions.
    max_epochs
        Length of the training; by default the VAE's own rule.
    guided
        Let the classes of annotated spots guide the latent.
    seed
        Seed of all of it.
    """

    def __init__(self, *, n_latent: int, max_epochs: int | None, guided: bool = False, seed: int = 0) -> None:
        self.n_latent = n_latent
        self.max_epochs = max_epochs
        self.guided = guided
        self.seed = seed
        self.vae: BatchAgnosticVAE | None = None
        self.share = np.float32(1.0)

    def fit(self, data: TrainingData) -> None:
        """Train on the measured spots."""
        from anndata import AnnData

        from stcontrast._models.batch_vae import fit_vae

        rows = np.flatnonzero(data.measured)
        adata = AnnData(data.counts[rows])
        adata.obs["batch"] = [str(code) for code in data.batch[rows]]
        adata.obs["batch"] = adata.obs["batch"].astype("category")
        labels = [str(code) if code >= 0 else None for code in data.label[rows]] if self.guided else None
        self.vae = fit_vae(
            adata, batch_key="batch", labels=labels, class_weight=CLASS_WEIGHT, n_latent=self.n_latent,
            max_epochs=self.max_epochs, seed=self.seed,
        )  # fmt: skip
        if data.depth is not None:
            # what the modelled genes are of the whole library: a mean over slides, which count alike
            of_spot = np.asarray(data.counts[rows].sum(axis=1)).ravel() / np.maximum(data.depth[rows], 1.0)
            slide = data.slide[rows]
            self.share = np.float32(np.mean([of_spot[slide == code].mean() for code in np.unique(slide)]))

    def encode(self, counts: sparse.csr_matrix) -> NDArray[np.float32]:
        """Latent of counts (n_spots, n_latent)."""
        # the posterior mean is not random, but scvi-tools draws a sample beside it
        with seeded(self.seed):
            return self.fitted().encode_counts(counts)

    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000), averaged over the batches."""
        proportions = self.fitted().decode_latent(latent)
        return np.log1p(1e4 * self.share * proportions).astype(np.float32)

    def fitted(self) -> BatchAgnosticVAE:
        """The VAE."""
        if self.vae is None:
            msg = "The method has not been fitted with counts."
            raise RuntimeError(msg)
        return self.vae

    def save(self, folder: Path) -> None:
        """Write the VAE, if there is one."""
        if self.vae is not None:
            self.vae.save(str(folder / "vae"), save_anndata=False)
            np.save(folder / "share.npy", self.share)

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        from stcontrast._models.batch_vae import BatchAgnosticVAE

        if (folder / "vae").exists():
            self.vae = BatchAgnosticVAE.load(str(folder / "vae"), accelerator="cpu")
            self.share = np.load(folder / "share.npy")[()]

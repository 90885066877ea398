"""SCVI and SCANVI of scvi-tools as a part of a method, in the place of the batch-agnostic VAE."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from stcontrast._genespace._vae import BATCH, VaeSpace, empty_spots
from stcontrast._progress import stage
from stcontrast._state import State, module_state, restore_module
from stcontrast._training import one_thread, quiet_loggers, quiet_training, seeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from stcontrast._data import Spots

__all__ = ["ScviSpace"]

CLASS: Final = "class"
QUIET: Final[dict[str, Any]] = {
    "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
    "accelerator": "cpu", "log_every_n_steps": 1, "train_size": 1.0,
    # (it would be drawn with a seed of the whole session)
    "shuffle_set_split": False,
}  # fmt: skip


class ScviSpace(VaeSpace):
    """Counts to the latent of scvi-tools' SCVI, and back to expression; of SCANVI where classes guide it.

    Architecture, likelihood and training are the defaults of scvi-tools, the length of the training too if `max_epochs`
    is `None`, but that all spots are trained on. The encoder does not see the batch (``encode_covariates=False``), nor other spots. SCANVI starts from a
    trained SCVI, as scvi-tools advises; without any class it is that SCVI.

    Parameters
    ----------
    n_latent
        Dimensions.
    max_epochs
        Length of SCVI's training.
    guided
        Go on with SCANVI.
    seed
        Seed of all of it.
    """

    within_slide: ClassVar[bool] = False

    def __init__(self, *, n_latent: int, max_epochs: int | None, guided: bool = False, seed: int = 0) -> None:
        super().__init__(n_latent=n_latent, max_epochs=max_epochs, guided=guided, seed=seed)
        self.names: dict[str, list[str]] = {}

    def trained(self, adata: AnnData, labels: Sequence[str | None] | None) -> Any:
        """SCVI trained on these spots, or SCANVI where there are classes."""
        known = sorted({label for label in labels or () if label is not None})
        self.names = {"batches": sorted(set(adata.obs[BATCH].astype(str))), "classes": known}
        self.names["genes"] = [str(gene) for gene in adata.var_names]
        name = "scANVI" if known else "scVI"
        with quiet_training(self.seed), quiet_loggers("scvi", level=logging.ERROR), stage(f"gene model, {name}"):
            model = self._untrained(adata)
            model.train(max_epochs=self.max_epochs, **QUIET)
            if known:
                model = self._from_scvi(model, labels or ())
                model.train(**QUIET)
        model.module.eval()
        return model

    def encode(self, spots: Spots) -> NDArray[np.float32]:
        """Mean of the posterior of the spots with counts (n_measured, n_latent)."""
        import torch

        counts, module = spots.counts[np.flatnonzero(spots.measured)], self.fitted().module
        # the posterior mean is not random, but scvi-tools draws a sample as well
        with seeded(self.seed), torch.inference_mode(), one_thread():
            seen = torch.from_numpy(np.log1p(counts.toarray()).astype(np.float32))
            posterior, _ = module.z_encoder(seen, torch.zeros(len(seen), 1))
            latent: NDArray[np.float32] = posterior.loc.numpy()
        return latent

    def proportions(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        """Share of every modelled gene in their counts (n_spots, n_genes), averaged over the batches."""
        import torch

        module, z = self.fitted().module, torch.from_numpy(np.asarray(latent, dtype=np.float32))
        with torch.inference_mode(), one_thread():
            of_batch = [
                module.decoder(module.dispersion, z, torch.zeros(len(z), 1), torch.full((len(z), 1), code))[0]
                for code in range(len(self.names["batches"]))
            ]
            found: NDArray[np.float32] = torch.stack(of_batch).mean(dim=0).numpy()
        return found

    def losses(self) -> dict[str, pd.DataFrame]:
        """Losses of the last training, if there was one here."""
        from stcontrast._models.batch_vae import vae_losses

        found = vae_losses(None if self.vae is None else self.vae.history)
        return {"gene VAE": found} if len(found) else {}

    def state(self) -> State:
        """Weights, and the names that the model was set up with; nothing where there were no counts."""
        if self.vae is None:
            return {}
        return {"weights": module_state(self.vae.module), "share": float(self.share), **self.names}

    def restore(self, state: State) -> None:
        """Take what :meth:`state` gave: the model is set up on empty spots with the same names, and given its weights."""
        if not state:
            return
        self.names = {name: list(state[name]) for name in ("batches", "classes", "genes")}
        adata, labels = empty_spots(**self.names)
        with quiet_training(self.seed), quiet_loggers("scvi", level=logging.ERROR):
            self.vae = self._untrained(adata)
            if labels is not None:
                self.vae.is_trained_ = True
                self.vae = self._from_scvi(self.vae, labels)
        restore_module(self.vae.module, state["weights"])
        self.share = np.float32(state["share"])

    def _untrained(self, adata: AnnData) -> Any:
        from scvi.model import SCVI

        from stcontrast._models.batch_vae import few_spots_of_a_kind

        with few_spots_of_a_kind():
            SCVI.setup_anndata(adata, batch_key=BATCH)
        return SCVI(adata, n_latent=self.n_latent)

    def _from_scvi(self, model: Any, labels: Sequence[str | None]) -> Any:
        from scvi.model import SCANVI

        from stcontrast._models.batch_vae import few_spots_of_a_kind, with_unlabelled

        classes = model.adata.obs[CLASS] = with_unlabelled(labels, self.names["classes"])
        with few_spots_of_a_kind():
            return SCANVI.from_scvi_model(model, unlabeled_category=classes.categories[-1], labels_key=CLASS)

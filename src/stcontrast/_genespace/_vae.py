"""The batch-agnostic VAE as a part of a method: fitted on its training spots or given, applied to any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import pandas as pd
from scipy import sparse

from stcontrast._slides import rows_by_slide
from stcontrast._state import Learns, State, module_state, restore_module
from stcontrast._training import seeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from stcontrast._data import Spots
    from stcontrast._models.batch_vae import BatchAgnosticVAE

__all__ = ["BATCH", "CLASS_WEIGHT", "SLIDE", "VaeSpace", "adata_of", "empty_spots"]

# against a log-likelihood of hundreds: the order of scANVI's classification ratio
CLASS_WEIGHT: Final = 50.0
BATCH: Final = "batch"
SLIDE: Final = "slide"


class VaeSpace(Learns):
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
    given
        A trained model to use as it is, instead of training one; the spots must have its genes in its order.
    """

    within_slide: ClassVar[bool] = True
    """Whether a spot is seen against its slide."""

    def __init__(
        self,
        *,
        n_latent: int,
        max_epochs: int | None,
        guided: bool = False,
        seed: int = 0,
        given: BatchAgnosticVAE | None = None,
    ) -> None:
        self.n_latent = n_latent
        self.max_epochs = max_epochs
        self.guided = guided
        self.seed = seed
        self.given = given
        self.vae: Any = None
        self.share = np.float32(1.0)

    def fit(self, spots: Spots) -> None:
        """Train on the measured spots, or take the model that was given."""
        measured = spots.take(np.flatnonzero(spots.measured))
        labels = [measured.classes[i] if i >= 0 else None for i in measured.label] if self.guided else None
        self.vae = self.given or self.trained(
            adata_of(measured.counts, measured.batch, measured.slide, measured.genes), labels
        )
        # what the modelled genes are of the whole library: a mean over slides, which count alike
        of_spot = np.asarray(measured.counts.sum(axis=1)).ravel() / np.maximum(measured.depth, 1.0)
        self.share = np.float32(np.mean([of_spot[rows].mean() for rows in rows_by_slide(measured.slide)]))

    def trained(self, adata: AnnData, labels: Sequence[str | None] | None) -> Any:
        """A model, trained on spots with a batch and a slide in `obs`, guided by their classes if there are some."""
        from stcontrast._models.batch_vae import fit_vae

        return fit_vae(
            adata, batch_key=BATCH, labels=labels, class_weight=CLASS_WEIGHT, n_latent=self.n_latent,
            max_epochs=self.max_epochs, slide_key=SLIDE, seed=self.seed,
        )  # fmt: skip

    def encode(self, spots: Spots) -> NDArray[np.float32]:
        """Latent of the spots with counts (n_measured, n_latent), each against its own slide, which should be whole."""
        # the posterior mean is not random, but scvi-tools draws a sample as well
        with seeded(self.seed):
            rows = np.flatnonzero(spots.measured)
            latent: NDArray[np.float32] = self.fitted().encode_counts(
                spots.counts[rows], slide=spots.slide[rows].astype(str)
            )
            return latent

    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000), averaged over the batches."""
        proportions: NDArray[np.float32] = self.proportions(latent)
        return np.log1p(1e4 * self.share * proportions).astype(np.float32)

    def proportions(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        """Share of every modelled gene in their counts (n_spots, n_genes), averaged over the batches."""
        found: NDArray[np.float32] = self.fitted().decode_latent(latent)
        return found

    def fitted(self) -> Any:
        """The VAE."""
        if self.vae is None:
            msg = "The method has not been fitted with counts."
            raise RuntimeError(msg)
        return self.vae

    def losses(self) -> dict[str, pd.DataFrame]:
        """Losses of the VAE, if it has been trained here."""
        from stcontrast._models.batch_vae import vae_losses

        found = vae_losses(None if self.vae is None or self.given is not None else self.vae.history)
        return {"gene VAE": found} if len(found) else {}

    def state(self) -> State:
        """Weights, and the names that the VAE was set up with; nothing where there were no counts."""
        if self.vae is None:
            return {}
        return {
            "weights": module_state(self.vae.module), "share": float(self.share), "genes": list(self.vae.genes),
            "batches": self.vae.batches, "classes": [str(name) for name in self.vae.classes],
            "within_slide": self.vae.slide_key is not None, "architecture": _architecture(self.vae),
        }  # fmt: skip

    def restore(self, state: State) -> None:
        """Take what :meth:`state` gave: the VAE is set up on empty spots with the same names, and given its weights."""
        from stcontrast._models.batch_vae import make_vae

        if not state:
            return
        adata, labels = empty_spots(**{name: state[name] for name in ("batches", "classes", "genes")})
        self.vae = make_vae(
            adata, batch_key=BATCH, labels=labels,
            slide_key=SLIDE if state["within_slide"] else None, seed=self.seed, **state["architecture"],
        )  # fmt: skip
        restore_module(self.vae.module, state["weights"])
        self.vae.is_trained_ = True
        self.share = np.float32(state["share"])


def _architecture(vae: BatchAgnosticVAE) -> dict[str, Any]:
    """Arguments that make an untrained model of the same shape, as plain values."""
    given = vae.init_params_["non_kwargs"] | vae.init_params_["kwargs"].get("kwargs", {})
    return {name: value for name, value in given.items() if name not in {"adata", "registry", "seed"}}


def empty_spots(
    batches: Sequence[str], classes: Sequence[str], genes: Sequence[str]
) -> tuple[AnnData, list[str | None] | None]:
    """Spots without counts and their labels, in every batch, of every class and of none: to set up a saved model."""
    n = max(len(batches), len(classes) + 1)
    empty = sparse.csr_matrix((n, len(genes)), dtype=np.float32)
    labels = [*classes, *[None] * (n - len(classes))] if classes else None
    return adata_of(empty, np.resize(np.array(batches, dtype=np.str_), n), np.zeros(n, dtype=np.int64), genes), labels


def adata_of(
    counts: sparse.csr_matrix, batch: NDArray[np.str_], slide: NDArray[np.int64], genes: Sequence[str]
) -> AnnData:
    """Spots as scvi-tools takes them: counts, batch and slide."""
    from anndata import AnnData

    columns = {BATCH: pd.Categorical(batch), SLIDE: pd.Categorical(slide.astype(str))}
    obs = pd.DataFrame(columns, index=[str(i) for i in range(counts.shape[0])])
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=pd.Index(list(genes), dtype=object)))

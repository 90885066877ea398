"""TPIRBAE: a frozen batch-agnostic gene encoder, and an image tower taught by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from stcontrast._genespace import ScviSpace, VaeSpace
from stcontrast._keys import VAE_LATENT
from stcontrast.methods._linear import standardizer
from stcontrast.methods.published._contrastive import ContrastiveMethod, ContrastiveOptions
from stcontrast.methods.published._decoders import Decoder, LatentDecoder

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from stcontrast._data import Spots
    from stcontrast.nn import PairModule

__all__ = ["Tpirbae", "TpirbaeOptions"]


@dataclass(frozen=True, kw_only=True)
class TpirbaeOptions(ContrastiveOptions):
    """Options of :class:`Tpirbae`; see :class:`ContrastiveOptions`.

    Parameters
    ----------
    n_latent
        Dimensions of the gene latent.
    vae_epochs
        Length of the VAE's training; by default its own rule.
    guided
        Let the classes of annotated spots guide the latent.
    vae
        ``"ours"``: :class:`~stcontrast.models.BatchAgnosticVAE`, and guided with a linear classifier. ``"scvi-tools"``:
        the package's SCVI, and guided its SCANVI, as in the paper, with their defaults.
    """

    decoder: Literal["retrieval", "regression", "vae"] = "vae"
    n_latent: int = 16
    vae_epochs: int | None = None
    guided: bool = False
    vae: Literal["ours", "scvi-tools"] = "ours"


class Tpirbae(ContrastiveMethod):
    """Image encoding taught by a batch-agnostic gene encoder.

    Stage 1: :class:`~stcontrast.models.BatchAgnosticVAE` (or SCVI, SCANVI) on the training spots, unsupervised or
    ``guided`` by classes, then frozen. Stage 2: a projection head on its latent, another on the image features, tied by InfoNCE or
    by the similarity-target loss. What it is for is the image embedding: subtypes by linear probe or kNN. Expression
    comes from the image embedding through a regression of the latent and the VAE's decoder, averaged over batches.
    """

    name: ClassVar[str] = "tpirbae"
    trains_tower: ClassVar[bool] = True
    reference: ClassVar[str] = "Nishimura et al. 2025 (TPIRBAE, arXiv 2503.07173); much of it decided here"
    options_type: ClassVar[type[ContrastiveOptions]] = TpirbaeOptions
    decoders: ClassVar[tuple[str, ...]] = ("retrieval", "regression", "vae")
    learnt: ClassVar[tuple[str, ...]] = (*ContrastiveMethod.learnt, "latent")
    options: TpirbaeOptions

    def build(self, *, n_image: int, n_gene: int, n_targets: int) -> PairModule:
        """Two projection heads."""
        from stcontrast.nn import HeadPair

        del n_targets
        options = self.options
        return HeadPair(
            self.contrast(), n_image=n_image, n_gene=n_gene, n_embedding=options.n_embedding, dropout=options.dropout
        )

    def make_decoder(self) -> Decoder:
        """The decoder that the options ask for, not fitted."""
        options = self.options
        space = VaeSpace if options.vae == "ours" else ScviSpace
        self.latent = space(
            n_latent=options.n_latent, max_epochs=options.vae_epochs, guided=options.guided, seed=self.seed
        )
        if options.decoder == "vae":
            return LatentDecoder(penalty=options.penalty, latent=self.latent)
        return super().make_decoder()

    def fit_genes(self, spots: Spots) -> None:
        """Train the VAE."""
        self.latent.fit(spots)
        center, scale = standardizer(self.latent.encode(spots))
        self.arrays |= {"latent_center": center, "latent_scale": scale}

    def gene_input(self, spots: Spots) -> NDArray[np.float32]:
        """The latent, standardised (n_spots, n_latent)."""
        latent = self.latent.encode(spots)
        return (latent - self.arrays["latent_center"]) / self.arrays["latent_scale"]

    def losses(self) -> dict[str, pd.DataFrame]:
        """Losses of the VAE and of the heads."""
        return self.latent.losses() | super().losses() if self.history is not None else {}

    def embed(self, spots: Spots) -> dict[str, NDArray[np.float32]]:
        """Joint embeddings by slot, and where there are counts the gene latent."""
        found = super().embed(spots)
        if found and spots.has_counts:
            found[VAE_LATENT] = spots.spread(self.latent.encode(spots))
        return found

"""What encodes the counts of tables: a gene latent that was trained here, elsewhere, or as a part of a method."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stcontrast._reading.counts import raw_counts
from stcontrast._reading.resolve import slide_of_row
from stcontrast._training import seeded
from stcontrast.methods._gene_latent import GeneLatent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from stcontrast.fitted import Predictor
    from stcontrast.models import BatchAgnosticVAE
    from stcontrast.tl._gene_spots import CountedSpots

__all__ = ["GeneEncoder"]


@dataclass(frozen=True, slots=True)
class GeneEncoder:
    """A model, the autoencoder in it, the names of its genes and of the classes that guided it."""

    model: BatchAgnosticVAE | Predictor
    vae: BatchAgnosticVAE
    genes: list[str]
    classes: list[str]

    @property
    def n_latent(self) -> int:
        """Dimensions of the latent."""
        return int(self.vae.module.n_latent)

    @property
    def layer(self) -> str | None:
        """Layer that the model was set up with, `None` for `X`."""
        layer: str | None = self.vae.registry_["setup_args"]["layer"]
        return layer

    @classmethod
    def of(cls, model: BatchAgnosticVAE | Predictor | str | os.PathLike[str]) -> GeneEncoder:
        """That of a trained model, or of the folder of one."""
        from stcontrast.fitted import Predictor
        from stcontrast.models import BatchAgnosticVAE

        if isinstance(model, str | os.PathLike):
            model = _read(Path(model))
        if isinstance(model, BatchAgnosticVAE):
            if not model.is_trained:
                msg = "The model has not been trained: call `model.train()`, or leave out `model` to train one here."
                raise ValueError(msg)
            return cls(model, model, list(model.genes), [str(name) for name in model.classes])
        if not isinstance(model, Predictor):
            msg = (
                "`model` must be a BatchAgnosticVAE, what `stc.tl.fit` returned, or the folder of either; found "
                f"{type(model).__name__}."
            )
            raise TypeError(msg)
        latent = getattr(model.method, "latent", None)
        if not isinstance(latent, GeneLatent) or latent.vae is None:
            msg = (
                f'The model of the method {model.card["method"]!r} has no gene latent: it takes "stcontrast" or '
                '"tpirbae", and counts to train on. Leave out `model` to train one here.'
            )
            raise ValueError(msg)
        # the method's own columns are numbered; the card has their names, and those of its classes
        classes = [model.classes[int(code)] for code in latent.vae.classes]
        return cls(model, latent.vae, list(model.genes), classes)

    @classmethod
    def trained(
        cls,
        spots: CountedSpots,
        *,
        within_slide: bool,
        class_weight: float,
        n_latent: int,
        max_epochs: int | None,
        seed: int,
    ) -> GeneEncoder:
        """One that is trained on these spots."""
        from stcontrast._models.batch_vae import fit_vae

        adata = spots.to_train_on()
        vae = fit_vae(
            adata, batch_key=spots.batch_column, labels=list(spots.label[spots.measured]),
            labels_key=spots.keys.get("label_key", "label"), class_weight=class_weight, n_latent=n_latent,
            max_epochs=max_epochs, slide_key=spots.slide_column if within_slide else None,
            validation_key=spots.keys.get("validation_key"), seed=seed,
        )  # fmt: skip
        return cls(vae, vae, spots.genes, [str(name) for name in vae.classes])

    def encode(
        self,
        tables: Sequence[AnnData],
        *,
        layer: str | None,
        library_key: str | None,
        fill_missing: bool,
        seed: int,
    ) -> list[NDArray[np.float32]]:
        """Latent of every table's spots (n_spots, n_latent), NaN where a spot has no counts.

        Raises
        ------
        KeyError
            If the layer, or the column that names the slides, is absent.
        ValueError
            If counts are not raw, or genes of the model are absent.
        """
        # all of them before the first is encoded: what is wrong is said before any work
        counts = [self._counts(table, layer=layer, fill_missing=fill_missing) for table in tables]
        slides = [
            None if self.vae.slide_key is None else slide_of_row(table, library_key=library_key) for table in tables
        ]
        return [
            self._latent(matrix, measured, slide, seed=seed)
            for (matrix, measured), slide in zip(counts, slides, strict=True)
        ]

    def _counts(self, table: AnnData, *, layer: str | None, fill_missing: bool) -> tuple[Any, NDArray[np.bool_]]:
        from stcontrast._models.batch_vae import align_genes

        if table.n_vars == 0:
            return None, np.zeros(table.n_obs, dtype=bool)
        full = raw_counts(table, None if layer == "X" else layer)
        aligned = align_genes(full, table.var_names, pd.Index(self.genes), fill_missing=fill_missing)
        return aligned, np.asarray(full.sum(axis=1)).ravel() > 0

    def _latent(
        self, counts: Any, measured: NDArray[np.bool_], slide: NDArray[np.str_] | None, *, seed: int
    ) -> NDArray[np.float32]:
        latent = np.full((len(measured), self.n_latent), np.nan, dtype=np.float32)
        if measured.any():
            # the posterior mean is not random, but scvi-tools draws a sample beside it
            with seeded(seed):
                latent[measured] = self.vae.encode_counts(
                    counts[np.flatnonzero(measured)], slide=None if slide is None else slide[measured]
                )
        return latent


def _read(folder: Path) -> BatchAgnosticVAE | Predictor:
    from stcontrast.models import BatchAgnosticVAE, load

    if (folder / "card.json").is_file():
        return load(folder)
    if not (folder / "model.pt").is_file():
        msg = (
            f"No model in {str(folder)!r}: neither `card.json` (stc.tl.fit) nor `model.pt` (BatchAgnosticVAE) is there."
        )
        raise FileNotFoundError(msg)
    return BatchAgnosticVAE.load(folder)

"""From the latent to expected expression and to classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from stcontrast._training import one_thread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

__all__ = ["ClassesMixin", "DecodingMixin", "check_classes"]

DECODED_AT_ONCE = 1024


class DecodingMixin:
    """Expected proportions of the genes at points of the latent space, in one batch or averaged over batches."""

    module: Any
    registry_: dict[str, Any]

    @property
    def batches(self) -> list[str]:
        """Names of the batches that the decoder knows."""
        state = self.registry_["field_registries"][REGISTRY_KEYS.BATCH_KEY]["state_registry"]
        return [str(name) for name in state["categorical_mapping"]]

    def decode_latent(
        self, latent: np.ndarray[Any, Any], *, transform_batch: str | Sequence[str] | None = None
    ) -> np.ndarray[Any, Any]:
        """Expected proportion of every gene.

        Parameters
        ----------
        latent
            Points of the latent space, shape ``(n_points, n_latent)``.
        transform_batch
            Batch to decode into, or several to average over; ``None`` (default) for all batches of the training data.

        Returns
        -------
        numpy.ndarray
            Proportions, float32, shape ``(n_points, n_genes)``, columns in the order of :attr:`genes`; they sum to 1.

        Raises
        ------
        ValueError
            If the model has no such batch, or the latent has another width.
        RuntimeError
            If the model has not been trained.

        Examples
        --------
        >>> proportions = model.decode_latent(model.get_latent_representation(adata))  # doctest: +SKIP
        """
        self._check_if_trained(warn=False)  # type: ignore[attr-defined]
        latent = np.asarray(latent, dtype=np.float32)
        if latent.ndim != 2 or latent.shape[1] != self.module.n_latent:
            msg = f"latent has shape {latent.shape}; the model has {self.module.n_latent} dimensions, one per column."
            raise ValueError(msg)
        named = [transform_batch] if isinstance(transform_batch, str) else transform_batch
        wanted = self.batches if named is None else list(named)
        absent = [name for name in wanted if name not in self.batches]
        if absent or not wanted:
            msg = f"batches {absent} are not among those trained on: {self.batches}."
            raise ValueError(msg)
        codes = [self.batches.index(name) for name in wanted]
        self.module.eval()
        with torch.inference_mode(), one_thread():
            chunks = torch.as_tensor(latent).split(DECODED_AT_ONCE)  # type: ignore[no-untyped-call]
            parts = [self._decode(chunk, codes) for chunk in chunks]
        decoded: np.ndarray[Any, Any] = torch.cat(parts).numpy()
        return decoded

    def _decode(self, latent: torch.Tensor, codes: list[int]) -> torch.Tensor:
        latent = latent.to(self.module.device)
        total = torch.zeros((), device=self.module.device)
        for code in codes:
            batch = torch.full((len(latent), 1), code, device=latent.device)
            # a dispersion by label needs a label, which does not change the proportions
            outputs = self.module.generative(
                z=latent, library=torch.zeros_like(latent[:, :1]), batch_index=batch, y=torch.zeros_like(batch)
            )
            total = total + outputs["px"].scale
        return (total / len(codes)).cpu()


class ClassesMixin:
    """Class of spots of any donor, by the linear classifier that guided the latent."""

    module: Any
    adata: Any
    registry_: dict[str, Any]

    @property
    def classes(self) -> list[Any]:
        """Names of the classes that guide the latent, in the classifier's order; empty without ``class_weight``."""
        if self.module.classifier is None:
            return []
        state = self.registry_["field_registries"][REGISTRY_KEYS.LABELS_KEY]["state_registry"]
        # the category of spots without a class is always the last
        return list(state["categorical_mapping"][:-1])

    @overload
    def predict(
        self,
        adata: AnnData | None = ...,
        indices: Sequence[int] | np.ndarray[Any, Any] | None = ...,
        *,
        soft: Literal[False] = ...,
        layer: str | None = ...,
        slide_key: str | None = ...,
        fill_missing: bool = ...,
        batch_size: int | None = ...,
    ) -> np.ndarray[Any, Any]: ...

    @overload
    def predict(
        self,
        adata: AnnData | None = ...,
        indices: Sequence[int] | np.ndarray[Any, Any] | None = ...,
        *,
        soft: Literal[True],
        layer: str | None = ...,
        slide_key: str | None = ...,
        fill_missing: bool = ...,
        batch_size: int | None = ...,
    ) -> pd.DataFrame: ...

    def predict(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray[Any, Any] | None = None,
        *,
        soft: bool = False,
        layer: str | None = None,
        slide_key: str | None = None,
        fill_missing: bool = False,
        batch_size: int | None = None,
    ) -> np.ndarray[Any, Any] | pd.DataFrame:
        """Class of spots of any donor, from the mean of the posterior.

        As for :meth:`get_latent_representation`, ``adata`` needs no setup, batch or labels, and does not change.

        Parameters
        ----------
        adata
            Object with raw counts, spots × genes. ``None`` (default) for the training data.
        indices
            Spots to classify; ``None`` (default) for all.
        soft
            Whether to return the probability of every class instead of the most probable class.
        layer
            Layer that holds the raw counts; ``"X"`` for ``X``. ``None`` (default) for the layer of
            :meth:`setup_anndata`.
        slide_key
            As for :meth:`get_latent_representation`.
        fill_missing
            Whether to take genes that ``adata`` lacks as zero counts. By default they are an error.
        batch_size
            Spots encoded at once; 1024 by default.

        Returns
        -------
        numpy.ndarray or pandas.DataFrame
            Class of every spot, shape ``(n_spots,)``; with ``soft``, probabilities, spots × classes, with ``obs_names``
            as the index.

        Raises
        ------
        KeyError
            If the layer is missing.
        ValueError
            If the model was trained without classes, the values are not raw counts, genes of the model are missing, or
            the model was loaded without data and ``adata`` is not given.
        RuntimeError
            If the model has not been trained.

        Notes
        -----
        The classifier is trained together with the latent, on spots of the training donors. Its probabilities are not
        calibrated, and overconfident on an unseen donor.

        Examples
        --------
        >>> model.predict(unseen_donor)  # doctest: +SKIP
        >>> model.predict(unseen_donor, soft=True).max(axis=1)  # doctest: +SKIP
        """
        if not self.classes:
            msg = (
                "this model was trained without classes: give labels_key and unlabeled_category to setup_anndata, and a "
                "class_weight above 0 to the model, then train it."
            )
            raise ValueError(msg)
        latent = self.get_latent_representation(  # type: ignore[attr-defined]
            adata, indices, layer=layer, slide_key=slide_key, fill_missing=fill_missing, batch_size=batch_size
        )
        proba = self._classify(latent)
        names = np.asarray(self.classes)
        if not soft:
            return names[proba.argmax(axis=1)]
        spots = (self.adata if adata is None else adata).obs_names
        return pd.DataFrame(proba, index=spots if indices is None else spots[list(indices)], columns=pd.Index(names))

    @torch.inference_mode()
    def _classify(self, latent: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        was_training = self.module.training
        self.module.eval()
        with one_thread():
            logits = self.module.classify(torch.as_tensor(latent, device=self.module.device))
        self.module.train(was_training)
        proba: np.ndarray[Any, Any] = logits.softmax(dim=1).cpu().numpy()
        return proba


def check_classes(adata: AnnData, labels_key: str, source_registry: Mapping[str, Any]) -> None:
    """Raise if spots have a class that the model with this registry was not trained with."""
    state = source_registry["field_registries"][REGISTRY_KEYS.LABELS_KEY]["state_registry"]
    known = list(state["categorical_mapping"])
    unknown = sorted(map(str, set(adata.obs[labels_key].unique()) - set(known)))
    if unknown:
        msg = (
            f"adata.obs[{labels_key!r}] has classes that the model was not trained with: {unknown}. It knows "
            f"{known[:-1]}; give other spots the category of spots without a class, {known[-1]!r}."
        )
        raise ValueError(msg)

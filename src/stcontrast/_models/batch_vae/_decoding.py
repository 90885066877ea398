"""From the latent back to expected expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from stcontrast._training import one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DecodingMixin"]

_DECODED_AT_ONCE = 1024


class DecodingMixin:
    """Expected proportions of the genes at points of the latent space, in a batch or on average over batches."""

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
            Batch to decode into, or several to average over; ``None`` (default) for all that were trained on.

        Returns
        -------
        numpy.ndarray
            Proportions, float32, shape ``(n_points, n_genes)``, columns in the order of :attr:`genes`; they sum to 1.

        Raises
        ------
        ValueError
            If a batch is not there, or the latent has another width.
        RuntimeError
            If the model has not been trained.

        Examples
        --------
        >>> proportions = model.decode_latent(model.get_latent_representation(adata))  # doctest: +SKIP
        """
        self._check_if_trained(warn=False)  # type: ignore[attr-defined]
        latent = np.asarray(latent, dtype=np.float32)
        if latent.ndim != 2 or latent.shape[1] != self.module.n_latent:
            msg = f"latent has shape {latent.shape}; the model has {self.module.n_latent} dimensions, one a column."
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
            chunks = torch.as_tensor(latent).split(_DECODED_AT_ONCE)  # type: ignore[no-untyped-call]
            parts = [self._decode(chunk, codes) for chunk in chunks]
        decoded: np.ndarray[Any, Any] = torch.cat(parts).numpy()
        return decoded

    def _decode(self, latent: torch.Tensor, codes: list[int]) -> torch.Tensor:
        latent = latent.to(self.module.device)
        total = torch.zeros((), device=self.module.device)
        for code in codes:
            batch = torch.full((len(latent), 1), code, device=latent.device)
            # a dispersion by label needs one, but does not touch the proportions
            outputs = self.module.generative(
                z=latent, library=torch.zeros_like(latent[:, :1]), batch_index=batch, y=torch.zeros_like(batch)
            )
            total = total + outputs["px"].scale
        return (total / len(codes)).cpu()

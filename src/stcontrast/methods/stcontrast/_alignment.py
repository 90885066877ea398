"""Genes and image brought into one space after each has been learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from stcontrast._training import seeded
from stcontrast.methods._arrays import load_arrays, save_arrays
from stcontrast.methods._network import standardiser
from stcontrast.nn import Contrast, HeadPair, SpotTable

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from stcontrast.nn import Loss, PairModule

__all__ = ["Alignment"]

N_EMBEDDING: Final = 128
BATCH_SIZE: Final = 128
MAX_EPOCHS: Final = 50
LEARNING_RATE: Final = 1e-3
WEIGHT_DECAY: Final = 1e-2


class Alignment:
    """Two projection heads, on a gene latent and on an image embedding that are both fixed, taught by a contrast.

    Parameters
    ----------
    loss
        ``"info_nce"`` or ``"similarity_target"``, the latter with targets from the inputs.
    temperature
        Temperature of the contrast, on unit-length embeddings.
    seed
        Seed of weights and batches.
    """

    def __init__(self, *, loss: Loss, temperature: float, seed: int) -> None:
        self.loss: Loss = loss
        self.temperature = temperature
        self.seed = seed
        self.module: HeadPair | None = None
        self.scales: dict[str, NDArray[np.float32]] = {}

    def fit(
        self,
        image: NDArray[np.float32],
        gene: NDArray[np.float32],
        slide: NDArray[np.int64],
        xy: NDArray[np.float64],
    ) -> None:
        """Train on paired spots: image (n_spots, n_image), gene (n_spots, n_gene), slide (n_spots,), xy (n_spots, 2)."""
        from stcontrast.methods._pair_training import train_pairs

        for name, values in (("image", image), ("gene", gene)):
            self.scales[f"{name}_center"], self.scales[f"{name}_scale"] = standardiser(values)
        image, gene = self._scaled("image", image), self._scaled("gene", gene)
        table = SpotTable.of(image, slide, xy, gene=gene)
        with seeded(self.seed):
            module = self._build(image.shape[1], gene.shape[1])
            train_pairs(module, table, batch_size=BATCH_SIZE, max_epochs=MAX_EPOCHS, optimizer=_adamw)
        self.module = module

    def embed_image(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Joint embedding (n_spots, 128) of image embeddings (n_spots, n_image), unit length."""
        return self._embed(self._fitted().image_head, self._scaled("image", image))

    def embed_genes(self, gene: NDArray[np.float32]) -> NDArray[np.float32]:
        """Joint embedding (n_spots, 128) of gene latents (n_spots, n_gene), unit length."""
        return self._embed(self._fitted().gene_head, self._scaled("gene", gene))

    def save(self, folder: Path) -> None:
        """Write heads and scales, if there are any."""
        from safetensors.torch import save_file

        if self.module is None:
            return
        save_arrays(folder / "alignment.npz", self.scales)
        state = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        save_file(state, folder / "alignment.safetensors")

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        from safetensors.torch import load_file

        if not (folder / "alignment.npz").exists():
            return
        self.scales = load_arrays(folder / "alignment.npz")
        with seeded(self.seed):
            self.module = self._build(len(self.scales["image_center"]), len(self.scales["gene_center"]))
        self.module.load_state_dict(load_file(folder / "alignment.safetensors"))
        self.module.eval()

    def _build(self, n_image: int, n_gene: int) -> HeadPair:
        contrast = Contrast(loss=self.loss, temperature=self.temperature, targets="input")
        return HeadPair(contrast, n_image=n_image, n_gene=n_gene, n_embedding=N_EMBEDDING, dropout=0.1)

    def _scaled(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return (values - self.scales[f"{name}_center"]) / self.scales[f"{name}_scale"]

    def _embed(self, head: torch.nn.Module, values: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            embedding = torch.nn.functional.normalize(head(torch.as_tensor(values, dtype=torch.float32)), dim=1)
        found: NDArray[np.float32] = embedding.numpy()
        return found

    def _fitted(self) -> HeadPair:
        if self.module is None:
            msg = "The method has not been fitted with counts."
            raise RuntimeError(msg)
        return self.module


def _adamw(module: PairModule) -> tuple[torch.optim.Optimizer, None]:
    return torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY), None

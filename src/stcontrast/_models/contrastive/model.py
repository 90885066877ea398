"""The contrastive model: arrays in, arrays out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stcontrast._arguments import checked, one_of, whole
from stcontrast._files import read_folder, unreadable, write_folder
from stcontrast._models.contrastive.training import train_pairs
from stcontrast._state import module_state, restore_module
from stcontrast._training import one_thread, seeded
from stcontrast.nn import LOSSES, Contrast, PairModule, SpotTable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    import pandas as pd
    from numpy.typing import NDArray

    from stcontrast._state import State
    from stcontrast.nn import Loss

__all__ = ["ContrastiveModel"]

# spots that are embedded at once
EMBEDDED_AT_ONCE: Final = 8192
# steps that a training takes, as far as the bounds on its epochs allow
N_STEPS: Final = 400
FEWEST_EPOCHS: Final = 10
MOST_EPOCHS: Final = 60
KIND: Final = "ContrastiveModel"


class TowerPair(PairModule):
    """An image tower of one hidden layer, a linear gene tower, and a linear read-out of the gene coordinates.

    Parameters
    ----------
    contrast
        The contrastive loss.
    contrastive_weight
        Its weight; that of the squared error of the read-out is 1.
    n_image, n_gene, n_hidden, n_embedding
        Image features, gene coordinates, and the widths of the hidden layer and of the embedding.
    input_dropout, dropout
        Dropout on the image features and on the hidden layer.
    """

    def __init__(
        self,
        contrast: Contrast,
        *,
        contrastive_weight: float,
        n_image: int,
        n_gene: int,
        n_hidden: int,
        n_embedding: int,
        input_dropout: float,
        dropout: float,
    ) -> None:
        super().__init__(contrast)
        self.weights = {"contrastive": contrastive_weight, "squared_error": 1.0}
        self.image_tower = nn.Sequential(
            nn.Dropout(input_dropout), nn.Linear(n_image, n_hidden), nn.GELU(),
            nn.Dropout(dropout), nn.Linear(n_hidden, n_embedding),
        )  # fmt: skip
        self.gene_tower = nn.Linear(n_gene, n_embedding)
        self.read_out = nn.Linear(n_embedding, n_gene)

    def embed_image(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Image embedding (n, d), not of unit length: the read-out sees how sure the tower is."""
        embedding: Tensor = self.image_tower(table.image[rows])
        return embedding

    def embed_genes(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Gene embedding (n, d)."""
        embedding: Tensor = self.gene_tower(table.gene[rows])
        return embedding

    def losses(self, table: SpotTable, rows: Tensor) -> dict[str, Tensor]:
        """The contrast, if it has a weight, and the squared error of the coordinates."""
        image = self.embed_image(table, rows)
        parts = {"squared_error": functional.mse_loss(self.read_out(image), table.gene[rows])}
        if self.weights["contrastive"]:
            parts["contrastive"] = self.contrast(self.embed_genes(table, rows), image, table, rows)
        return parts

    def regress(self, table: SpotTable, rows: Tensor) -> Tensor:
        """Gene coordinates read out of the image embedding (n, n_gene)."""
        read: Tensor = self.read_out(self.embed_image(table, rows))
        return read

    def batches(self, table: SpotTable, batch_size: int) -> list[Tensor]:
        """Spots of one slide a batch, in random order: what tells slides apart is of no use then."""
        slides = [torch.where(table.slide == code)[0] for code in torch.unique(table.slide)]
        parts = [
            part
            for rows in slides
            for part in rows[torch.randperm(len(rows))].tensor_split(-(-len(rows) // batch_size))
        ]
        return [parts[i] for i in torch.randperm(len(parts))]


class ContrastiveModel:
    """Ties image features to gene coordinates: two towers, one joint embedding, and a read-out of the coordinates.

    The image tower has one hidden layer, the gene tower is linear. The contrast compares the spots of one slide: with
    soft targets, the default, a spot's partners are all spots that express alike. A linear read-out predicts the gene
    coordinates from the image embedding (mean squared error). The length of the training is fixed beforehand, and the weights are the mean over its second half.

    Parameters
    ----------
    n_image
        Number of image features.
    n_gene
        Number of gene coordinates, e.g. of principal axes of expression or of a VAE's latent.
    n_hidden, n_embedding
        Width of the image tower's hidden layer and of the joint embedding.
    input_dropout, dropout
        Dropout on the image features and on the hidden layer.
    loss
        ``"soft_target"``, ``"info_nce"`` (CLIP), ``"similarity_target"`` (BLEEP's) or ``"sigmoid"`` (SigLIP).
    contrastive_weight
        Weight of the contrast; 0 trains the read-out alone.
    temperature, target_temperature
        Of the contrast, on unit-length embeddings; and of the similarities that are its targets.
    learning_rate, weight_decay
        Of AdamW.
    max_epochs
        Passes over the spots; 0 leaves the towers untrained. By default about 400 steps, but 10 epochs at least and 60
        at most.
    batch_size
        Most spots in a step, all of one slide.
    seed
        Seed of weights, batches and dropout. The random state of the session does not change.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> rng = np.random.default_rng(0)
    >>> image = rng.normal(size=(90, 8)).astype("float32")
    >>> model = stc.models.ContrastiveModel(n_image=8, n_gene=4, max_epochs=5)
    >>> model.train(image, image[:, :4], slide=np.repeat([0, 1, 2], 30))
    >>> model.embed_image(image).shape, model.predict_gene(image).shape
    ((90, 64), (90, 4))

    References
    ----------
    TPIRBAE (Nishimura et al. 2025, arXiv 2503.07173); BLEEP (Xie et al. 2023, arXiv 2306.01859); SigLIP (Zhai et al.
    2023, arXiv 2303.15343).
    """

    @checked(loss=one_of(*LOSSES), batch_size=whole(2), max_epochs=whole(0))
    def __init__(  # noqa: PLR0913
        self,
        n_image: int,
        n_gene: int,
        *,
        n_hidden: int = 128,
        n_embedding: int = 64,
        input_dropout: float = 0.7,
        dropout: float = 0.5,
        loss: Loss = "soft_target",
        contrastive_weight: float = 1.0,
        temperature: float = 0.1,
        target_temperature: float = 0.3,
        learning_rate: float = 5e-3,
        weight_decay: float = 0.1,
        max_epochs: int | None = None,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> None:
        self.spec: dict[str, Any] = {
            "n_image": n_image, "n_gene": n_gene, "n_hidden": n_hidden, "n_embedding": n_embedding,
            "input_dropout": input_dropout, "dropout": dropout, "loss": loss, "contrastive_weight": contrastive_weight,
            "temperature": temperature, "target_temperature": target_temperature, "learning_rate": learning_rate,
            "weight_decay": weight_decay, "max_epochs": max_epochs, "batch_size": batch_size, "seed": seed,
        }  # fmt: skip
        self.history: pd.DataFrame | None = None
        contrast = Contrast(loss=loss, temperature=temperature, targets="input", target_temperature=target_temperature)
        with seeded(seed):
            self.module = TowerPair(
                contrast, contrastive_weight=contrastive_weight, n_image=n_image, n_gene=n_gene, n_hidden=n_hidden,
                n_embedding=n_embedding, input_dropout=input_dropout, dropout=dropout,
            )  # fmt: skip
        self.module.eval()

    def train(
        self, image: NDArray[np.float32], gene: NDArray[np.float32], *, slide: NDArray[np.int64] | None = None
    ) -> None:
        """Train on paired spots. Losses are in `history`, one row per epoch.

        Parameters
        ----------
        image
            Image features (n_spots, n_image), standardised.
        gene
            Gene coordinates (n_spots, n_gene), standardised.
        slide
            Slide of each spot (n_spots,); one slide by default.

        Raises
        ------
        ValueError
            If an array has another shape, or there are fewer than two spots.
        """
        n_spots = len(image)
        codes = np.zeros(n_spots, dtype=np.int64) if slide is None else np.unique(slide, return_inverse=True)[1]
        expected = {
            "image": (n_spots, self.spec["n_image"]),
            "gene": (n_spots, self.spec["n_gene"]),
            "slide": (n_spots,),
        }
        for name, array in (("image", image), ("gene", gene), ("slide", codes)):
            if np.shape(array) != expected[name]:
                msg = f"`{name}` must have shape {expected[name]}, found {np.shape(array)}."
                raise ValueError(msg)
        if n_spots < 2:
            msg = f"{n_spots} spots are too few to compare."
            raise ValueError(msg)
        nowhere = np.zeros((n_spots, 2))
        table = SpotTable.of(image, codes.astype(np.int64), nowhere, gene=gene)
        n_batches = int(np.ceil(np.bincount(codes) / self.spec["batch_size"]).sum())
        by_default = int(np.clip(N_STEPS // n_batches, FEWEST_EPOCHS, MOST_EPOCHS))
        max_epochs = by_default if self.spec["max_epochs"] is None else self.spec["max_epochs"]
        if max_epochs == 0:
            return
        with seeded(self.spec["seed"]):
            self.history = train_pairs(
                self.module, table, batch_size=self.spec["batch_size"],
                max_epochs=max_epochs, optimizer=self._optimizer,
                average=True,
            )  # fmt: skip
        self.module.cpu().eval()

    def embed_image(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit-length embedding (n_spots, n_embedding) of image features (n_spots, n_image)."""
        return _unit(self._apply(self.module.image_tower, image))

    def embed_genes(self, gene: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit-length embedding (n_spots, n_embedding) of gene coordinates (n_spots, n_gene)."""
        return _unit(self._apply(self.module.gene_tower, gene))

    def predict_gene(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Gene coordinates (n_spots, n_gene) from image features (n_spots, n_image)."""
        return self._apply(torch.nn.Sequential(self.module.image_tower, self.module.read_out), image)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write the model into a folder of its own, as :meth:`Predictor.save` does.

        Raises
        ------
        FileExistsError
            If the folder is there and `overwrite` is off, or holds something that is no stcontrast model.
        """
        write_folder(directory, KIND, self.spec, module_state(self.module), overwrite=overwrite)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read what :meth:`save` wrote; nothing is executed (safetensors and JSON).

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If it is another model, or was cut or changed after it was saved.
        """
        spec, state = read_folder(directory, KIND)
        with unreadable(Path(directory)):
            return cls.restored(spec, state)

    @classmethod
    def restored(cls, spec: Mapping[str, Any], state: State) -> Self:
        """The model of a spec with the weights in a state."""
        # on the meta device no memory is taken for weights that a spec claims
        with torch.device("meta"):
            model = cls(**spec)
        restore_module(model.module, state)
        return model

    def _optimizer(self, module: PairModule) -> tuple[torch.optim.Optimizer, None]:
        trained = [value for value in module.parameters() if value.requires_grad]
        rates = {"lr": self.spec["learning_rate"], "weight_decay": self.spec["weight_decay"]}
        return torch.optim.AdamW(trained, **rates), None

    def _apply(self, network: torch.nn.Module, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode(), one_thread():
            chunks = torch.as_tensor(inputs, dtype=torch.float32).split(EMBEDDED_AT_ONCE)  # type: ignore[no-untyped-call]
            found: NDArray[np.float32] = torch.cat([network(chunk) for chunk in chunks]).numpy()
        return found


def _unit(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)
    unit: NDArray[np.float32] = (embedding / length).astype(np.float32)
    return unit

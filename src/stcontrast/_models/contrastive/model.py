"""The contrastive model: arrays in, arrays out."""

from __future__ import annotations

import copy
import json
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from stcontrast._models.contrastive.module import Batch, ContrastiveConfig, ContrastiveModule
from stcontrast._training import fit_quietly, seeded
from stcontrast.nn import warn_at_chance

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    import lightning.pytorch as pl
    from numpy.typing import NDArray

__all__ = ["ContrastiveModel"]

logger = logging.getLogger(__name__)

# spots at once, to embed and to validate
ENCODED_AT_ONCE: Final = 8192
HELD_OUT_AT_ONCE: Final = 4096
# epochs without a lower validation loss before training stops
PATIENCE: Final = 20


class ContrastiveModel:
    """Aligns image features with a gene latent, and decodes expression and subtype from the image embedding.

    Two towers, each a projection head (see METHODS in the documentation), embed into one space under a contrastive
    loss. A linear decoder maps the image embedding to expression, and a linear head maps it to subtypes. Spots without
    counts contribute to the subtype loss only, spots without labels to the other losses only.

    Parameters
    ----------
    n_image
        Number of image features.
    n_gene
        Number of inputs of the gene tower, e.g. of the latent of a VAE; 0 for a model without counts.
    n_targets
        Number of genes to predict; 0 for a model without counts.
    n_classes
        Number of subtypes; 0 for a model without labels.
    n_embedding
        Dimension of the joint embedding.
    dropout, input_dropout
        Dropout in the heads, and on the image features.
    loss
        ``"info_nce"`` (symmetric, as in CLIP) or ``"similarity_target"`` (soft targets of BLEEP, from the inputs).
    temperature
        Temperature of the contrastive loss, on unit-length embeddings.
    contrastive_weight, subtype_weight
        Weights of these losses; the mean squared error of standardised expression has weight 1.
    learning_rate, weight_decay
        Of AdamW; the learning rate makes one cycle over the training.
    max_epochs, batch_size
        Number of epochs, and spots in a step.
    seed
        Seed of weights, batches and dropout. The random state of the session does not change.

    Raises
    ------
    ValueError
        If there is nothing to learn or a parameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> rng = np.random.default_rng(0)
    >>> image = rng.normal(size=(90, 8)).astype("float32")
    >>> latent, expression = image[:, :4], image @ rng.normal(size=(8, 20)).astype("float32")
    >>> model = stc.models.ContrastiveModel(n_image=8, n_gene=4, n_targets=20, max_epochs=5)
    >>> model.train(image, gene=latent, target=expression)
    >>> model.predict_expression(image).shape
    (90, 20)

    References
    ----------
    TPIRBAE (Nishimura et al. 2025, arXiv 2503.07173); BLEEP (Xie et al. 2023, arXiv 2306.01859).
    """

    def __init__(self, n_image: int, **hyper: Any) -> None:
        self.config = ContrastiveConfig(n_image=n_image, **hyper)
        with seeded(self.config.seed):
            self.module = ContrastiveModule(self.config)
        self.history: pd.DataFrame | None = None
        self.n_epochs: int = 0

    def train(
        self,
        image: NDArray[np.float32],
        *,
        gene: NDArray[np.float32] | None = None,
        target: NDArray[np.float32] | None = None,
        label: NDArray[np.int64] | None = None,
        measured: NDArray[np.bool_] | None = None,
        group: NDArray[Any] | None = None,
        held_out: Sequence[Any] = (),
        stop_epoch: int | None = None,
    ) -> None:
        """Train the model.

        Parameters
        ----------
        image
            Image features (n_spots, n_image), standardised.
        gene, target
            Input of the gene tower (n_spots, n_gene) and standardised expression (n_spots, n_targets).
        label
            Class of each spot (n_spots,), -1 for none.
        measured
            Whether a spot has counts (n_spots,); all, if `target` is given.
        group
            Slide or donor of each spot (n_spots,).
        held_out
            Groups for early stopping: they are not trained on, and the weights of the epoch with the lowest loss on
            them are kept. Whole groups, because neighbouring spots are too similar.
        stop_epoch
            Stop after this epoch of the same schedule, for example the epoch that an earlier training with held-out
            groups chose.

        Raises
        ------
        ValueError
            If an array is missing or of another shape, a label is out of range, a held-out group is absent, or
            no spot is left to train on or to validate on.
        """
        n_spots = len(image)
        self._check_arrays(n_spots, image=image, gene=gene, target=target, label=label)
        batch = Batch(
            torch.as_tensor(image, dtype=torch.float32),
            _or_zeros(gene, (n_spots, self.config.n_gene)),
            _or_zeros(target, (n_spots, self.config.n_targets)),
            torch.as_tensor(np.full(n_spots, target is not None) if measured is None else np.asarray(measured, bool)),
            torch.as_tensor(np.full(n_spots, -1) if label is None else np.asarray(label, dtype=np.int64)),
        )
        validation = np.zeros(n_spots, dtype=bool)
        if len(held_out):
            groups = np.zeros(n_spots) if group is None else np.asarray(group)
            absent = [name for name in held_out if name not in set(groups.tolist())]
            if absent:
                msg = f"Groups to hold out are absent: {absent}. Groups: {sorted(set(groups.tolist()))}."
                raise ValueError(msg)
            validation = np.isin(groups, list(held_out))
            if validation.all():
                msg = "Nothing is left to train on: every group is held out."
                raise ValueError(msg)
        self.history, self.n_epochs = train_module(self.module, batch, validation, stop_epoch=stop_epoch)

    def _check_arrays(
        self, n_spots: int, *, label: NDArray[np.int64] | None, **arrays: NDArray[np.float32] | None
    ) -> None:
        widths = {"image": self.config.n_image, "gene": self.config.n_gene, "target": self.config.n_targets}
        for name, width in widths.items():
            given = arrays[name]
            found = None if given is None else np.shape(given)
            if found != (n_spots, width) and (found is not None or width):
                msg = f"`{name}` must have shape ({n_spots}, {width}), found {found}."
                raise ValueError(msg)
        if label is not None and (
            np.shape(label) != (n_spots,) or np.max(label, initial=-1) >= self.config.n_classes > 0
        ):
            msg = f"`label` must have shape ({n_spots},) and lie below {self.config.n_classes} classes."
            raise ValueError(msg)

    def embed_image(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit-length embedding (n_spots, n_embedding) of image features (n_spots, n_image)."""
        return self._apply(self.module.image_tower, image, unit=True)

    def embed_genes(self, gene: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit-length embedding (n_spots, n_embedding) of gene inputs (n_spots, n_gene)."""
        if self.module.gene_tower is None:
            msg = "The model was trained without counts: it has no gene tower."
            raise ValueError(msg)
        return self._apply(self.module.gene_tower, gene, unit=True)

    def predict_expression(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardised expression (n_spots, n_targets) from image features (n_spots, n_image)."""
        if self.module.decoder is None:
            msg = "The model was trained without counts: it predicts no expression."
            raise ValueError(msg)
        return self._apply(torch.nn.Sequential(self.module.image_tower, self.module.decoder), image)

    def predict_proba(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes) from image features (n_spots, n_image)."""
        if self.module.subtype_head is None:
            msg = "The model was trained without labels: it predicts no subtype."
            raise ValueError(msg)
        head = torch.nn.Sequential(self.module.image_tower, self.module.subtype_head, torch.nn.Softmax(dim=1))
        return self._apply(head, image)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write ``contrastive.json`` and ``contrastive.safetensors`` into a folder.

        Raises
        ------
        FileExistsError
            If the folder has a model and `overwrite` is off.
        """
        from safetensors.torch import save_file

        folder = Path(directory)
        if (folder / "contrastive.json").exists() and not overwrite:
            msg = f"{str(folder)!r} already holds a model; `overwrite=True` replaces it."
            raise FileExistsError(msg)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.cpu().contiguous() for name, value in self.module.state_dict().items()}
        save_file(state, folder / "contrastive.safetensors")
        content = {"config": asdict(self.config), "n_epochs": self.n_epochs}
        (folder / "contrastive.json").write_text(json.dumps(content, indent=2))

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read what :meth:`save` wrote; nothing is executed (safetensors and JSON)."""
        from safetensors.torch import load_file

        folder = Path(directory)
        content = json.loads((folder / "contrastive.json").read_text())
        model = cls(**content["config"])
        model.module.load_state_dict(load_file(folder / "contrastive.safetensors"))
        model.n_epochs = content["n_epochs"]
        return model

    def _apply(
        self, network: torch.nn.Module, inputs: NDArray[np.float32], *, unit: bool = False
    ) -> NDArray[np.float32]:
        network.eval()
        device = next(network.parameters()).device
        with torch.inference_mode():
            parts = [
                network(chunk.to(device)).cpu()
                for chunk in torch.as_tensor(inputs, dtype=torch.float32).split(ENCODED_AT_ONCE)  # type: ignore[no-untyped-call]
            ]
        out = torch.cat(parts)
        result: NDArray[np.float32] = (torch.nn.functional.normalize(out, dim=1) if unit else out).numpy()
        return result


def _or_zeros(values: NDArray[np.float32] | None, shape: tuple[int, int]) -> torch.Tensor:
    return torch.zeros(shape) if values is None else torch.as_tensor(values, dtype=torch.float32)


logger = logging.getLogger(__name__)


class History(Callback):
    """Losses of every epoch, and the weights of the best one."""

    def __init__(self, *, keep_best: bool) -> None:
        self.keep_best = keep_best
        self.rows: list[dict[str, float]] = []
        self.best = (math.inf, 0)
        self.state: dict[str, torch.Tensor] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: ContrastiveModule) -> None:
        """Record the epoch; validation, if any, has run before."""
        metrics = pl_module.epoch_means()
        pl_module.recorded.clear()
        self.rows.append({"epoch": trainer.current_epoch + 1, **metrics})
        loss = metrics.get("validation_loss", math.nan)
        if self.keep_best and loss < self.best[0]:
            self.best = (loss, trainer.current_epoch + 1)
            self.state = copy.deepcopy(pl_module.state_dict())


class StopAfter(Callback):
    """Stop after an epoch without shortening the schedule of the learning rate."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop when the epoch is reached."""
        if trainer.current_epoch + 1 >= self.epoch:
            trainer.should_stop = True


def train_module(
    module: ContrastiveModule, batch: Batch, validation: NDArray[np.bool_], *, stop_epoch: int | None
) -> tuple[pd.DataFrame, int]:
    """Train a module; spots in `validation` are not trained on.

    Returns
    -------
    Losses, one row per epoch, and the epoch of the module's weights.
    """
    config = module.config
    rows = torch.as_tensor(validation)
    # a spot without counts and label would only dilute the batches
    teaches = (batch.measured & bool(config.n_targets or config.n_gene)) | ((batch.label >= 0) & bool(config.n_classes))
    _check_teaching(rows, teaches)
    watch = bool(rows.any())
    history = History(keep_best=watch)
    callbacks: list[Callback] = [history]
    if watch:
        callbacks.append(EarlyStopping("validation_loss", patience=PATIENCE))
    if stop_epoch is not None:
        callbacks.append(StopAfter(stop_epoch))
    training = _loader([part[~rows & teaches] for part in batch], config.batch_size, shuffle=True)
    held_out = _loader([part[rows & teaches] for part in batch], HELD_OUT_AT_ONCE, shuffle=False) if watch else None
    fit_quietly(module, training, held_out, seed=config.seed, max_epochs=config.max_epochs, callbacks=callbacks)
    epochs = len(history.rows)
    if history.state:
        module.load_state_dict(history.state)
        epochs = history.best[1]
    frame = pd.DataFrame(history.rows)
    n_pairs = min(config.batch_size, int((~rows & batch.measured).sum()))
    if "train_contrastive" in frame and n_pairs > 1:
        warn_at_chance(frame["train_contrastive"].tolist(), math.log(n_pairs))
    return frame, epochs


def _check_teaching(held_out: torch.Tensor, teaches: torch.Tensor) -> None:
    for kind, rows in (("to train on", ~held_out), ("held out", held_out)):
        if bool(rows.any()) and not bool((rows & teaches).any()):
            msg = f"None of the {int(rows.sum())} spots {kind} has what the model learns from: counts or a label."
            raise ValueError(msg)


def _loader(parts: list[torch.Tensor], batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
    dataset = TensorDataset(*parts)
    order = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    # the contrast needs full batches; fewer spots than one batch are one batch
    sampler = BatchSampler(order, batch_size, drop_last=shuffle and len(dataset) >= batch_size)
    return DataLoader(dataset, sampler=sampler, batch_size=None)

"""Training with whole slides or donors held out for validation."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from anndata.abc import CSCDataset, CSRDataset
from lightning.pytorch.callbacks import EarlyStopping
from scvi import REGISTRY_KEYS
from scvi.train import TrainingPlan

from stcontrast._arguments import check_arguments
from stcontrast._models.batch_vae.counts import has_no_counts
from stcontrast._models.batch_vae.minibatches import MinibatchSplitter
from stcontrast._progress import stage
from stcontrast._training import check_loss, counting, quiet_training

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi.module.base import BaseModuleClass, LossOutput

__all__ = ["HeldOutBatchPlan", "HeldOutGroupsMixin", "TrainingSpots", "default_max_epochs", "hold_out_groups"]

logger = logging.getLogger(__name__)


@runtime_checkable
class TrainingSpots(Protocol):
    """What training needs of spots on disk; :class:`~stcontrast.models.SpotsOnDisk` has it."""

    @property
    def batch_codes(self) -> np.ndarray[Any, Any]:
        """Code of the batch of every spot."""

    def groups(self, key: str | None) -> pd.Series[Any]:
        """Group of every spot: a column of ``obs``, or a single group."""

    def check_registry(self, registry: dict[str, Any]) -> None:
        """Raise if the data differ from what a model was made for."""

    def arrange(
        self,
        train: np.ndarray[Any, Any],
        validation: np.ndarray[Any, Any],
        *,
        batch_size: int,
        seed: int,
        thin_to: Sequence[float],
    ) -> None:
        """Choose the rows and minibatches of the next training."""


def hold_out_groups(
    groups: pd.Series[Any], held_out: int | Sequence[str], *, seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Split rows so that every group lies wholly in one of the two sets.

    Parameters
    ----------
    groups
        Group (slide, donor) of each row.
    held_out
        Names of the groups to validate on, or their number, drawn at random; 0 for none. A single group cannot be
        split: the model then trains on all rows, and a message says so.
    seed
        Seed of the draw.

    Returns
    -------
    Row numbers to train on, and row numbers to validate on.

    Raises
    ------
    ValueError
        If a named group is missing, or no group would be left to train on.
    """
    codes, categories = groups.astype(str).factorize(sort=True)
    names = [str(name) for name in categories]
    if isinstance(held_out, str):
        held_out = [held_out]
    if isinstance(held_out, int):
        if held_out and len(names) == 1:
            logger.info(
                "All %d spots belong to one group (%s): training on all, validating on none.", len(codes), names[0]
            )
            held_out = 0
        _check_number(held_out, len(names), groups.name)
        chosen = np.random.default_rng(seed).choice(len(names), size=held_out, replace=False)
    else:
        wanted = [str(name) for name in held_out]
        if absent := [name for name in wanted if name not in names]:
            msg = f"groups {absent} are not in {groups.name!r}, which has {names}."
            raise ValueError(msg)
        _check_number(len(set(wanted)), len(names), groups.name)
        chosen = np.array([names.index(name) for name in wanted])
    in_validation = np.isin(codes, chosen)
    return np.flatnonzero(~in_validation), np.flatnonzero(in_validation)


def _check_number(n_held_out: int, n_groups: int, key: Any) -> None:
    if not 0 <= n_held_out < n_groups:
        msg = (
            f"cannot hold out {n_held_out} of the {n_groups} groups of {key!r}: at least one must be left to train on."
        )
        raise ValueError(msg)


class HeldOutBatchPlan(TrainingPlan):
    """Training plan of scvi-tools for a validation set of whole, unseen batches.

    The decoder weights of a held-out batch are untrained. Its spots are decoded as if they came from the training
    batches, one after another, so that the validation loss is that of an unseen donor and not that of random weights.
    Losses are summed on the device and logged once per epoch under the names of scvi-tools: on small slides, logging
    every step costs as much as the step.

    Parameters
    ----------
    module
        Module to train.
    trained_batches
        Codes of the batches in the training set; ``None`` for all.
    **kwargs
        Arguments of :class:`scvi.train.TrainingPlan`.
    """

    def __init__(self, module: BaseModuleClass, *, trained_batches: Sequence[int] | None = None, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)
        self._trained_batches = None if trained_batches is None else torch.as_tensor(trained_batches)
        self._sums: dict[str, defaultdict[str, Any]] = {"train": defaultdict(float), "validation": defaultdict(float)}

    def get_optimizer_creator(self) -> Any:
        """Make the optimizer: that of scvi-tools, fused on the CPU."""
        if self.optimizer_name != "Adam" or self.device.type != "cpu":
            return super().get_optimizer_creator()
        return lambda parameters: torch.optim.Adam(
            parameters, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Mean loss of the training spots of a minibatch."""
        if "kl_weight" in self.loss_kwargs:
            self.loss_kwargs["kl_weight"] = self.kl_weight
        try:
            _, _, losses = self.forward(batch, loss_kwargs=self.loss_kwargs)
        except ValueError as error:
            # torch's distributions look at their parameters before there is a loss
            if "found invalid values" in str(error):
                check_loss(math.nan, of="gene VAE", at=f"epoch {self.current_epoch + 1}")
            raise
        self._add(losses, "train")
        return losses.loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Sum the losses of the held-out spots of a minibatch."""
        _, _, losses = self.forward(self._in_trained_batches(batch), loss_kwargs=self.loss_kwargs)
        self._add(losses, "validation")

    def on_train_epoch_end(self) -> None:
        """Log the losses of the epoch on training spots."""
        self.log("kl_weight", self.kl_weight)
        self._log_sums("train")

    def on_validation_epoch_end(self) -> None:
        """Log the losses of the epoch on held-out spots."""
        self._log_sums("validation")

    def _in_trained_batches(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._trained_batches is None:
            return batch
        codes = batch[REGISTRY_KEYS.BATCH_KEY]
        trained = self._trained_batches.to(codes)
        in_turn = trained[torch.arange(len(codes), device=codes.device) % len(trained)].unsqueeze(1)
        codes = torch.where(torch.isin(codes, trained), codes, in_turn)
        return {**batch, REGISTRY_KEYS.BATCH_KEY: codes}

    def _add(self, losses: LossOutput, mode: str) -> None:
        n_spots, sums = losses.n_obs_minibatch, self._sums[mode]
        sums["n"] += n_spots
        sums["loss"] += losses.loss.detach() * n_spots
        sums["reconstruction"] += losses.reconstruction_loss_sum.detach()
        sums["kl_local"] += losses.kl_local_sum.detach()

    def _log_sums(self, mode: str) -> None:
        sums = self._sums[mode]
        n_spots = sums["n"]
        check_loss(float(sums["loss"]), of="gene VAE", at=f"epoch {self.current_epoch + 1}")
        values = {
            "train_loss" if mode == "train" else "validation_loss": sums["loss"] / n_spots,
            f"elbo_{mode}": (sums["reconstruction"] + sums["kl_local"]) / n_spots,
            f"reconstruction_loss_{mode}": sums["reconstruction"] / n_spots,
            f"kl_local_{mode}": sums["kl_local"] / n_spots,
        }
        self.log_dict(values, batch_size=n_spots, sync_dist=self.use_sync_dist)
        sums.clear()


def default_max_epochs(n_spots: int) -> int:
    """Epochs after which the latents of unseen donors stop improving: 2500 / √n, between 20 and 100.

    Parameters
    ----------
    n_spots
        Number of training spots.

    Returns
    -------
    Number of epochs.

    Notes
    -----
    Chosen on breast (1900 spots, five donors) and olfactory bulb sections (550 spots); the square root extends it to
    other sizes. The rule of scvi-tools (400 epochs up to 20 000 cells) is made for single cells. On a few slides it
    overfits, and the classes of an unseen donor become harder to separate.

    Examples
    --------
    >>> default_max_epochs(1000)
    79
    """
    return round(min(100, max(20, 2500 / math.sqrt(max(n_spots, 1)))))


class HeldOutGroupsMixin:
    """Training with a validation set of whole slides or donors."""

    _training_plan_cls = HeldOutBatchPlan
    _data_splitter_cls = MinibatchSplitter

    adata: Any
    module: Any
    seed_: int
    registry_: dict[str, Any]

    def train(  # noqa: PLR0913
        self,
        max_epochs: int | None = None,
        *,
        validation_key: str | None = None,
        validation_groups: int | Sequence[str] | None = None,
        early_stopping: bool = True,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        thin_to: Sequence[float] = (),
        seed: int | None = None,
        datamodule: TrainingSpots | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model.

        The validation set consists of whole groups of spots, slides or donors, never of single spots: neighbouring
        spots are too similar for a random split to be informative. Spots of a held-out batch are decoded as if from
        the training batches, one after another, so that the validation loss is that of an unseen donor. The random
        state of the session does not change.

        Parameters
        ----------
        max_epochs
            Maximum number of passes through the training spots. ``None`` (default): 2500 / √n_spots, between 20 and
            100.
        validation_key
            Column of ``obs`` that names the groups, ``"slide"`` for example. ``None`` (default): the batch column.
        validation_groups
            Names of the groups to hold out, or their number, drawn at random; 0 for none. ``None`` (default): one in
            ten of four groups or more, none of fewer. With none, the model trains on all spots, and a message says so.
        early_stopping
            Whether to stop when the validation loss (``elbo_validation``) has not improved for
            ``early_stopping_patience`` epochs (20 by default). Has no effect without a validation set.
        batch_size
            Spots in a minibatch.
        learning_rate
            Step size of Adam.
        thin_to
            Shares of the counts, such as ``(0.5, 0.25)``. In training, the encoder gets a spot with all of its counts
            or thinned (binomially) to one of these shares, drawn anew each time; the decoder must explain all counts.
            The latent then depends less on depth. None by default.
        seed
            Seed of the split, the order of the spots and the noise. ``None`` (default): the model's.
        datamodule
            Spots on disk to train on, a :class:`~stcontrast.models.SpotsOnDisk`, read in parts. ``None`` (default): the
            data that the model was made with. The split is by whole groups in both cases.
        **trainer_kwargs
            ``accelerator``, ``devices``, ``precision``, ``strategy``, ``callbacks`` and further arguments of
            :class:`scvi.train.Trainer`; ``plan_kwargs``, arguments of :class:`scvi.train.TrainingPlan`, such as
            ``n_epochs_kl_warmup``. By default this is twice ``max_epochs``, so that the weight of the KL divergence
            ends at one half: on a few slides its full weight leaves too few dimensions in use.

        Raises
        ------
        KeyError
            If ``validation_key`` is not in ``obs``.
        TypeError
            If ``datamodule`` is not a :class:`~stcontrast.models.SpotsOnDisk`.
        ValueError
            If a share is not between 0 and 1; if a group to hold out is missing, or none would be left to train on; if
            the model has no data in memory and ``datamodule`` is not given; if ``datamodule`` has other genes, batches
            or classes than the model; or if the counts of the AnnData of the model are in zarr or stored by gene.

        Examples
        --------
        >>> model.train(validation_key="slide", validation_groups=["C6"])  # doctest: +SKIP
        """
        given = {"max_epochs": max_epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
        check_arguments({name: value for name, value in given.items() if value is not None})
        self._check_training_data(datamodule)
        if any(not 0 < share < 1 for share in thin_to):
            msg = f"thin_to is {tuple(thin_to)}; a share of the counts lies between 0 and 1."
            raise ValueError(msg)
        seed = self.seed_ if seed is None else seed
        train, validation = self._split(validation_key, validation_groups, seed, datamodule)
        max_epochs = max_epochs or default_max_epochs(len(train))
        batches = np.asarray(self.adata.obs["_scvi_batch"]) if datamodule is None else datamodule.batch_codes
        plan_kwargs = {
            "lr": learning_rate,
            "n_epochs_kl_warmup": 2 * max_epochs,
            "trained_batches": np.unique(batches[train]).tolist(),
            **trainer_kwargs.pop("plan_kwargs", {}),
        }
        callbacks = [*trainer_kwargs.pop("callbacks", [])]
        # early stopping of scvi-tools prints; that of Lightning is silent
        stopper = EarlyStopping("elbo_validation", patience=trainer_kwargs.pop("early_stopping_patience", 20))
        if len(validation):
            trainer_kwargs.setdefault("check_val_every_n_epoch", 1)
            callbacks += [stopper] if early_stopping else []
        counted = trainer_kwargs.pop("enable_progress_bar", True)
        indexing = [train, validation, np.arange(0)]
        data: dict[str, Any] = {"datasplitter_kwargs": {"external_indexing": indexing, "thin_to": tuple(thin_to)}}
        if datamodule is not None:
            datamodule.arrange(train, validation, batch_size=batch_size, seed=seed, thin_to=thin_to)
            data = {"datamodule": datamodule}
        # scvi-tools leaves a trained module in evaluation mode, and Lightning does not change the mode
        self.module.train()
        with quiet_training(seed), stage("gene space (VAE)", total=max_epochs, unit="epochs") as here:
            callbacks += [counting(here)] if counted else []
            super().train(  # type: ignore[misc]
                max_epochs,
                batch_size=batch_size,
                **data,
                plan_kwargs=plan_kwargs,
                callbacks=callbacks,
                **{"enable_progress_bar": False, "log_every_n_steps": 1} | trainer_kwargs,
            )
        # a precision of "64-true" or "bf16-true" converts the weights; counts are encoded as float32
        self.module.float()
        if stopper.stopped_epoch:
            logger.info(
                "Stopped after %d epochs: the validation loss has not decreased for %d.",
                stopper.stopped_epoch + 1,
                stopper.patience,
            )

    def _check_training_data(self, datamodule: Any) -> None:
        if datamodule is None and self.adata is None:
            msg = (
                "this model has no training data in memory: it was loaded without them, or made for spots on disk. "
                "Load it with adata=, or pass the spots on disk to train as datamodule=."
            )
            raise ValueError(msg)
        if datamodule is None:
            if has_no_counts(self.adata):
                msg = "minify_adata dropped the counts of the data of this model; load it with counts to train it."
                raise ValueError(msg)
            layer = self.registry_["setup_args"]["layer"]
            counts = self.adata.X if layer in (None, "X") else self.adata.layers[layer]
            # scvi-tools reads rows by a list, for which anndata loads the whole matrix; from HDF5 it reads by an array
            in_zarr = isinstance(counts, CSRDataset) and not self.adata.isbacked
            if in_zarr or isinstance(counts, CSCDataset):
                msg = (
                    f"the counts are on disk {'in zarr' if in_zarr else 'gene by gene (CSC)'}, and scvi-tools would "
                    "load all of them for every minibatch; stcontrast.models.SpotsOnDisk reads counts in zarr (CSR) in "
                    "parts, and adata.to_memory() loads them once."
                )
                raise ValueError(msg)
            return
        if not isinstance(datamodule, TrainingSpots):
            msg = (
                f"datamodule is a {type(datamodule).__name__}; BatchAgnosticVAE trains on "
                "stcontrast.models.SpotsOnDisk, which holds out whole groups of spots."
            )
            raise TypeError(msg)
        datamodule.check_registry(self.registry_)

    def _groups(self, key: str | None, datamodule: TrainingSpots | None) -> pd.Series[Any]:
        if datamodule is not None:
            return datamodule.groups(key)
        obs = self.adata.obs
        if key is None:
            return pd.Series("all", index=obs.index, name="all spots")
        if key in obs:
            return obs[key]
        msg = f"validation_key {key!r} is not in adata.obs, which has {list(obs.columns)}."
        raise KeyError(msg)

    def _split(
        self, key: str | None, held_out: int | Sequence[str] | None, seed: int, datamodule: TrainingSpots | None
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        key = self.registry_["setup_args"]["batch_key"] if key is None else key
        groups = self._groups(key, datamodule)
        if held_out is None:
            n_groups = groups.nunique()
            held_out = max(1, n_groups // 10) if n_groups >= 4 else 0
        train, validation = hold_out_groups(groups, held_out, seed=seed)
        if len(validation):
            names = ", ".join(sorted(groups.iloc[validation].astype(str).unique()))
            logger.info("Validating on %s of %r: %d spots.", names, key, len(validation))
        else:
            logger.info("Training on all %d spots, without a validation set.", len(train))
        return train, validation

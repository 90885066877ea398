"""The training plan: validation on batches the decoder never saw, and a log a epoch instead of one a step."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.train import TrainingPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi.module.base import BaseModuleClass, LossOutput

__all__ = ["HeldOutBatchPlan"]


class HeldOutBatchPlan(TrainingPlan):
    """scvi-tools' training plan for a validation set of whole, unseen batches.

    A batch that is held out has decoder weights that nothing trained. Its spots are decoded as if they came from the
    training batches, each in turn, so that the validation loss is that of an unseen donor and not that of random
    weights. Losses are summed on the device and logged once an epoch under scvi-tools' names: on small slides
    the logging of every step costs as much as the step.

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
        """Optimizer of the parameters: scvi-tools', in one pass over them where that is there.

        Returns
        -------
        callable
            Makes the optimizer of some parameters.
        """
        if self.optimizer_name != "Adam" or self.device.type != "cpu":
            return super().get_optimizer_creator()
        return lambda parameters: torch.optim.Adam(
            parameters, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of a minibatch of training spots.

        Parameters
        ----------
        batch
            Tensors of the minibatch.
        batch_idx
            Its number in the epoch.

        Returns
        -------
        torch.Tensor
            Mean loss of the spots.
        """
        if "kl_weight" in self.loss_kwargs:
            self.loss_kwargs["kl_weight"] = self.kl_weight
        _, _, losses = self.forward(batch, loss_kwargs=self.loss_kwargs)
        self._add(losses, "train")
        return losses.loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Sum the losses of a minibatch of held-out spots.

        Parameters
        ----------
        batch
            Tensors of the minibatch.
        batch_idx
            Its number in the epoch.
        """
        _, _, losses = self.forward(self._in_trained_batches(batch), loss_kwargs=self.loss_kwargs)
        self._add(losses, "validation")

    def on_train_epoch_end(self) -> None:
        """Log the epoch's losses on training spots."""
        self.log("kl_weight", self.kl_weight)
        self._log_sums("train")

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's losses on held-out spots."""
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
        values = {
            "train_loss" if mode == "train" else "validation_loss": sums["loss"] / n_spots,
            f"elbo_{mode}": (sums["reconstruction"] + sums["kl_local"]) / n_spots,
            f"reconstruction_loss_{mode}": sums["reconstruction"] / n_spots,
            f"kl_local_{mode}": sums["kl_local"] / n_spots,
        }
        self.log_dict(values, batch_size=n_spots, sync_dist=self.use_sync_dist)
        sums.clear()

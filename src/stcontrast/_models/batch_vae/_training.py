"""Training with whole slides or donors held out."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata.abc import CSCDataset, CSRDataset
from lightning.pytorch.callbacks import EarlyStopping

from stcontrast._models.batch_vae._minibatches import MinibatchSplitter
from stcontrast._models.batch_vae._minified import has_no_counts
from stcontrast._models.batch_vae._on_disk import SpotsOnDisk
from stcontrast._models.batch_vae._plan import HeldOutBatchPlan
from stcontrast._models.batch_vae._session import quiet_training
from stcontrast._models.batch_vae._split import Split, hold_out_groups
from stcontrast._settings import settings
from stcontrast._training import one_thread, seeded

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HeldOutGroupsMixin", "default_max_epochs"]

logger = logging.getLogger(__name__)


def default_max_epochs(n_spots: int) -> int:
    """Epochs after which the latents of unseen donors stop improving: 2500 / √n, between 20 and 100.

    Parameters
    ----------
    n_spots
        Number of training spots.

    Returns
    -------
    int
        Number of epochs.

    Notes
    -----
    Chosen on breast (1900 spots, five donors) and olfactory-bulb sections (550 spots), with the square root carrying
    it to other sizes. scvi-tools' own rule (400 epochs up to 20 000 cells) is made for single cells; on a few slides
    it overfits, and the classes of an unseen donor become harder to tell.

    Examples
    --------
    >>> default_max_epochs(1000)
    79
    """
    return round(min(100, max(20, 2500 / math.sqrt(max(n_spots, 1)))))


class HeldOutGroupsMixin:
    """Training whose validation set consists of whole slides or donors."""

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
        datamodule: SpotsOnDisk | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model.

        The validation set consists of whole groups of spots, slides or donors, never of single spots: neighbouring
        spots are too alike for a random split to tell anything. Spots of a batch that is wholly held out are decoded
        as if from the training batches, in turn, so that the validation loss is that of an unseen donor. The random
        state of the session is left as it was.

        Parameters
        ----------
        max_epochs
            Most passes through the training spots. ``None`` (default): 2500 / √n_spots, between 20 and 100.
        validation_key
            Column of ``obs`` that names the groups, ``"slide"`` for example. ``None`` (default): the batch column.
        validation_groups
            Groups to hold out by name, or their number, drawn at random; 0 for none. ``None`` (default): one in ten
            of four groups or more, none of fewer. With none, all spots are trained on, and a message says so.
        early_stopping
            Whether to stop once the validation loss (``elbo_validation``) has not improved for
            ``early_stopping_patience`` epochs (20 by default). Without a validation set it does nothing.
        batch_size
            Spots in a minibatch.
        learning_rate
            Step size of Adam.
        thin_to
            Shares of the counts, such as ``(0.5, 0.25)``: in training, the encoder gets a spot with all of its counts
            or thinned (binomially) to one of these shares, drawn anew each time, and the decoder has to explain all of
            them. The latent then depends less on depth. None by default.
        seed
            Seed of the split, the order of the spots and the noise. ``None`` (default): the model's.
        datamodule
            Spots on disk to train on, read a part at a time. ``None`` (default): the data that the model was made of.
            The split is by whole groups there too.
        **trainer_kwargs
            ``accelerator``, ``devices``, ``precision``, ``strategy``, ``callbacks`` and further arguments of
            :class:`scvi.train.Trainer`; ``plan_kwargs``, arguments of :class:`scvi.train.TrainingPlan`, such as
            ``n_epochs_kl_warmup``. That is twice ``max_epochs`` by default, so that the divergence weighs a half at the
            end: on a few slides its full weight leaves too few dimensions in use.

        Raises
        ------
        KeyError
            If ``validation_key`` is not in ``obs``.
        TypeError
            If ``datamodule`` is not a :class:`~stcontrast.models.SpotsOnDisk`.
        ValueError
            If a share is not between 0 and 1, or a group to hold out is not there, or none would be left to train on,
            or the model has no data in memory and ``datamodule`` is not given, or that has other genes, batches or
            classes than the model, or the counts of its AnnData lie on disk in zarr, or stored by gene.

        Examples
        --------
        >>> model.train(validation_key="slide", validation_groups=["C6"])  # doctest: +SKIP
        """
        self._check_training_data(datamodule)
        if any(not 0 < share < 1 for share in thin_to):
            msg = f"thin_to is {tuple(thin_to)}; a share of the counts lies between 0 and 1."
            raise ValueError(msg)
        seed = self.seed_ if seed is None else seed
        split = self._split(validation_key, validation_groups, seed, datamodule)
        max_epochs = max_epochs or default_max_epochs(len(split.train))
        batches = np.asarray(self.adata.obs["_scvi_batch"]) if datamodule is None else datamodule.batch_codes
        plan_kwargs = {
            "lr": learning_rate,
            "n_epochs_kl_warmup": 2 * max_epochs,
            "trained_batches": np.unique(batches[split.train]).tolist(),
            **trainer_kwargs.pop("plan_kwargs", {}),
        }
        callbacks = [*trainer_kwargs.pop("callbacks", [])]
        # scvi-tools' own early stopping prints; this one is Lightning's, silent.
        stopper = EarlyStopping("elbo_validation", patience=trainer_kwargs.pop("early_stopping_patience", 20))
        if len(split.validation):
            trainer_kwargs.setdefault("check_val_every_n_epoch", 1)
            callbacks += [stopper] if early_stopping else []
        defaults = {"enable_progress_bar": settings.progress, "log_every_n_steps": 1}
        data: dict[str, Any] = {
            "datasplitter_kwargs": {
                "external_indexing": [split.train, split.validation, np.arange(0)],
                "thin_to": tuple(thin_to),
            }
        }
        if datamodule is not None:
            datamodule.arrange(split.train, split.validation, batch_size=batch_size, seed=seed, thin_to=thin_to)
            data = {"datamodule": datamodule}
        # scvi-tools leaves a trained module in evaluation mode, and Lightning trains it as it finds it.
        self.module.train()
        with seeded(seed), quiet_training(), one_thread():
            super().train(  # type: ignore[misc]
                max_epochs,
                batch_size=batch_size,
                **data,
                plan_kwargs=plan_kwargs,
                callbacks=callbacks,
                **defaults | trainer_kwargs,
            )
        # what a precision of "64-true" or "bf16-true" turned them into; counts are encoded as float32
        self.module.float()
        if stopper.stopped_epoch:
            logger.info(
                "Stopped after %d epochs: no lower validation loss for %d.", stopper.stopped_epoch + 1, stopper.patience
            )

    def _check_training_data(self, datamodule: Any) -> None:
        if datamodule is None and self.adata is None:
            msg = (
                "this model has no training data in memory: it was loaded without them, or made for spots on disk. "
                "Load it with adata=, or give train the spots on disk as datamodule=."
            )
            raise ValueError(msg)
        if datamodule is None:
            if has_no_counts(self.adata):
                msg = "minify_adata dropped the counts of this model's data; load it with data that have them to train it."
                raise ValueError(msg)
            layer = self.registry_["setup_args"]["layer"]
            counts = self.adata.X if layer in (None, "X") else self.adata.layers[layer]
            # scvi-tools asks for rows by a list, which anndata answers by loading the matrix; of HDF5 by an array.
            in_zarr = isinstance(counts, CSRDataset) and not self.adata.isbacked
            if in_zarr or isinstance(counts, CSCDataset):
                msg = (
                    f"the counts lie on disk {'in zarr' if in_zarr else 'gene by gene (CSC)'}, and scvi-tools would load "
                    "all of them for every minibatch; stcontrast.models.SpotsOnDisk reads counts in zarr (CSR) in parts, "
                    "and adata.to_memory() loads them once."
                )
                raise ValueError(msg)
            return
        if not isinstance(datamodule, SpotsOnDisk):
            msg = (
                f"datamodule is a {type(datamodule).__name__}; BatchAgnosticVAE trains on stcontrast.models.SpotsOnDisk, "
                "which holds out whole groups of spots."
            )
            raise TypeError(msg)
        datamodule.check_registry(self.registry_)

    def _groups(self, key: str | None, datamodule: SpotsOnDisk | None) -> pd.Series[Any]:
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
        self, key: str | None, held_out: int | Sequence[str] | None, seed: int, datamodule: SpotsOnDisk | None
    ) -> Split:
        key = self.registry_["setup_args"]["batch_key"] if key is None else key
        groups = self._groups(key, datamodule)
        if held_out is None:
            n_groups = groups.nunique()
            held_out = max(1, n_groups // 10) if n_groups >= 4 else 0
        split = hold_out_groups(groups, held_out, seed=seed)
        if split.held_out:
            logger.info("Validating on %s of %r: %d spots.", ", ".join(split.held_out), key, len(split.validation))
        else:
            logger.info("Training on all %d spots, with no validation set.", len(split.train))
        return split

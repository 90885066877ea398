"""Options of the fine-tuning of an image tower."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from stcontrast._arguments import check_fields, one_of, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TowerOptions"]

type BatchNorm = Literal["frozen", "adapted"]
type Stop = Literal["fixed", "held-out"]
type TowerLoss = Literal["joint", "method"]

# options that do not change the result
NOT_OF_RESULT: Final = ("checkpoint_dir", "num_workers")


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerOptions:
    """How to fine-tune the encoder; the `tower_options` of :func:`stcontrast.tl.fit`.

    Parameters
    ----------
    loss
        What the network is trained for. ``"joint"``: ours, the three parts below, for any method. ``"method"``: the
        contrastive loss of the method that is fitted, with its own gene side, heads, options and batches (``"bleep"``,
        ``"mclstexp"``, ``"tpirbae"``); it needs counts. Then the weights of the parts, `temperature`, `n_components` and
        `n_embedding` have no effect.
    epochs
        Passes through the training spots.
    stop
        ``"fixed"``: after all `epochs`. ``"held-out"``: after the epoch with the lowest mean loss on the held-out
        groups of the inner folds; the schedule of the learning rate stays that of `epochs`. On one device only.
    batch_size
        Spots that are contrasted in a step, over all devices.
    micro_batch
        Spots whose crops pass the network at once on a device. It limits the memory; the gradient is that of the whole
        batch.
    learning_rate
        Maximum learning rate, of the heads and of the last block of the network.
    layer_decay
        Factor of the learning rate from a block of the network to the one before it; 1 for the same rate in all blocks.
    weight_decay
        Of AdamW; biases and norms have none.
    warmup
        Share of the steps in which the learning rate rises; then it falls as a cosine.
    expression_weight, contrastive_weight, class_weight
        Weights of the parts of the loss: error of the components of expression (1 for a prediction of the mean),
        contrast with the genes (nats), cross-entropy of the class (nats).
    temperature
        Temperature of the contrast, on unit-length embeddings.
    n_components
        Number of principal components of expression to predict.
    n_embedding
        Dimensions of the joint embedding of image and genes.
    augment
        Mirror and rotate the crops, and jitter colour and stain, anew in every step.
    stain_jitter, color_jitter
        Strength of the jitter; 0 changes no colour.
    batch_norm
        ``"frozen"``: the statistics of batch normalisation stay those of the weights. ``"adapted"``: they are
        computed once on the training crops; for weights from another kind of image, or random weights.
    precision
        As in Lightning: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"`` (GPU), ...
    accelerator, devices, strategy
        As in Lightning. With ``strategy="ddp"`` and several devices, the whole batch over all devices is contrasted.
    num_workers
        Processes that read crops.
    checkpoint_dir
        Folder for a checkpoint per epoch. A later call with the same folder, data and options resumes there. By default
        no checkpoint is kept.

    Raises
    ------
    ValueError
        If a value is out of its range.

    Examples
    --------
    >>> TowerOptions(epochs=3).batch_size
    256

    References
    ----------
    Gao et al. 2021 (GradCache, arXiv 2101.06983: whole batches through micro-batches); Clark et al. 2020 (ELECTRA,
    arXiv 2003.10555: learning rates by depth); Tellez et al. 2018 (stain augmentation, arXiv 1808.05896).
    """

    loss: TowerLoss = "joint"
    epochs: int = 10
    stop: Stop = "fixed"
    batch_size: int = 256
    micro_batch: int = 32
    learning_rate: float = 5e-4
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup: float = 0.1
    expression_weight: float = 1.0
    contrastive_weight: float = 0.1
    class_weight: float = 0.5
    temperature: float = 0.1
    n_components: int = 32
    n_embedding: int = 128
    augment: bool = True
    stain_jitter: float = 0.1
    color_jitter: float = 0.1
    batch_norm: BatchNorm = "frozen"
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    num_workers: int = 0
    checkpoint_dir: str | Path | None = None

    def __post_init__(self) -> None:
        kinds = {"loss": TowerLoss, "stop": Stop, "batch_norm": BatchNorm}
        choices = {name: one_of(*get_args(kind.__value__)) for name, kind in kinds.items()}
        check_fields(self, batch_size=whole(2), **choices)
        if self.stop == "held-out" and self.devices not in (1, "1"):
            msg = (
                f"`stop='held-out'` validates every epoch on one device; found `devices={self.devices!r}`. Use "
                "`devices=1`, or a fixed number of `epochs`."
            )
            raise ValueError(msg)
        if self.checkpoint_dir is not None and Path(self.checkpoint_dir).is_file():
            msg = f"`checkpoint_dir`: {str(self.checkpoint_dir)!r} is a file. Give a folder; it is created if needed."
            raise ValueError(msg)

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> TowerOptions:
        """Make options from a mapping of the user.

        Raises
        ------
        ValueError
            If an option does not exist; the message lists the valid options.
        """
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(given or {}) - known)
        if unknown:
            msg = f"Unknown `tower_options` {unknown}. Valid options are {sorted(known)}."
            raise ValueError(msg)
        return cls(**dict(given or {}))

    @property
    def of_result(self) -> dict[str, Any]:
        """Options that the tuned weights depend on, as plain values."""
        return {name: value for name, value in asdict(self).items() if name not in NOT_OF_RESULT}

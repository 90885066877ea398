"""One tower for each inner fold and one for all training spots."""

from __future__ import annotations

import copy
import json
import logging
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stcontrast._files import ResumableStore, content_hash, written_whole
from stcontrast._models.image_tower.batches import TowerTargets
from stcontrast._models.image_tower.encoder import TunedEncoder, weights_sha256, write_weights
from stcontrast._models.image_tower.module import ImageTower
from stcontrast._models.image_tower.training import Task, epoch_file, train_tower
from stcontrast._progress import parts_of, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from stcontrast._data import Fold, Spots
    from stcontrast._models.image_tower.batches import PairMethod
    from stcontrast._models.image_tower.crop_store import CropRows
    from stcontrast._models.image_tower.options import TowerOptions
    from stcontrast.pp._encoders import TimmEncoder

__all__ = ["CrossFitted", "cross_fit", "encode"]

logger = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True, slots=True)
class CrossFitted:
    """Tuned encoders.

    Attributes
    ----------
    encoder
        Tuned on all training spots.
    of_fold
        One for every inner fold, tuned without its held-out group.
    losses
        Losses of each training, one row per epoch, by its name ("fold0", ..., "final").
    """

    encoder: TunedEncoder
    of_fold: list[TunedEncoder]
    losses: dict[str, list[dict[str, float]]]


def cross_fit(
    base: TimmEncoder,
    crops: CropRows,
    data: Spots,
    folds: Sequence[Fold],
    options: TowerOptions,
    *,
    center: bool,
    seed: int,
    method: Callable[[], PairMethod] | None = None,
) -> CrossFitted:
    """Tune an encoder without each held-out group of the inner folds, and on all training spots.

    Parameters
    ----------
    base
        The encoder to start from; it is not changed.
    crops
        Crops of the training spots.
    data
        The training spots; their design is not used.
    folds
        Inner folds.
    options
        How to tune.
    center
        Whether to centre the features within the slide before the heads, as in the design of the method.
    seed
        Seed of all random numbers.
    method
        Makes a fresh contrastive method, for its own loss instead of the joint one. A fold without counts then keeps the
        encoder as it was.

    Returns
    -------
    The tuned encoders and their losses.

    Raises
    ------
    BlockingIOError
        If another process trains in `checkpoint_dir`.
    ValueError
        If `checkpoint_dir` holds another training, or fewer than two spots are left to learn from.
    """
    rows: dict[str, tuple[NDArray[np.intp], NDArray[np.intp] | None]] = {
        f"fold{i}": (fold.train, fold.held_out) for i, fold in enumerate(folds)
    }
    rows["final"] = (np.arange(len(crops)), None)
    tasks = {
        name: Task(
            crops,
            TowerTargets.of(data, train, n_components=options.n_components)
            if method is None
            else TowerTargets.of_method(data, train, method()),
            train,
            held_out,
            center,
            seed,
        )
        for name, (train, held_out) in rows.items()
    }
    for name, task in tasks.items():
        if task.is_empty and (method is None or name == "final"):
            what = "counts or a label" if method is None else "counts"
            msg = f"Fine-tuning needs at least two spots with {what}; {name} has {len(task.teaching)}."
            raise ValueError(msg)
    kept = options.checkpoint_dir
    with ExitStack() as stack:
        if kept is None:
            parent = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stcontrast-tower-")))
        else:
            parent = Path(kept)
            description = _description(base, tasks, options, center=center, seed=seed)
            # the other processes of a training on several devices are part of the first one's work
            if os.environ.get("LOCAL_RANK", "0") == "0":
                stack.enter_context(ResumableStore(parent, description, argument="checkpoint_dir"))
        of_folds = parts_of([name for name in tasks if name != "final"], "fold")
        losses = {name: _trained(name, tasks[name], base, options, folder=parent / name) for name in of_folds}
        epoch = _best_epoch(list(losses.values())) if options.stop == "held-out" else None
        losses["final"] = _trained("final", tasks["final"], base, options, folder=parent / "final", last_epoch=epoch)
        # (an encoder that stayed as it was has no epochs)
        of_fold = [_tuned(base, parent / name, epoch if losses[name] else None) for name in tasks if name != "final"]
        return CrossFitted(_tuned(base, parent / "final", None), of_fold, losses)


def encode(encoder: TunedEncoder, crops: CropRows) -> NDArray[np.float32]:
    """Features (n_spots, n_fields × n_features) of all crops; the features of the fields are concatenated."""
    parts = []
    with stage("features of the fine-tuned encoder", total=len(crops), unit="spots") as bar:
        for batch in crops.batches():
            n, n_fields, *shape = batch.shape
            parts.append(encoder(batch.reshape(n * n_fields, *shape)).reshape(n, -1))
            bar.update(n)
    return np.concatenate(parts)


def _trained(
    name: str, task: Task, base: TimmEncoder, options: TowerOptions, *, folder: Path, last_epoch: int | None = None
) -> list[dict[str, float]]:
    """Losses of a tower that is trained into a folder, or was trained there before."""
    losses_file = folder / "losses.json"
    if losses_file.exists():
        logger.info("The tower %r is read from %s.", name, folder)
        losses: list[dict[str, float]] = json.loads(losses_file.read_text())
        return losses
    backbone = copy.deepcopy(base._model).requires_grad_()
    tower = ImageTower(backbone, mean=base.mean or (), std=base.std or (), options=options)
    if task.is_empty:
        logger.warning("No counts outside the held-out group of %s: its encoder stays as it was.", name)
        losses = []
    else:
        logger.info("Tuning %s (%s) on %d spots.", base.name, name, len(task.teaching))
        losses = train_tower(
            tower,
            task,
            options,
            folder=None if options.checkpoint_dir is None else folder,
            weights_of_epochs=folder / "epochs" if task.held_out is not None and options.stop == "held-out" else None,
            last_epoch=last_epoch,
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(tower.backbone, folder / "tower.safetensors")
    with written_whole(losses_file) as scratch:
        scratch.write_text(json.dumps(losses))
    for checkpoint in folder.glob("*.ckpt"):
        checkpoint.unlink(missing_ok=True)
    return losses


def _tuned(base: TimmEncoder, folder: Path, epoch: int | None) -> TunedEncoder:
    """The tuned encoder in a folder, after an epoch or after the last."""
    from safetensors.torch import load_file

    path = folder / "tower.safetensors" if epoch is None else epoch_file(folder / "epochs", epoch)
    return TunedEncoder(base, load_file(path))


def _best_epoch(losses: list[list[dict[str, float]]]) -> int:
    """The epoch with the lowest mean held-out loss over folds, counted from 1."""
    means = np.nanmean([[row.get("held_out_loss", np.nan) for row in of_fold] for of_fold in losses if of_fold], axis=0)
    epoch = int(np.nanargmin(means)) + 1
    logger.info("Stopping after epoch %d of %d, by held-out groups.", epoch, len(means))
    return epoch


def _description(
    base: TimmEncoder, tasks: dict[str, Task], options: TowerOptions, *, center: bool, seed: int
) -> dict[str, Any]:
    """What the trainings depend on."""
    found = {
        "format": FORMAT,
        "encoder": f"{base.name} {base.mean} {base.std} {base.size_px} {weights_sha256(base._model)[:16]}",
        "options": options.of_result,
        "centred": center,
        "seed": seed,
        "crops": tasks["final"].crops.fingerprint()[:16],
    }
    own = tasks["final"].targets.method
    if own is not None:
        found["method"] = f"{own.name} {own.spec}"
    for name, task in tasks.items():
        targets = task.targets
        rows = [task.train] if task.held_out is None else [task.train, task.held_out]
        of_task = [targets.gene, targets.measured, targets.label, targets.slide, *rows]
        found[f"targets of {name}"] = content_hash(of_task)[:16]
    return found

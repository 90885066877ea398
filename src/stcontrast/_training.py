"""How every model is trained: seeded, quiet, and with the session's own state left as it was."""

from __future__ import annotations

import logging
import math
import random
import signal
import threading
import warnings
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._progress import stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lightning.pytorch as pl

    from stcontrast._progress import Stage

__all__ = [
    "check_loss",
    "counting",
    "fit_quietly",
    "interruptible",
    "one_thread",
    "quiet_loggers",
    "quiet_training",
    "seeded",
]

TRAINING_LOGGERS: Final = ("lightning.pytorch", "lightning.fabric")
# What Lightning, torch and scvi-tools warn of although it is intended: loaders without workers, no validation without
# held-out groups, frozen batch normalisation, a folder that a training is resumed from.
NOT_FOR_USERS: Final[tuple[tuple[str, type[Warning]], ...]] = (
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),
    (r"The '\w+' does not have many workers which may be a bottleneck", UserWarning),
    (r"Last batch will have a small size of \d samples", UserWarning),
    (r"You defined a `validation_step` but have no `val_dataloader`", UserWarning),
    (r"Found \d+ module\(s\) in eval mode", UserWarning),
    (r"Checkpoint directory .* exists and is not empty", UserWarning),
)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch inside a ``with`` block, and restore their states after it.

    Unlike ``scvi.settings.seed`` and ``lightning.seed_everything``, nothing in the user's session changes: no global
    seed and no environment variable. The next random number after the block is the one that would have come without
    the block, also if the block raises.

    Parameters
    ----------
    seed
        Seed, 0 to 2³² − 1, of :mod:`random`, NumPy's global generator and torch on every device.

    Yields
    ------
    None

    Raises
    ------
    ValueError
        If ``seed`` is out of range.

    Examples
    --------
    >>> import torch
    >>> with seeded(0):
    ...     first = torch.rand(3)
    >>> with seeded(0):
    ...     second = torch.rand(3)
    >>> bool((first == second).all())
    True
    """
    import torch

    if not 0 <= seed < 2**32:
        msg = f"seed is {seed}; it must lie between 0 and 2**32 - 1."
        raise ValueError(msg)
    python_state = random.getstate()
    # scvi-tools draws from NumPy's global generator.
    numpy_state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread inside a ``with`` block.

    Layers of a few hundred units are too small to share: threads wait for one another, and if another process uses
    the same cores, a step takes ten times as long.

    Yields
    ------
    None
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet_loggers(*names: str, level: int = logging.WARNING) -> Iterator[None]:
    """Silence loggers below a level inside a ``with`` block.

    Parameters
    ----------
    *names
        Names of the loggers.
    level
        Lowest level that is still logged. A logger that is stricter stays as it is.

    Yields
    ------
    None
    """
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, level))
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the training inside a ``with`` block, and nothing else.

    Lightning answers Ctrl-C by ending the process, and leaves it deaf to any further Ctrl-C.

    Yields
    ------
    None

    Raises
    ------
    KeyboardInterrupt
        If the training was interrupted.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)


def check_loss(loss: float, *, of: str, at: str, advice: str = "lower the learning rate") -> None:
    """Stop a training whose loss is no number: its weights are worth nothing.

    Parameters
    ----------
    loss
        The loss.
    of
        What is trained.
    at
        The epoch or step, counted from 1.
    advice
        What the user can do.

    Raises
    ------
    FloatingPointError
        If the loss is not finite.
    """
    if not math.isfinite(loss):
        msg = f"The loss of the {of} is {loss} in {at}: look for extreme values in the data, or {advice}."
        raise FloatingPointError(msg)


@contextmanager
def quiet_training(seed: int | None = None, *, single_thread: bool = True) -> Iterator[None]:
    """Train inside a ``with`` block: on one thread, without Lightning's tips and warnings about intended behaviour.

    Parameters
    ----------
    seed
        Seed of the block, see :func:`seeded`. By default the random state of the session is used.
    single_thread
        Run torch on one CPU thread, see :func:`one_thread`.

    Yields
    ------
    None
    """
    with ExitStack() as stack:
        if seed is not None:
            stack.enter_context(seeded(seed))
        if single_thread:
            stack.enter_context(one_thread())
        stack.enter_context(interruptible())
        # "Detected KeyboardInterrupt" is no news to who pressed Ctrl-C
        stack.enter_context(quiet_loggers(*TRAINING_LOGGERS))
        stack.enter_context(warnings.catch_warnings())
        for message, category in NOT_FOR_USERS:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield


def counting(here: Stage) -> pl.Callback:
    """A callback of Lightning that counts the batches of a training, or its epochs where their length is unknown."""
    from lightning.pytorch.callbacks import LambdaCallback

    return LambdaCallback(
        on_train_start=partial(_expect, here),
        on_train_batch_end=partial(_count_batch, here),
        on_train_epoch_end=partial(_count_epoch, here),
    )


def _expect(here: Stage, trainer: Any, module: Any) -> None:
    if _counts_batches(trainer) and trainer.max_epochs:
        n = int(trainer.num_training_batches)
        here.expect(trainer.max_epochs * n, initial=trainer.current_epoch * n, unit="batches")


def _count_batch(here: Stage, trainer: Any, *_: Any) -> None:
    if _counts_batches(trainer):
        here.update()


def _count_epoch(here: Stage, trainer: Any, module: Any) -> None:
    # of several processes only the one that started them shows what is being done
    if not _counts_batches(trainer) and trainer.world_size == 1:
        here.update()


def _counts_batches(trainer: Any) -> bool:
    return bool(trainer.world_size == 1 and np.isfinite(trainer.num_training_batches))


def fit_quietly(
    module: pl.LightningModule,
    training: Any,
    held_out: Any = None,
    *,
    name: str,
    seed: int | None = None,
    single_thread: bool = True,
    resume_from: Any = None,
    **trainer: Any,
) -> None:
    """Train a Lightning module in place; afterwards it is on the CPU, in evaluation mode.

    Parameters
    ----------
    module
        What is trained.
    training, held_out
        Loaders of batches to train on and, if any, to validate on.
    name
        Name of the training, for who waits for it.
    seed, single_thread
        As in :func:`quiet_training`.
    resume_from
        Checkpoint to resume from, if any.
    **trainer
        Arguments of :class:`lightning.pytorch.Trainer`. By default nothing is logged or written to disk.
    """
    import lightning.pytorch as pl

    defaults = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
    }
    n_epochs = trainer.get("max_epochs")
    with quiet_training(seed, single_thread=single_thread), stage(name, total=n_epochs, unit="epochs") as here:
        module.train()
        trainer["callbacks"] = [*trainer.get("callbacks", []), counting(here)]
        pl.Trainer(**defaults | trainer).fit(module, training, held_out, ckpt_path=resume_from)
    module.cpu().eval()

"""The model on spots as arrays and labels, for the methods and `embed_genes`; what SCVI and SCANVI need too."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast._models.batch_vae.model import BatchAgnosticVAE
from stcontrast._training import quiet_loggers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData

__all__ = ["few_spots_of_a_kind", "fit_vae", "make_vae", "vae_losses", "with_unlabelled"]

UNLABELLED: Final = "unlabelled"
# The model learns what half or a quarter of the depth does to a spot. Less would leave little of a shallow spot.
THIN_TO: Final = (0.5, 0.25)
# names of scvi-tools, and ours; those of held-out spots begin with "held_out_"
LOSSES: Final = {"elbo": "elbo", "reconstruction_loss": "reconstruction", "kl_local": "kl"}
PARTS: Final = {"train": "", "validation": "held_out_"}


@contextmanager
def few_spots_of_a_kind() -> Iterator[None]:
    """Set a model of scvi-tools up inside a ``with`` block, also where a batch or a class has few spots."""
    with warnings.catch_warnings():
        # a class or a batch of one or two spots is a property of the user's data
        warnings.filterwarnings("ignore", message=".*has fewer than 3 cells", category=UserWarning)
        yield


def with_unlabelled(labels: Sequence[str | None], known: Sequence[str]) -> Any:
    """Classes of spots, the last category for those that have none."""
    unlabelled = UNLABELLED
    while unlabelled in known:
        unlabelled += "_"
    named = [unlabelled if label is None else label for label in labels]
    return pd.Categorical(named, categories=[*known, unlabelled])


def make_vae(
    adata: AnnData,
    *,
    batch_key: str,
    labels: Sequence[str | None] | None = None,
    labels_key: str = "label",
    class_weight: float = 0.0,
    slide_key: str | None = None,
    **architecture: Any,
) -> BatchAgnosticVAE:
    """A model that is set up on these spots, not trained; see :func:`fit_vae`."""
    known = sorted({label for label in labels or () if label is not None})
    classes = {}
    if known:
        named = adata.obs[labels_key] = with_unlabelled(labels or (), known)
        classes = {"labels_key": labels_key, "unlabeled_category": named.categories[-1]}
    # it is no fault if every spot has a class
    with few_spots_of_a_kind(), quiet_loggers(BatchAgnosticVAE.__module__, level=logging.ERROR):
        BatchAgnosticVAE.setup_anndata(adata, batch_key=batch_key, slide_key=slide_key, **classes)
    return BatchAgnosticVAE(adata, class_weight=class_weight if known else 0.0, **architecture)


def fit_vae(  # noqa: PLR0913
    adata: AnnData,
    *,
    batch_key: str,
    labels: Sequence[str | None] | None = None,
    labels_key: str = "label",
    class_weight: float = 0.0,
    n_latent: int = 16,
    max_epochs: int | None = None,
    slide_key: str | None = None,
    validation_key: str | None = None,
    seed: int = 0,
) -> BatchAgnosticVAE:
    """Train a model on spots that all have counts, without warnings that nobody can act on.

    Parameters
    ----------
    adata
        Raw counts, the batch column and the validation column. It is set up in place, and the model keeps it.
    batch_key
        Column whose effect the latent must not contain.
    labels
        Class of every spot, `None` for none. Without classes the latent is not guided.
    labels_key
        Column to write the classes to.
    class_weight
        Weight of the classes in the loss, if there are any.
    n_latent
        Dimensions of the latent space.
    max_epochs
        Epochs; by default :func:`default_max_epochs`.
    slide_key
        Column that names the slides with which the encoder compares a spot; spots are then thinned in training. By
        default the encoder sees the counts of one spot only.
    validation_key
        Column that names the groups of which one in ten is held out. By default the model trains on all spots.
    seed
        Seed of the weights and of the training.

    Returns
    -------
    The trained model.
    """
    model = make_vae(
        adata, batch_key=batch_key, labels=labels, labels_key=labels_key, class_weight=class_weight, n_latent=n_latent,
        slide_key=slide_key, seed=seed,
    )  # fmt: skip
    n_groups = 0 if validation_key is None else adata.obs[validation_key].nunique()
    held_out = max(1, n_groups // 10) if n_groups else 0
    model.train(
        max_epochs=max_epochs, validation_key=validation_key, validation_groups=held_out, seed=seed,
        thin_to=() if slide_key is None else THIN_TO,
    )  # fmt: skip
    return model


def vae_losses(history: Mapping[str, Any] | None) -> pd.DataFrame:
    """What scvi-tools logged, as a table with a row for every epoch; without rows where there is nothing.

    Parameters
    ----------
    history
        The `history` of a model of scvi-tools.
    """
    found = {
        f"{prefix}{ours}": np.asarray((history or {})[f"{theirs}_{part}"], dtype=np.float64).ravel()
        for theirs, ours in LOSSES.items()
        for part, prefix in PARTS.items()
        if f"{theirs}_{part}" in (history or {})
    }
    # validation may be made less often than once in an epoch
    n_epochs = max(map(len, found.values()), default=0)
    whole = {name: values for name, values in found.items() if len(values) == n_epochs}
    return pd.DataFrame({"epoch": np.arange(1, n_epochs + 1), **whole} if n_epochs else {})

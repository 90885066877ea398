"""From counts that are at hand to a trained model, without a word about what nobody can act on."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Final

import pandas as pd

from stcontrast._models.batch_vae._model import BatchAgnosticVAE
from stcontrast._models.batch_vae._session import quiet_loggers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

__all__ = ["fit_vae", "make_vae"]

_UNLABELLED: Final = "unlabelled"
# what a halved or quartered depth does to a spot is learnt; more than that leaves little of a shallow one
THIN_TO: Final = (0.5, 0.25)


def make_vae(
    adata: AnnData,
    *,
    batch_key: str,
    labels: Sequence[str | None] | None = None,
    labels_key: str = "label",
    class_weight: float = 0.0,
    n_latent: int = 16,
    slide_key: str | None = None,
    seed: int = 0,
) -> BatchAgnosticVAE:
    """A model that is set up on these spots, not trained; see :func:`fit_vae`."""
    known = sorted({label for label in labels or () if label is not None})
    classes = {}
    if known:
        unlabelled = _UNLABELLED
        while unlabelled in known:
            unlabelled += "_"
        named = [unlabelled if label is None else label for label in labels or ()]
        adata.obs[labels_key] = pd.Categorical(named, categories=[*known, unlabelled])
        classes = {"labels_key": labels_key, "unlabeled_category": unlabelled}
    # that no spot is unlabelled is as it should be
    silent = quiet_loggers(BatchAgnosticVAE.__module__, level=logging.ERROR)
    with warnings.catch_warnings(), silent:
        # a class or a batch of one or two spots is the user's data, and nothing to be done about
        warnings.filterwarnings("ignore", message=".*has fewer than 3 cells", category=UserWarning)
        BatchAgnosticVAE.setup_anndata(adata, batch_key=batch_key, slide_key=slide_key, **classes)
    return BatchAgnosticVAE(adata, n_latent=n_latent, class_weight=class_weight if known else 0.0, seed=seed)


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
    """Train a model on spots that all have counts.

    Parameters
    ----------
    adata
        Raw counts, the batch column and the validation column; it is set up in place, and becomes the model's.
    batch_key
        Column that the latent is blind to.
    labels
        Class of every spot, `None` where it has none; without classes the latent is not guided.
    labels_key
        Column to write them to.
    class_weight
        What the classes weigh in the loss, where there are any.
    n_latent
        Dimensions of the latent space.
    max_epochs
        Length of the training; by default the model's own rule.
    slide_key
        Column that names the slides with which the encoder compares a spot; spots are then thinned in training. By
        default it sees the counts of a spot alone.
    validation_key
        Column that names the groups to hold out, one in ten. By default all spots are trained on.
    seed
        Seed of all of it.

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

"""`embed_genes`: compute the gene latent of spots, without an image."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from stcontrast._arguments import checked
from stcontrast._data import columns_of_genes, n_variable_genes
from stcontrast._genespace import CLASS_WEIGHT
from stcontrast._keys import VAE_LATENT
from stcontrast._progress import stage
from stcontrast._reading import as_list, resolve_table
from stcontrast._records import write_record
from stcontrast.tl._gene_encoder import (
    LABEL,
    GeneEncoder,
    gather_counts,
    training_data,
    with_columns,
)
from stcontrast.tl._write import check_slots_ours

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from anndata import AnnData
    from spatialdata import SpatialData

    from stcontrast._models.batch_vae import BatchAgnosticVAE
    from stcontrast.fitted import Predictor

__all__ = ["embed_genes"]

# most variable genes that are modelled, unless the user says otherwise
N_GENES: Final = 2000

logger = logging.getLogger(__name__)


@checked()
@stage("embed_genes", whole=True)
def embed_genes(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    *,
    batch_key: str | None = None,
    model: BatchAgnosticVAE | Predictor | str | PathLike[str] | None = None,
    within_slide: bool = True,
    label_key: str | None = None,
    class_weight: float = CLASS_WEIGHT,
    n_genes: int | None = None,
    genes: Sequence[str] | None = None,
    n_latent: int = 16,
    max_epochs: int | None = None,
    validation_key: str | None = None,
    layer: str | None = None,
    table_key: str | None = None,
    library_key: str | None = None,
    fill_missing: bool = False,
    key_added: str = VAE_LATENT,
    seed: int = 0,
) -> BatchAgnosticVAE | Predictor:
    """Embed the counts of every spot in a latent space that is independent of the batch. No image is needed.

    Without `model`, a :class:`~stcontrast.models.BatchAgnosticVAE` is trained on all spots with counts, and embeds
    them. With `model`, nothing is trained. The model encodes spots of any donor, and the latent of a spot does not
    depend on the other objects. Give whole slides, because spots are compared with their slide.

    Parameters
    ----------
    data
        One object or a list of them: SpatialData, or AnnData with or without positions.
    batch_key
        Column of `obs` that the encoder must not see, such as the donor. By default every slide is a batch.
    model
        The model to encode with: a trained model, the result of :func:`fit` if it has a gene latent (methods
        ``"stcontrast"`` and ``"tpirbae"``, with counts), or the folder that either was saved to. `None` (default)
        trains a new model.
    within_slide
        With `True` (the default), the encoder sees the expression of a spot relative to its whole slide. This removes
        effects that are the same in all spots of a slide, such as those of the donor or of sequencing depth. With
        `False`, it sees only the counts of the spot, which keeps differences between whole slides. Used only for
        training: a `model` keeps the setting of its training.
    label_key
        Column of `obs` with annotated classes that guide the latent. Missing values are spots without annotation. By
        default there is no guidance. A guided model can predict classes with ``model.predict``.
    class_weight
        Weight of the classes relative to the log-likelihood of a spot.
    n_genes
        Largest number of genes to choose: the most variable of those seen in 10 % of the spots. By default 2000, and
        none beside `genes`.
    genes
        Names of the genes to model. With `n_genes`: these and the most variable ones.
    n_latent
        Dimensions of the latent space.
    max_epochs
        Largest number of passes through the spots. By default 2500 / √n_spots, between 20 and 100.
    validation_key
        Column of `obs` that names slides or donors. One in ten of them (at least one) is held out, and training stops
        early if it no longer improves on these. By default the model is trained on all spots.
    layer
        Layer with raw counts. By default `X`; with `model`, the layer of its training.
    table_key
        Table that holds the spots; the only one by default.
    library_key
        AnnData only: column of `obs` that names the slide of a spot.
    fill_missing
        With `model`: treat genes that an object lacks as zero counts. By default they raise an error.
    key_added
        Slot of `obsm` to write. An existing slot is replaced only if stcontrast wrote it.
    seed
        Random seed. The random state of your session is not changed.

    Returns
    -------
    The model: the given, loaded or trained one. Written to every table: ``obsm[key_added]``, float32 (n_spots,
    n_latent), NaN in spots without counts; and ``uns["stcontrast"]["embed_genes"]``: genes, layer, how the model was
    trained (``uns["stcontrast"]["embed_genes_<key_added>"]`` where `key_added` is not the default). Nothing else is
    changed.

    Raises
    ------
    FileNotFoundError
        If there is no model in the folder.
    KeyError
        If a column, layer, table or gene is absent. The message lists those that exist.
    TypeError
        If `data` or `model` is something else.
    ValueError
        If counts are not raw, `key_added` holds your own data, an object is given twice, the objects share no genes,
        there are no counts or no classes to learn from, the model has no gene latent or genes that an object lacks, or
        an argument of training is given together with `model`. All are raised before any work is done.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.embed_genes(sdata, batch_key="donor", n_latent=5, max_epochs=5)
    >>> sdata["table"].obsm["X_stc_vae"].shape
    (80, 5)
    >>> unseen = stc.datasets.toy(n_donors=1, n_spots=40, n_genes=30, seed=1)
    >>> _ = stc.tl.embed_genes(unseen, model=model)
    >>> unseen["table"].obsm["X_stc_vae"].shape
    (40, 5)

    References
    ----------
    Lopez et al. 2018 (scVI); Nishimura et al. 2025 (TPIRBAE, arXiv 2503.07173).
    """
    tables = [resolve_table(item, table_key=table_key) for item in as_list(data)]
    _check_tables(tables, key_added)
    training: dict[str, Any] = {}
    if model is None:
        spots = gather_counts(tables, batch_key=batch_key, label_key=label_key, layer=layer, library_key=library_key)
        n_variable = n_variable_genes(n_genes, genes, default=N_GENES)
        spots = with_columns(spots, columns_of_genes(spots, genes or (), n_variable))
        adata, labels, batch_column, slide_column = training_data(
            spots, tables, batch_key=batch_key, validation_key=validation_key, library_key=library_key
        )
        from stcontrast._models.batch_vae import fit_vae

        vae = fit_vae(
            adata, batch_key=batch_column, labels=labels,
            labels_key=label_key or LABEL, class_weight=class_weight, n_latent=n_latent, max_epochs=max_epochs,
            slide_key=slide_column if within_slide else None, validation_key=validation_key, seed=seed,
        )  # fmt: skip
        encoder = GeneEncoder.of(vae)
        named = {"batch_key": batch_key, "label_key": label_key, "validation_key": validation_key}
        training = {"seed": seed, "within_slide": within_slide} | {k: v for k, v in named.items() if v is not None}
        if encoder.classes:
            training["class_weight"] = class_weight
    else:
        _check_only_for_training(
            batch_key=batch_key, label_key=label_key, n_genes=n_genes, genes=genes, validation_key=validation_key
        )
        encoder = GeneEncoder.of(model)
        layer = encoder.layer if layer is None else layer
    latents = encoder.encode(tables, layer=layer, library_key=library_key, fill_missing=fill_missing, seed=seed)
    record = {
        "genes": encoder.genes, "classes": encoder.classes, "n_latent": encoder.n_latent, "layer": layer or "X",
        "key_added": key_added, "trained_on_these_spots": model is None, **training,
    }  # fmt: skip
    for table, latent in zip(tables, latents, strict=True):
        table.obsm[key_added] = latent
        write_record(table, "embed_genes", record, key_added)
    logger.info("Added obsm[%r]: %d spots, %d dimensions.", key_added, sum(map(len, latents)), encoder.n_latent)
    return encoder.model


def _check_tables(tables: Sequence[AnnData], key_added: str) -> None:
    if len({id(table) for table in tables}) < len(tables):
        msg = "An object is given twice: its spots would count twice."
        raise ValueError(msg)
    for table in tables:
        check_slots_ours(table, "embed_genes", key_added, obsm=[key_added])
        if table.n_obs == 0:
            msg = "The table has no spots (0 rows)."
            raise ValueError(msg)


def _check_only_for_training(**given: object) -> None:
    named = [name for name, value in given.items() if value is not None]
    if named:
        msg = f"`model` is already trained: {named} are used only for training. Leave out one of them."
        raise ValueError(msg)

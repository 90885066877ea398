"""`fit`: train a model on your slides."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from joblib import parallel_config

from stcontrast._arguments import checked, one_of
from stcontrast._cluster import on_cluster
from stcontrast._data import gather, n_variable_genes
from stcontrast._keys import EMBEDDING, GENE_EMBEDDING, IMAGE_EMBEDDING, PREDICTION_TABLE, VAE_LATENT
from stcontrast._progress import stage
from stcontrast._reading import Keys, check_named_genes, resolve_all, split_gene_side
from stcontrast._records import write_record
from stcontrast.fitted._fit import N_GENES, FitSpec, fit_model, with_genes_of
from stcontrast.methods._base import Method, get_method
from stcontrast.pp._encoders import resolve_encoders
from stcontrast.pp._features import parse_fields
from stcontrast.tl._features import (
    block_widths,
    check_slots,
    color_features,
    features_to_fit,
    parse_slots,
    spot_distance_um,
    warn_of_mixed_spots,
)
from stcontrast.tl._tune import Tuning, check_image_tower
from stcontrast.tl._write import check_prediction_slot, check_slots_ours, images_of, prediction_table, write_embedding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._data import Spots, Standardize
    from stcontrast._models.image_tower import TunedEncoder
    from stcontrast._reading import Sections
    from stcontrast.fitted import Predictor
    from stcontrast.pp._encoders import AnyEncoder
    from stcontrast.tl._tune import ImageTowerKind

__all__ = ["fit"]

logger = logging.getLogger(__name__)


@checked(standardize=one_of("slide", "none"))
@stage("fit", whole=True)
def fit(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    *,
    batch_key: str | None = None,
    label_key: str | None = None,
    donor_key: str | None = None,
    method: str = "stcontrast",
    encoder: AnyEncoder | Sequence[AnyEncoder] | None = None,
    field_um: float | Sequence[float] | None = None,
    use_rep: str | Sequence[str] | None = None,
    n_genes: int | None = None,
    genes: Sequence[str] | None = None,
    n_neighbors: int | None = None,
    standardize: Standardize = "slide",
    max_spots: int | None = 100_000,
    layer: str | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_diameter_um: float | None = None,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_key: str | None = None,
    complete: bool = False,
    image_tower: ImageTowerKind = "frozen",
    tower_options: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
) -> Predictor:
    """Learn to predict expression and subtype from H&E, on slides of several donors.

    Each slide contributes what it has: counts, labels or both. A table without genes, or spots without counts,
    contribute only to the subtype. Without any counts, only the subtype is learned. An object with counts but no image
    (and no image features) contributes only to the gene space, if the method has one; a warning names its slides.
    Genes are chosen, and everything else is fitted, on the spots given here. Inner folds hold out whole donors to make
    choices and to calibrate intervals. With one donor they hold out slides, with one slide blocks of it.

    Parameters
    ----------
    data
        One object or a list of them. SpatialData whose table annotates the spots; or AnnData, which needs features in
        `obsm` (see `use_rep`) or scanpy's images in ``uns["spatial"]``. For the gene side, AnnData with only counts.
    batch_key
        Column of `obs` that the gene model must not see, such as the donor. By default every slide is a batch.
    label_key
        Column of `obs` with the annotated subtype. Missing values are spots without annotation. By default no subtypes
        are learned.
    donor_key
        Column of `obs` that names the patient or animal, which is held out as a whole. `batch_key` by default. Without
        both, every slide counts as a donor, with a warning.
    method
        ``"stcontrast"`` (ours); a published method: ``"tpirbae"``, ``"mclstexp"``, ``"nh2st"``, ``"bleep"``,
        ``"mvitgene"``, ``"magic"``, ``"triplex"``, ``"deepspot"``; a baseline: ``"ridge"``, ``"knn"``, ``"mlp"``,
        ``"kernel"``, ``"color"``, ``"mean"``, ``"field"`` (chance) and ``"depth"`` (an oracle); or ``"given"``, the
        predictions of another model.
    encoder, field_um
        As in :func:`stcontrast.pp.image_features`, fields in µm. By default existing features are used; if there are
        none, colour and texture at 100, 200, 400 and 800 µm. The features of several encoders have equal weight.
    use_rep
        One or several slots of `obsm` with the features to learn from: features of
        :func:`stcontrast.pp.image_features`, or your own. Several slots become blocks of equal weight. ``"X_image"``
        by default; only this slot is computed if it is absent. Not with ``image_tower="finetune"``.
    n_genes
        Largest number of genes to choose: the most variable of those seen in 10 % of the training spots. By default
        1000, and none beside `genes`.
    genes
        Names of the genes to model. ``genes=["ERBB2"], n_genes=1000`` models this gene and the most variable ones.
    n_neighbors
        Number of nearest spots of the same slide. Their mean image features are added to the features of the spot,
        and, for every encoder of at most 1024 features, the extremes of the nearest six. The default depends on the
        method: 18 (two rings of Visium's lattice) for ``"stcontrast"`` and the baselines, 0 for the published methods,
        which use only the spot itself or define their own neighbourhood.
    standardize
        ``"slide"``: scale image features to zero mean and unit deviation within every slide, which removes differences
        in stain and scanner. ``"none"``: no scaling.
    max_spots
        Largest number of spots to learn from, for ``"stcontrast"`` and the baselines; `None`: all. If there are more,
        annotated spots (up to half of the number) and as many others of every slide are drawn at random. Image
        features of all spots are still used, for the neighbours and to standardise within slides. The other methods
        look around a spot and learn from all.
    layer
        Layer with raw counts; `X` by default.
    um_per_px, spot_diameter_um, table_key, image_key, library_key
        As in :func:`stcontrast.pp.crops`.
    complete
        Fill the zeros in the expression of the training spots before training, as :func:`stcontrast.pp.complete` does.
        The model for this is fitted on the training spots alone; inner folds complete without their held-out group.
        Scores and calibration use the measured values. Takes a minute per fold.
    image_tower
        ``"frozen"``: the encoder is not trained. ``"finetune"``: a network of timm (`encoder`, at `field_um`, 200 µm
        by default) is first trained end to end on these spots, to predict their expression and classes (or by the
        method's own loss, with ``tower_options={"loss": "method"}``), and is then frozen. Each inner fold has its own
        network, trained without its held-out group, so that calibration and choices are unbiased. This takes one
        training per fold, and one more. Needs images. Features in ``obsm["X_image"]`` are neither used nor changed.
    tower_options
        Options of the fine-tuning, by name: :class:`stcontrast.models.TowerOptions`. Among them ``epochs``,
        ``batch_size``, ``micro_batch``, ``learning_rate``, ``precision``, ``devices``, ``checkpoint_dir``.
    options
        Options of the method, by name. The page of the method lists them. For ``"stcontrast"``: ``gene_space``
        (``"axes"``, ``"vae"``, or a trained :class:`stcontrast.models.BatchAgnosticVAE`), ``n_coordinates``,
        ``vae_epochs``, ``loss``, ``contrastive_weight``, ``temperature``, ``max_epochs``, ``penalty``.
    n_jobs
        Number of inner folds to fit at the same time. Each runs in a process of its own, which needs memory for one more
        fit. By default they run one after another in this process, unless ``joblib.parallel_config(n_jobs=...)`` says
        otherwise or a dask ``Client`` runs; its workers then fit them. Predictions differ by rounding errors only.
    seed
        Random seed. The random state of your session is not changed.

    Returns
    -------
    The model: ``predict``, ``save``, ``spec``. Written to every table: ``obsm["X_image"]`` and
    ``uns["stcontrast"]["image_features"]`` if they were absent (fine-tuned ones in ``obsm["X_image_tuned"]`` and
    ``uns["stcontrast"]["image_features_X_image_tuned"]`` instead); by a contrastive method ``obsm["X_stc_image"]``
    and, with counts, ``obsm["X_stc_gene"]`` and, with a VAE, ``obsm["X_stc_vae"]`` (float32; NaN in spots without
    counts; a spot against its slide, as :func:`embed_genes` makes it) and ``uns["stcontrast"]["embed_genes"]``. In a
    SpatialData also the table ``"stc_pred"``: predictions for the training slides, marked as in-sample. Neither
    embeddings nor predictions are written if there are more spots than `max_spots`.

    Raises
    ------
    KeyError
        If a column, layer, table, slot of `use_rep` or gene is absent. The message lists those that exist.
    TypeError
        If `data` is something else.
    ValueError
        If an output slot holds your own data, counts are not raw, a slide has no image, an image does not lie under
        its spots, µm per pixel is unknown, a slide is given twice as that of two donors, `use_rep` names features that
        were made of counts, or there is nothing to learn from; or if ``image_tower="finetune"`` and the encoder cannot
        be fine-tuned. All are raised before any work is done.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", label_key="subtype", options={"max_epochs": 5})
    >>> sdata["stc_pred"].uns["stcontrast"]["prediction"]["provenance"]
    {'donor1_a': 'in-sample', 'donor2_a': 'in-sample'}

    References
    ----------
    Nishimura et al. 2025 (TPIRBAE, arXiv 2503.07173); Xie et al. 2023 (BLEEP, arXiv 2306.01859); Lopez et al. 2018
    (scVI).
    """
    keys = Keys(
        batch_key=batch_key, donor_key=donor_key, label_key=label_key, layer=layer, table_key=table_key,
        image_key=image_key, slide_key=library_key, um_per_px=um_per_px, spot_diameter_um=spot_diameter_um,
    )  # fmt: skip
    fit_spec = FitSpec(
        n_genes=n_variable_genes(n_genes, genes, default=N_GENES),
        genes=genes or (),
        n_neighbors=n_neighbors,
        standardize=standardize,
        max_spots=max_spots,
        seed=seed,
        options=options,
        complete=complete,
    )
    fields = None if field_um is None else parse_fields(field_um)
    tuning = (
        Tuning.of(encoder, fields, tower_options)
        if check_image_tower(image_tower, tower_options, [method], use_rep=use_rep)
        else None
    )
    slots = parse_slots(use_rep, asked=encoder is not None or fields is not None)
    chosen = None if encoder is None or tuning is not None else resolve_encoders(encoder)
    asked = get_method(method, seed=seed, options=options)
    sources, gene_side = split_gene_side(resolve_all(data, keys), slots=slots)
    for source in sources:
        check_prediction_slot(source, PREDICTION_TABLE)
        if type(asked).embed is not Method.embed:
            check_slots_ours(source.table, "embedding", EMBEDDING, obsm=[IMAGE_EMBEDDING, GENE_EMBEDDING])
        if getattr(asked, "latent", None) is not None:
            check_slots_ours(source.table, "embed_genes", VAE_LATENT, obsm=[VAE_LATENT])
    if tuning is None:
        check_slots(sources, slots, fields)
    else:
        tuning.check_sources(sources)
    warn_of_mixed_spots(sources)
    spots = gather(sources, keys, gene_side=gene_side)
    if not (spots.has_counts or spots.has_labels):
        msg = "Nothing to learn from: no slide has counts, and no spot has a label. Is `label_key` missing?"
        raise ValueError(msg)
    check_named_genes(with_genes_of(asked, fit_spec).genes, spots.genes, "genes to model")
    # the same model, however the user's slides and spots are ordered
    rows = spots.in_order(np.arange(len(spots)))
    tower: TunedEncoder | None = None
    tuning_losses: list[dict[str, float]] = []
    of_fold: Sequence[NDArray[np.float32]] = ()
    if tuning is None:
        features, made_by = features_to_fit(sources, encoders=chosen, fields=fields, slots=slots)
    else:
        with tuning.cut(sources) as store:
            tuned, tower = tuning.run(store, spots, rows, fit_spec, method=method)
        features, made_by, of_fold = tuning.write(sources, tower), tuned.made_by, tuned.of_fold
        tuning_losses = tuned.losses
    if asked.uses_color:
        features, made_by = color_features(sources, features, made_by)
    spots = replace(spots, features=features, blocks=block_widths(made_by))
    with on_cluster(), nullcontext() if n_jobs is None else parallel_config(n_jobs=n_jobs):
        model, train = fit_model(
            spots, rows, method=method, fit_spec=fit_spec, made_by=made_by, of_fold=of_fold,
            spot_distance_um=spot_distance_um(sources), images=images_of(sources),
        )  # fmt: skip
    model.tower = tower
    if tuning_losses:
        model.history = {"fine-tuned encoder": pd.DataFrame(tuning_losses), **model.history}
    if len(train) < len(rows):
        logger.warning(
            "Predictions and embeddings of the training slides are not written: `stc.tl.predict_expression(data, model, "
            "store=...)` and `stc.tl.embed(data, model)` make them."
        )
        return model
    back = np.argsort(rows)
    _write_embeddings(sources, model, {slot: values[back] for slot, values in model.method.embed(train).items()})
    _write_predictions(sources, spots, model, donor_key=keys.donor_key or keys.batch_key)
    return model


def _write_embeddings(
    sources: Sequence[Sections], model: Predictor, embeddings: Mapping[str, NDArray[np.float32]]
) -> None:
    if not embeddings:
        return
    start = 0
    for source in sources:
        stop = start + source.table.n_obs
        here = {key: value[start:stop] for key, value in embeddings.items()}
        write_embedding(source.table, model, here, provenance={slide.name: "in-sample" for slide in source.slides})
        if VAE_LATENT in embeddings:
            source.table.obsm[VAE_LATENT] = here[VAE_LATENT]
            latent: Any = getattr(model.method, "latent", None)
            # what `embed_genes` writes about a latent of its own
            record = {
                "genes": model.genes, "n_latent": embeddings[VAE_LATENT].shape[1], "within_slide": latent.within_slide,
                "key_added": VAE_LATENT, "trained_on_these_spots": True, "method": model.method.name,
                "model_id": model.model_id,
            }  # fmt: skip
            write_record(source.table, "embed_genes", record)
        start = stop
    logger.info("Added obsm %s.", sorted(embeddings))


def _write_predictions(
    sources: Sequence[Sections],
    spots: Spots,
    model: Predictor,
    *,
    donor_key: str | None,
) -> None:
    if not model.has_expression:
        return
    start = 0
    for source in sources:
        stop = start + source.table.n_obs
        here = slice(start, stop)
        if not source.is_spatialdata:
            model.warn_of_parts(spots.features[here], spots.slide[here], spots.slides)
        else:
            # object by object: the predictions of all of them need not fit in memory at once
            prediction = model.predict(
                spots.features[here], slide=spots.slide[here], xy=spots.xy[here], depth=spots.depth[here],
                names=spots.slides,
            )  # fmt: skip
            rows = np.arange(source.table.n_obs)
            provenance = {slide.name: "in-sample" for slide in source.slides}
            table = prediction_table(source, model, prediction, rows, provenance=provenance, donor_key=donor_key)
            source.write_table(PREDICTION_TABLE, table)
        start = stop

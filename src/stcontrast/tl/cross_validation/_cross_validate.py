"""`cross_validate`: leave donors out, predict them, and score every method."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast._arguments import checked, one_of
from stcontrast._cluster import on_cluster
from stcontrast._data import gather, n_variable_genes
from stcontrast._progress import duration, stage
from stcontrast._reading import Keys, check_named_genes, resolve_all, split_gene_side
from stcontrast.fitted._fit import N_GENES, FitSpec, with_genes_of
from stcontrast.methods._base import get_method
from stcontrast.pp._encoders import resolve_encoders
from stcontrast.pp._features import parse_fields
from stcontrast.tl._features import check_slots, color_features, features_to_fit, parse_slots, warn_of_mixed_spots
from stcontrast.tl._tune import Tuning, check_image_tower
from stcontrast.tl.cross_validation._fits import Fit, FitStore, check_directory, with_tuned_features
from stcontrast.tl.cross_validation._gene_sets import HIGHLY_VARIABLE, GeneSets, parse_gene_sets
from stcontrast.tl.cross_validation._parallel import Pace, count_processes, run_fits
from stcontrast.tl.cross_validation._predictions import measured_values, out_of_distribution, prediction_table
from stcontrast.tl.cross_validation._result import CrossValidation
from stcontrast.tl.cross_validation._scoring import CLASSES, SCORES, score_fold

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._data import Spots, Standardize
    from stcontrast.methods._base import Method
    from stcontrast.pp._encoders import AnyEncoder
    from stcontrast.tl._tune import ImageTowerKind
    from stcontrast.tl.cross_validation._fits import OutOfFold

__all__ = ["cross_validate"]

logger = logging.getLogger(__name__)

METHODS: Final = ("stcontrast", "ridge", "color", "mean")


@checked(standardize=one_of("slide", "none"))
@stage("cross_validate", whole=True)
def cross_validate(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    *,
    donor_key: str | None = None,
    batch_key: str | None = None,
    label_key: str | None = None,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] = METHODS,
    n_folds: int | None = None,
    n_score_genes: int = 300,
    gene_sets: Sequence[str] | Mapping[str, Sequence[str] | None] = (HIGHLY_VARIABLE,),
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
    n_jobs: int | None = None,
    directory: str | Path | None = None,
    seed: int = 0,
) -> CrossValidation:
    """Leave each donor out in turn: fit on the other donors, predict the held-out donor from its H&E, and score.

    Nothing that is fitted sees the held-out donor. Genes (modelled and scored), scalers, VAE, network, penalties, early
    stopping and weights are all chosen on the other donors. All methods use the same image features. These come from a
    frozen encoder, or from one that is fine-tuned on the other donors.

    Parameters
    ----------
    data
        One object or a list of them, as for :func:`fit`.
    donor_key
        Column of `obs` with patient or animal; `batch_key` by default.
    batch_key
        Column with the batches that the gene model corrects for; `donor_key` by default.
    label_key
        Column with the annotated subtype. Without it only expression is scored.
    methods
        Methods to compare. The summary has differences to ``"ridge"`` if it is one of them. A mapping gives each row
        of the comparison its options, and under ``"method"`` the method, if it differs from the name of the row:
        ``{"ridge": {}, "nh2st (code)": {"method": "nh2st", "variant": "code"}}``.
    n_folds
        Number of folds of donors. By default one donor is left out at a time.
    n_score_genes
        Maximum number of genes in a set that is chosen.
    gene_sets
        Genes to score, chosen on the training spots of each fold. ``"highly_variable"``: the most variable
        well-expressed genes, as far as they are modelled. ``"highly_expressed"``: the genes with the highest mean log
        expression. ``"spatially_variable"``: the well-expressed genes with the highest mean Moran's I over 6 nearest
        spots (0 where a gene is constant on a slide). All slides have the same weight. A mapping can give lists of
        genes: ``{"highly_variable": None, "markers": ["ERBB2", "CD3E"]}``. Genes of all sets but the first kind are
        added to the modelled genes. All sets are scored; ``summary()`` takes one of them. With `genes`, the first set
        is ``"genes"``, all of these, and the other sets are chosen among them (with `n_genes` too: among all genes).
    encoder, field_um, use_rep, n_genes, genes, n_neighbors, standardize, max_spots, layer, complete, seed
        As in :func:`fit`.
    um_per_px, spot_diameter_um, table_key, image_key, library_key
        As in :func:`stcontrast.pp.crops`.
    image_tower, tower_options
        As in :func:`fit`. With ``"finetune"`` every fold of donors has its own towers, which all methods share (with
        ``tower_options={"loss": "method"}`` every method has its own). They
        are trained in this process, one after another, before the fits. With `directory` their checkpoints are kept in
        its folder ``towers``, unless ``checkpoint_dir`` names another folder.
    n_jobs
        Number of fits at once, each in a process with one thread. The numbers do not depend on it. 1 means this
        process. The default is the smallest of: number of fits, number of cores, and number of processes that fit in
        the free memory (each needs 1.5 GiB plus six times features and expression). It is 1 if spots × (features +
        genes) is below a million, because a process takes seconds to start. The processes are joblib's:
        ``joblib.parallel_config`` chooses another backend. If a dask ``Client`` is running, its workers are used, and
        the default is the number of their threads. With a backend of threads, fits take turns. If a process dies, its
        fit is repeated alone; if it dies again, the fit has failed.
    directory
        Folder to keep the predictions of every finished fit in. A repeated call does only the fits that are missing. A
        fit is recognised by data, held-out donors, method, options, seed, and version of the package. A method of your
        own is recognised by the source code of its module; if there is none, its fits are not kept.

    Returns
    -------
    The result with ``scores`` (tidy), ``summary()``, ``gene_sets``, ``predictions``, ``confusion()`` and ``failures``.
    A fit that fails is logged and listed in ``failures``, and the other fits continue. The error is raised only if all
    fits fail. ``obsm["X_image"]`` is written if it was absent.

    Raises
    ------
    ValueError
        If there is only one donor: a held-out part of a donor says nothing about another donor. If a slide is given
        twice as that of two donors, `use_rep` names features that were made of counts, or a gene set is unknown.
    KeyError
        If a column, a slot of `use_rep` or a gene is absent.
    FileExistsError
        If `directory` is a file.
    TypeError
        If `directory` is given and an option of a method cannot be hashed.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> cv = stc.tl.cross_validate(sdata, donor_key="donor", methods=["ridge", "mean"])
    >>> list(cv.summary().index)
    ['ridge', 'mean']
    """
    keys = Keys(
        batch_key=batch_key or donor_key, donor_key=donor_key or batch_key, label_key=label_key, layer=layer,
        table_key=table_key, image_key=image_key, slide_key=library_key, um_per_px=um_per_px,
        spot_diameter_um=spot_diameter_um,
    )  # fmt: skip
    if keys.donor_key is None:
        msg = "`donor_key` is needed: the column of `obs` that names patient or animal, the unit that is held out."
        raise ValueError(msg)
    path = None if directory is None else check_directory(directory)
    wanted = parse_gene_sets(gene_sets, genes=genes)
    fit_spec = FitSpec(
        n_genes=n_variable_genes(n_genes, genes, default=N_GENES), genes=genes or (), n_neighbors=n_neighbors,
        standardize=standardize, max_spots=max_spots, seed=seed, complete=complete,
    )  # fmt: skip
    compared = _compared(methods)
    asked = {name: get_method(method, options=options) for name, (method, options) in compared.items()}
    uses_color = {name: method.uses_color for name, method in asked.items()}
    fields = None if field_um is None else parse_fields(field_um)
    tuning = None
    if check_image_tower(image_tower, tower_options, [method for method, _ in compared.values()], use_rep=use_rep):
        tuning = Tuning.of(encoder, fields, tower_options)
        if path is not None and tuning.options.checkpoint_dir is None:
            tuning = replace(tuning, options=replace(tuning.options, checkpoint_dir=path / "towers"))
    slots = parse_slots(use_rep, asked=encoder is not None or fields is not None)
    chosen = None if encoder is None or tuning is not None else resolve_encoders(encoder)
    sources, gene_side = split_gene_side(resolve_all(data, keys), slots=slots)
    if tuning is None:
        check_slots(sources, slots, fields)
    else:
        tuning.check_sources(sources)
    warn_of_mixed_spots(sources)
    spots = gather(sources, keys, gene_side=gene_side)
    folds = list(_donor_folds(spots, n_folds))
    if not folds:
        msg = f"All donors with counts or labels fall into one of {n_folds} folds. Leave out `n_folds`, or give more."
        raise ValueError(msg)
    for name, one in asked.items():
        check_named_genes(with_genes_of(one, fit_spec).genes, spots.genes, "genes to model")
        _check_unseen(name, one, spots)
    sets = GeneSets(spots, wanted, n_genes=n_score_genes, genes=genes if n_genes is None else None)
    if tuning is None:
        features, made_by = features_to_fit(sources, encoders=chosen, fields=fields, slots=slots)
    else:
        features, made_by = np.zeros((len(spots), 0), dtype=np.float32), tuning.untuned
    colors = color_features(sources, features, made_by) if any(uses_color.values()) else (features, made_by)
    fits: list[list[Fit]] = []
    sets_of_folds: list[dict[str, list[str]]] = []
    for train_rows, test_rows in folds:
        sets_of_folds.append(sets.choose(train_rows))
        in_fold = replace(fit_spec, genes=[*fit_spec.genes, *sets.to_model(sets_of_folds[-1])])
        fits.append([])
        for name, (method, options) in compared.items():
            used = colors if uses_color[name] else (features, made_by)
            fits[-1].append(Fit(name, method, replace(in_fold, options=options), spots, *used, train_rows, test_rows))
    with tempfile.TemporaryDirectory(prefix="stcontrast-tuned-") as folder:
        if tuning is not None:
            fits = with_tuned_features(fits, tuning, sources, uses_color, Path(folder))
        every = [fit for fits_of_fold in fits for fit in fits_of_fold]
        with on_cluster():
            predicted, failures = _fit_all(every, n_jobs=n_jobs, store=None if path is None else FitStore(path, every))
    rows, tables = [], []
    for fits_of_fold, sets_of_fold in zip(fits, sets_of_folds, strict=True):
        genes_to_score = list(chain.from_iterable(sets_of_fold.values()))
        here = {fit.name: predicted[fit] for fit in fits_of_fold if fit in predicted}
        more_rows, more_tables = score_fold(spots, fits_of_fold[0].test_rows, genes_to_score, here)
        rows += more_rows
        tables += more_tables
    predictions = prediction_table(every, predicted)
    return CrossValidation(
        methods=list(compared),
        scores=pd.DataFrame(rows, columns=list(SCORES)),
        classes=pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(CLASSES)),
        failures=failures,
        _predictions=predictions,
        _sets=tuple((fits[i][0].donors, sets_of_fold) for i, sets_of_fold in enumerate(sets_of_folds)),
        _measured=None if predictions is None else measured_values(every[0].spots, every, predicted, predictions),
        _outside=out_of_distribution(every, predicted),
    )


def _check_unseen(name: str, method: Method, spots: Spots) -> None:
    """Raise where a part that the method brings was trained on donors that are held out."""
    if not method.batches_seen:
        return
    if seen := method.seen_among(spots):
        msg = (
            f"The gene space given to {name!r} was trained on {', '.join(seen[:5])}, which would be held out here: the "
            'scores would rest on counts that it has seen. Use gene_space="vae", which is trained anew without the '
            "held-out donors, or a model of other donors."
        )
        raise ValueError(msg)
    logger.warning(
        "The gene space given to %r was trained elsewhere, on %s. The scores are those of unseen donors only if none of "
        "them is here under another name.", name, ", ".join(sorted(method.batches_seen)[:5]),
    )  # fmt: skip


def _fit_all(
    fits: Sequence[Fit], *, n_jobs: int | None, store: FitStore | None
) -> tuple[dict[Fit, OutOfFold], pd.DataFrame]:
    """Predictions of the fits that succeed, and a table of those that fail."""
    read = {} if store is None else {fit: store.read(fit) for fit in fits}
    predicted = {fit: out_of_fold for fit, out_of_fold in read.items() if out_of_fold is not None}
    if store is not None and predicted:
        logger.info("%d of %d fits are read from %s.", len(predicted), len(fits), store.directory)
    waiting = [fit for fit in fits if fit not in predicted]
    n_processes = count_processes(n_jobs, waiting)
    if waiting and n_processes > 1:
        logger.info("%d fits in %d processes.", len(waiting), n_processes)
    failed: dict[Fit, Exception] = {}
    pace = Pace(waiting, n_processes)
    with stage("fits", total=len(fits), initial=len(predicted), unit="fits", remaining=pace.remaining) as bar:

        def begin(fit: Fit) -> None:
            pace.begin(fit)
            bar.say(pace.running())

        for fit, outcome in run_fits(waiting, n_processes, on_start=begin):
            seconds = pace.end(fit)
            bar.say(pace.running())
            if isinstance(outcome, Exception):
                logger.error(
                    "%s failed with %s held out: %s", fit.name, ", ".join(fit.donors), outcome, exc_info=outcome
                )
                failed[fit] = outcome
            else:
                predicted[fit] = outcome
                if store is not None:
                    store.write(fit, outcome)
            bar.update()
            left = pace.remaining()
            logger.info(
                "Fit %d of %d: %s without %s took %s%s.", bar.n, len(fits), fit.name, ", ".join(fit.donors),
                duration(seconds), "" if left is None else f"; about {duration(left)} left",
            )  # fmt: skip
    if not predicted:
        raise next(failed[fit] for fit in fits if fit in failed)
    rows = [(fit.name, ", ".join(fit.donors), f"{type(error).__name__}: {error}") for fit, error in failed.items()]
    return predicted, pd.DataFrame(rows, columns=["method", "donors", "error"])


def _compared(methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Method and options of each row of the comparison."""
    given = methods if isinstance(methods, Mapping) else {name: {} for name in methods}
    return {
        name: (str(options.get("method", name)), {k: v for k, v in options.items() if k != "method"})
        for name, options in given.items()
    }


def _donor_folds(spots: Spots, n_folds: int | None) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    from sklearn.model_selection import GroupKFold

    donors = np.unique(spots.donor)
    if len(donors) < 2:
        msg = (
            f"Only one donor, {str(donors[0])!r}: a held-out slide or part of the same donor shares its biology and its "
            "batch, and says nothing about a new donor. At least two donors are needed; five are better."
        )
        raise ValueError(msg)
    n_folds = len(donors) if n_folds is None else n_folds
    if not 2 <= n_folds <= len(donors):
        msg = f"`n_folds` must lie between 2 and the number of donors, {len(donors)}; found {n_folds}."
        raise ValueError(msg)
    useful = spots.measured | (spots.label >= 0)
    if len(np.unique(spots.donor[useful])) < 2:
        msg = f"Only one donor has counts or labels, {np.unique(spots.donor[useful]).tolist()}: two are needed."
        raise ValueError(msg)
    for train_rows, test_rows in GroupKFold(n_splits=n_folds).split(spots.donor, groups=spots.donor):
        if useful[train_rows].any() and useful[test_rows].any():
            yield spots.in_order(train_rows), test_rows

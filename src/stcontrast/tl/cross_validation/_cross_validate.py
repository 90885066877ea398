"""`cross_validate`: leave donors out, and score beside the baselines."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from sklearn.model_selection import GroupKFold

from stcontrast._data.gather import gather
from stcontrast._keys import IMAGE_FEATURES
from stcontrast._progress import progress
from stcontrast._reading import Keys, check_images, resolve_all
from stcontrast.fitted._fit import FitSpec, check_genes
from stcontrast.methods._base import get_method
from stcontrast.pp._encoders import resolve_encoder
from stcontrast.pp._features import parse_fields
from stcontrast.tl._features import color_features, features_to_fit
from stcontrast.tl._tune import Tuning, check_image_tower
from stcontrast.tl.cross_validation._gene_sets import HIGHLY_VARIABLE, GeneSets, parse_gene_sets
from stcontrast.tl.cross_validation._jobs import Job, Material
from stcontrast.tl.cross_validation._pool import check_n_jobs, count_processes, run_jobs
from stcontrast.tl.cross_validation._result import CrossValidation
from stcontrast.tl.cross_validation._scoring import HeldOut
from stcontrast.tl.cross_validation._store import Store, check_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._data.design import Standardize
    from stcontrast._data.spots import Spots
    from stcontrast._reading import Sections
    from stcontrast.pp._encoders import Encoder
    from stcontrast.tl._tune import ImageTowerKind
    from stcontrast.tl.cross_validation._jobs import Fitted

__all__ = ["cross_validate"]

logger = logging.getLogger(__name__)

METHODS: Final = ("stcontrast", "ridge", "color", "mean")


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
    encoder: str | Encoder | Callable[[NDArray[np.uint8]], Any] | None = None,
    field_um: float | Sequence[float] | None = None,
    n_genes: int = 1000,
    genes: Sequence[str] | None = None,
    n_neighbors: int | None = None,
    standardize: Standardize = "slide",
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
    """Fit without a donor, predict it from its H&E, score; donor by donor, for every method on the same features.

    Nothing that is fitted sees the held-out donor: genes (those modelled and those scored), scalers, VAE, network,
    penalties, stopping and weights are all chosen on the other donors. Image features come from a frozen
    encoder, or from one that is fine-tuned anew on the other donors.

    Parameters
    ----------
    data
        One object or a list of them, as for :func:`fit`.
    donor_key
        Column of `obs` with patient or animal; `batch_key` by default.
    batch_key
        Column that the gene model is blind to; `donor_key` by default.
    label_key
        Column with the annotated subtype; without it only expression is scored.
    methods
        Methods to compare; the differences in the summary are to ``"ridge"`` if it is among them. A mapping gives
        each row's name its options, and under ``"method"`` the method where it differs from the name:
        ``{"ridge": {}, "nh2st (code)": {"method": "nh2st", "variant": "code"}}``.
    n_folds
        Folds of donors; leave one donor out by default.
    n_score_genes
        Genes of a set that is chosen, at most.
    gene_sets
        Genes to score, chosen on the training spots of each fold. ``"highly_variable"``: the most variable well-expressed
        ones, as far as they are modelled; ``"highly_expressed"``: those with the highest mean log expression;
        ``"spatially_variable"``: the well-expressed ones with the highest mean Moran's I over 6 nearest spots, 0 where
        a gene is constant on a slide. Slides count alike. A mapping gives genes of your own:
        ``{"highly_variable": None, "markers": ["ERBB2", "CD3E"]}``. Genes of any but the first kind are modelled too
        where they are not yet. All sets are scored; ``summary()`` takes one of them. With `genes`, the first set is
        ``"genes"``, all of these, and the others are chosen out of it.
    encoder, field_um, n_genes, genes, n_neighbors, standardize, layer, complete, seed
        As in :func:`fit`.
    um_per_px, spot_diameter_um, table_key, image_key, library_key
        As in :func:`stcontrast.pp.crops`.
    image_tower, tower_options
        As in :func:`fit`. With ``"finetune"`` every fold of donors has towers of its own, which all methods share; they
        are trained here, one after another, before the fits. With `directory` their checkpoints are kept in its folder
        ``towers``, unless ``checkpoint_dir`` names another.
    n_jobs
        Processes to fit in, each on one thread; the numbers do not depend on it. 1: this one. By default as many as
        there are fits, cores, and shares of the free memory (1.5 GiB, and six times features and expression); 1 where
        spots × (features + genes) stay below a million, as a process takes seconds to start. If a process dies, its fit
        is repeated alone, and is a failure if it dies again.
    directory
        Folder for the predictions of every finished fit, under a hash of all that they depend on: data, held-out
        donors, method, options, seed, version of the package, code of a method of your own. A repeated call fits only
        what is not there yet.

    Returns
    -------
    The result: ``scores`` (tidy), ``summary()``, ``gene_sets``, ``predictions``, ``confusion()``, ``failures``. A fit
    that fails is logged and noted there, and the rest go on; it is raised only if none succeeds. ``obsm["X_image"]`` is
    written where it was absent.

    Raises
    ------
    ValueError
        If there is one donor only: a held-out part of a donor says nothing about the next donor. If a gene set is
        unknown.
    KeyError
        If a column or a gene is absent.
    FileExistsError
        If `directory` is a file.

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
    check_n_jobs(n_jobs)
    path = None if directory is None else check_directory(directory)
    wanted = parse_gene_sets(gene_sets, genes=genes)
    fit_spec = FitSpec(
        n_genes=n_genes, genes=genes, n_neighbors=n_neighbors, standardize=standardize, seed=seed, complete=complete
    )
    compared = _compared(methods)
    wants_color = [get_method(item.method, options=item.options).uses_color for item in compared]
    fields = None if field_um is None else parse_fields(field_um)
    tuning = None
    if check_image_tower(image_tower, tower_options, [item.method for item in compared]):
        tuning = Tuning.of(encoder, fields, tower_options)
        if path is not None and tuning.options.checkpoint_dir is None:
            tuning = replace(tuning, options=replace(tuning.options, checkpoint_dir=path / "towers"))
    chosen = None if encoder is None or tuning is not None else resolve_encoder(encoder)
    sources = resolve_all(data, keys)
    if tuning is None:
        check_images(sources, obsm_key=IMAGE_FEATURES)
    else:
        tuning.check_sources(sources)
    inputs = gather(sources, keys)
    folds = list(_donor_folds(inputs, n_folds))
    if not folds:
        msg = f"All donors with counts or labels fall into one of {n_folds} folds. Leave out `n_folds`, or give more."
        raise ValueError(msg)
    check_genes(inputs, genes)
    sets = GeneSets(inputs, wanted, n_genes=n_score_genes, genes=genes)
    if tuning is None:
        features, record = features_to_fit(sources, encoder=chosen, fields=fields)
    else:
        features, record = np.zeros((len(inputs), 0), dtype=np.float32), tuning.untuned
    color, color_record = color_features(sources, features, record) if any(wants_color) else (None, None)
    material = Material(inputs, features, record, color, color_record)
    result = CrossValidation.empty(inputs, [item.name for item in compared])
    jobs: list[Job] = []
    fit_specs = []
    for train_rows, test_rows in folds:
        donors = sorted(set(inputs.donor[test_rows].tolist()))
        of_fold = sets.choose(train_rows)
        result.choose(donors, of_fold)
        in_fold = replace(fit_spec, more_genes=sets.to_model(of_fold))
        fit_specs.append(in_fold)
        jobs += [
            Job(item.name, item.method, replace(in_fold, options=item.options), of_color, train_rows, test_rows, donors)
            for item, of_color in zip(compared, wants_color, strict=True)
        ]
    with tempfile.TemporaryDirectory(prefix="stcontrast-tuned-") as folder:
        if tuning is not None:
            jobs = _tuned(jobs, tuning, sources, inputs, fit_specs, Path(folder))
            # what the memory of a process is reckoned by
            material = replace(material, features=next(job.tuned.features for job in jobs if job.tuned is not None))
        fitted = _fit_all(jobs, material, result, n_jobs=n_jobs, store=None if path is None else Store(path, material))
    for i, (_, test_rows) in enumerate(folds):
        here = range(i * len(compared), (i + 1) * len(compared))
        scored = result.scored_genes(jobs[here[0]].donors)
        held_out = HeldOut(inputs, test_rows, scored)
        held_out.score_ceiling(result)
        for name, found in [(jobs[k].name, fitted[k]) for k in here if k in fitted]:
            if found.expression is not None:
                result.keep(name, found.genes, test_rows, found.expression)
                held_out.score_expression(result, name, found.genes, found.expression, half_width=found.half_width)
            if found.image is not None and found.gene is not None:
                held_out.score_embedding(result, name, found.image, found.gene)
            if found.proba is not None:
                held_out.score_classes(result, name, found.classes, found.proba)
    return result


def _tuned(  # noqa: PLR0917
    jobs: list[Job],
    tuning: Tuning,
    sources: Sequence[Sections],
    inputs: Spots,
    fit_specs: Sequence[FitSpec],
    folder: Path,
) -> list[Job]:
    """The same fits on features of encoders that were tuned without their held-out donors."""
    found: list[Job] = []
    n_methods = len(jobs) // len(fit_specs)
    with tuning.cut(sources) as store:
        for i, fit_spec in enumerate(fit_specs):
            of_fold = jobs[i * n_methods : (i + 1) * n_methods]
            logger.info("Tuning without %s.", ", ".join(of_fold[0].donors))
            features, _ = tuning.run(store, inputs, of_fold[0].train_rows, fit_spec, name=f"without{i}")
            shared = features.in_folder(folder / str(i))
            found += [job if job.uses_color else replace(job, tuned=shared) for job in of_fold]
    return found


def _fit_all(
    jobs: Sequence[Job], material: Material, result: CrossValidation, *, n_jobs: int | None, store: Store | None
) -> dict[int, Fitted]:
    """Predictions of every fit that succeeds, by its number; those that do not are noted in the result."""
    read = {} if store is None else {i: store.read(job) for i, job in enumerate(jobs)}
    fitted = {i: found for i, found in read.items() if found is not None}
    if store is not None and fitted:
        logger.info("%d of %d fits are read from %s.", len(fitted), len(jobs), store.directory)
    waiting = {i: job for i, job in enumerate(jobs) if i not in fitted}
    n_genes = max(_n_modelled(job, material.inputs) for job in jobs)
    n_processes = count_processes(n_jobs, n_fits=len(waiting), material=material, n_genes=n_genes)
    if waiting and n_processes > 1:
        logger.info("%d fits in %d processes.", len(waiting), n_processes)
    failed: dict[int, Exception] = {}
    with progress(total=len(jobs), description="cross-validation", unit="fit") as bar:
        bar.update(len(fitted))
        for i, outcome in run_jobs(waiting, material, n_processes):
            if isinstance(outcome, Exception):
                failed[i] = outcome
                result.fail(jobs[i].name, jobs[i].donors, outcome)
            else:
                fitted[i] = outcome
                if store is not None:
                    store.write(jobs[i], outcome)
            bar.update()
    if not fitted:
        raise failed[min(failed)]
    return fitted


def _n_modelled(job: Job, inputs: Spots) -> int:
    fit_spec = job.fit_spec
    n_chosen = fit_spec.n_genes if fit_spec.genes is None else len(fit_spec.genes)
    return min(n_chosen + len(fit_spec.more_genes), len(inputs.genes))


class _Compared(NamedTuple):
    name: str
    method: str
    options: dict[str, Any]


def _compared(methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> list[_Compared]:
    if not methods:
        msg = "No methods to compare: an empty list was given."
        raise ValueError(msg)
    given = methods if isinstance(methods, Mapping) else {name: {} for name in methods}
    return [
        _Compared(name, str(options.get("method", name)), {k: v for k, v in options.items() if k != "method"})
        for name, options in given.items()
    ]


def _donor_folds(inputs: Spots, n_folds: int | None) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    donors = np.unique(inputs.donor)
    if len(donors) < 2:
        msg = (
            f"Only one donor, {str(donors[0])!r}: a held-out slide or part of the same donor shares its biology and its "
            "batch, and would say nothing about a donor never seen. Two donors are needed, better five."
        )
        raise ValueError(msg)
    n_folds = len(donors) if n_folds is None else n_folds
    if not 2 <= n_folds <= len(donors):
        msg = f"`n_folds` must lie between 2 and the number of donors, {len(donors)}; found {n_folds}."
        raise ValueError(msg)
    useful = inputs.measured | (inputs.label >= 0)
    if len(np.unique(inputs.donor[useful])) < 2:
        msg = f"Only one donor has counts or labels, {np.unique(inputs.donor[useful]).tolist()}: two are needed."
        raise ValueError(msg)
    for train_rows, test_rows in GroupKFold(n_splits=n_folds).split(inputs.donor, groups=inputs.donor):
        if useful[train_rows].any() and useful[test_rows].any():
            yield train_rows, test_rows

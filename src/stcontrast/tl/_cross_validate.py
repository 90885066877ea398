"""`cross_validate`: leave donors out, and score beside the baselines."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from sklearn.model_selection import GroupKFold

from stcontrast._keys import IMAGE_FEATURES
from stcontrast._progress import progress
from stcontrast._settings import settings
from stcontrast.methods._method import get_method
from stcontrast.pp._encoders import resolve_encoder
from stcontrast.pp._genes import choose_genes
from stcontrast.pp._image_features import parse_fields
from stcontrast.tl._cv_result import CrossValidation
from stcontrast.tl._features import color_features, features_to_fit
from stcontrast.tl._inputs import Keys, check_images, gather, resolve_sources
from stcontrast.tl._scoring import HeldOut
from stcontrast.tl._training import Recipe, check_genes, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast.nn._design import Standardize
    from stcontrast.pp._encoders import Encoder
    from stcontrast.tl._inputs import Inputs

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
    seed: int = 0,
) -> CrossValidation:
    """Fit without a donor, predict it from its H&E, score; donor by donor, for every method on the same features.

    Nothing that is fitted sees the held-out donor: genes (those modelled and those scored), scalers, VAE, network,
    penalties, stopping and weights are all chosen on the other donors. Image features come from a frozen encoder.

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
        Genes to score: the most variable well-expressed ones on the training slides of each fold, out of those modelled.
    encoder, field_um, n_genes, genes, n_neighbors, standardize, layer, complete, seed
        As in :func:`fit`.
    um_per_px, spot_diameter_um, table_key, image_key, library_key
        As in :func:`stcontrast.pp.crops`.

    Returns
    -------
    The result: ``scores`` (tidy), ``summary()``, ``predictions``, ``confusion()``, ``failures``. A fit that fails is
    logged and noted there, and the rest go on; it is raised only if none succeeds. ``obsm["X_image"]`` is written
    where it was absent.

    Raises
    ------
    ValueError
        If there is one donor only: a held-out part of a donor says nothing about the next donor.
    KeyError
        If a column is absent.

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
        table_key=table_key, image_key=image_key, library_key=library_key, um_per_px=um_per_px,
        spot_diameter_um=spot_diameter_um,
    )  # fmt: skip
    if keys.donor_key is None:
        msg = "`donor_key` is needed: the column of `obs` that names patient or animal, the unit that is held out."
        raise ValueError(msg)
    recipe = Recipe(
        n_genes=n_genes, genes=genes, n_neighbors=n_neighbors, standardize=standardize, seed=seed, complete=complete
    )
    compared = _compared(methods)
    wants_color = [get_method(item.method, options=item.options).uses_color for item in compared]
    fields = None if field_um is None else parse_fields(field_um)
    chosen = None if encoder is None else resolve_encoder(encoder)
    sources = resolve_sources(data, keys)
    check_images(sources, obsm_key=IMAGE_FEATURES)
    inputs = gather(sources, keys)
    folds = list(_donor_folds(inputs, n_folds))
    check_genes(inputs, genes)
    features, record = features_to_fit(sources, encoder=chosen, fields=fields)
    color, color_record = None, record
    if any(wants_color):
        color, color_record = color_features(sources, features, record)
    result = CrossValidation.empty(inputs, [item.name for item in compared])
    failed: list[Exception] = []
    with progress(total=len(folds) * len(compared), description="cross-validation", unit="fit") as bar:
        for train_rows, test_rows in folds:
            held_out = HeldOut(inputs, test_rows, _score_genes(inputs, train_rows, n_score_genes, genes))
            held_out.score_ceiling(result)
            for item, of_color in zip(compared, wants_color, strict=True):
                used, made_by = (color, color_record) if of_color and color is not None else (features, record)
                try:
                    with settings.override(progress=False):
                        of_method = replace(recipe, options=item.options)
                        prepared = prepare(
                            inputs, used, train_rows, method=item.method, recipe=of_method, record=made_by
                        )
                        model = prepared.train()
                    prediction = model.predict(
                        used[test_rows], slide=inputs.slide[test_rows], xy=inputs.xy[test_rows],
                        depth=inputs.total[test_rows],
                    )  # fmt: skip
                # whatever it is: the hours that the other folds took are kept
                except Exception as error:  # noqa: BLE001
                    failed.append(error)
                    result.fail(item.name, sorted(set(inputs.donor[test_rows].tolist())), error)
                    bar.update()
                    continue
                if prediction.expression is not None:
                    result.keep(item.name, model.genes, test_rows, prediction.expression)
                    held_out.score_expression(result, item.name, model.genes, prediction.expression)
                if prediction.proba is not None:
                    held_out.score_classes(result, item.name, model.classes, prediction.proba)
                bar.update()
    if len(failed) == len(folds) * len(compared):
        raise failed[0]
    return result


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


def _donor_folds(inputs: Inputs, n_folds: int | None) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
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
    useful = inputs.measured | np.array([value is not None for value in inputs.label])
    if len(np.unique(inputs.donor[useful])) < 2:
        msg = f"Only one donor has counts or labels, {np.unique(inputs.donor[useful]).tolist()}: two are needed."
        raise ValueError(msg)
    for train_rows, test_rows in GroupKFold(n_splits=n_folds).split(inputs.donor, groups=inputs.donor):
        if useful[train_rows].any() and useful[test_rows].any():
            yield train_rows, test_rows


def _score_genes(inputs: Inputs, rows: NDArray[np.intp], n_score_genes: int, genes: Sequence[str] | None) -> list[str]:
    measured = rows[inputs.measured[rows]]
    if len(measured) == 0:
        return []
    if genes is not None:
        return list(genes)
    columns = choose_genes(
        inputs.counts[measured], inputs.total[measured], inputs.slide[measured], n_genes=n_score_genes
    )
    return [inputs.genes[i] for i in columns]

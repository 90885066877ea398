"""`predict_expression`: predict expression from H&E alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stcontrast._arguments import checked, one_of
from stcontrast._files import output_path
from stcontrast._keys import PREDICTION_TABLE
from stcontrast._progress import stage
from stcontrast._reading import Keys, resolve_all
from stcontrast.fitted import as_model
from stcontrast.tl._features import features_for, plan_features, seen_by, with_recorded_scale
from stcontrast.tl._predict_to_store import predict_to_store
from stcontrast.tl._write import (
    check_donor_key,
    check_prediction_slot,
    prediction_table,
    provenance_of,
    warn_of_intervals,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from stcontrast._reading import Sections
    from stcontrast.fitted import Predictor, StandardizeBy
    from stcontrast.pp._encoders import AnyEncoder

__all__ = ["predict_expression"]


@checked(standardize=one_of("slide", "training"))
@stage("predict_expression", whole=True)
def predict_expression(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    model: Predictor | str | PathLike[str],
    *,
    key_added: str = PREDICTION_TABLE,
    donor_key: str | None = None,
    encoder: AnyEncoder | Sequence[AnyEncoder] | None = None,
    standardize: StandardizeBy = "slide",
    um_per_px: float | Mapping[str, float] | None = None,
    spot_diameter_um: float | None = None,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_key: str | None = None,
    store: str | PathLike[str] | None = None,
) -> AnnData | list[AnnData] | None:
    """Predict the expression of every spot from its H&E.

    The slides need an image and spots. Counts are not used, except by the oracle ``"depth"``, which needs them in `X`.
    Image features are computed with the encoders of the model, unless matching features are in the slots of `obsm`
    that the model was trained on (``"X_image"`` by default).

    Parameters
    ----------
    data
        One object or a list of them; SpatialData whose table annotates the spots (it may have no genes), or AnnData.
    model
        From :func:`fit` or :func:`stcontrast.models.load`, or the folder that the model was saved to.
    key_added
        Name of the table that is added to a SpatialData.
    donor_key
        Column of `obs` with the donor, to record whether the model was trained on it. It is copied into the
        prediction.
    encoder
        Only for a model that was trained with a callable, because a callable is not saved with the model. For a model
        of several encoders, give all of them in a list, as in training.
    standardize
        How image features are standardised. ``"slide"``: with mean and deviation of the slide itself, which removes
        differences in stain and scanner. Give the whole slide. ``"training"``: with those of the training slides, for
        a part of a slide, a few spots or one tissue. The stain must then be similar to that of the training slides.
        Has no effect on a model that was trained with ``standardize="none"``.
    um_per_px, spot_diameter_um, table_key, image_key, library_key
        As in :func:`stcontrast.pp.crops`.
    store
        Path of a zarr store to which the prediction is written step by step, for more spots than fit in memory; for
        one object at a time. The values stay on disk and are read lazily. Newly computed image features are not kept.
        Unfinished work is in ``<store>.partial``, and the same call continues it after an interruption.

    Returns
    -------
    For one AnnData the prediction; for a list, the list of predictions of every AnnData in it, in order. `None` if all
    are SpatialData: then the prediction is added as a table `key_added` that annotates the same shapes. The prediction
    holds ``X`` = log(1 + counts per 10 000), float32; ``layers["lower"]``, ``layers["upper"]`` = 90 % interval, NaN on
    slides of other donors if the model was trained on one donor; ``obs``: the keys, the donor,
    ``stc_in_distribution``; ``obsm["spatial"]`` in pixels; ``var["stc_held_out_r"]``: correlation of each gene on
    held-out training groups; ``varm["stc_spot_errors"]`` and ``varm["stc_slide_errors"]``: how the errors of genes are
    correlated, for :func:`score_genes`; ``uns["stcontrast"]["prediction"]``: units, model, and for each slide whether
    it is in-sample (also other spots of a training slide), of a donor that the model knows, or out-of-donor. Newly
    computed image features are kept if their slot was empty.

    Raises
    ------
    FileExistsError
        If `store` exists.
    FileNotFoundError
        If there is no model in the folder.
    KeyError
        If a named column, table, image or slide is absent. The message lists those that exist.
    ValueError
        If the model has no genes, `key_added` holds other data, or an image cannot be used. All are raised before any
        work is done.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", method="ridge")
    >>> new = stc.datasets.toy(n_donors=1, n_spots=40, n_genes=30, seed=1)
    >>> stc.tl.predict_expression(new, model)
    >>> new["stc_pred"].shape
    (40, 30)
    """
    model = as_model(model)
    model.require_expression()
    keys = Keys(
        table_key=table_key, image_key=image_key, slide_key=library_key, um_per_px=um_per_px,
        spot_diameter_um=spot_diameter_um,
    )  # fmt: skip
    sources = resolve_all(data, keys)
    for source in sources:
        check_prediction_slot(source, key_added)
    check_donor_key(sources, donor_key)
    path = None if store is None else _check_store(store, sources, model)
    planned = plan_features(sources, model, encoder)
    returned: list[AnnData] = []
    for item, blocks in zip(sources, planned, strict=True):
        source = item
        if path is not None:
            for record in model.spec["image_features"]:
                source = with_recorded_scale(source, record["slot"])
            table = predict_to_store(source, model, path, blocks=blocks, donor_key=donor_key, standardize=standardize)
            _hand_over(source, key_added, table, returned)
            continue
        features = features_for(source, model, blocks)
        prediction = model.predict(features, standardize=standardize, **seen_by(source, model))
        provenance = provenance_of(source, model, features, donor_key=donor_key)
        warn_of_intervals(model, provenance)
        rows = np.arange(source.table.n_obs)
        table = prediction_table(source, model, prediction, rows, provenance=provenance, donor_key=donor_key)
        _hand_over(source, key_added, table, returned)
    if not returned:
        return None
    return returned if isinstance(data, Sequence) else returned[0]


def _hand_over(source: Sections, key_added: str, table: AnnData, returned: list[AnnData]) -> None:
    if source.is_spatialdata:
        source.write_table(key_added, table)
    else:
        returned.append(table)


def _check_store(store: str | PathLike[str], sources: Sequence[Sections], model: Predictor) -> Path:
    path = output_path(store, "store", endings=(".zarr",), overwrite=None, what="zarr store")
    if len(sources) > 1:
        msg = f"`store` takes the prediction of one object, found {len(sources)}: predict them one by one."
        raise ValueError(msg)
    if model.method.oracle:
        msg = f"The method {model.method.name!r} is an oracle: it is not predicted into a store."
        raise ValueError(msg)
    return path

"""`predict_expression`: expression from H&E alone."""

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

    The slides need an image and spots; counts, if there are any, are not looked at (save by the oracle ``"depth"``,
    which needs them in `X`). Image features are made with the model's own encoders unless fitting ones are in the slots
    of `obsm` that it was trained on, ``"X_image"`` by default.

    Parameters
    ----------
    data
        One object or a list of them; SpatialData whose table annotates the spots (it may have no genes), or AnnData.
    model
        From :func:`fit` or :func:`stcontrast.models.load`, or the folder that it was saved to.
    key_added
        Name of the table that is added to a SpatialData.
    donor_key
        Column of `obs` with the donor, to say whether the model has met it; carried over into the prediction.
    encoder
        Only for a model that was trained with a callable, which is not saved with it. For a model of several encoders,
        all of them in a list, as they were for training.
    standardize
        By whose mean and deviation image features are standardised: ``"slide"``, those of the slide itself, which takes
        out stain and scanner, and needs the whole slide; or ``"training"``, those of the training slides, for a part of a
        slide, a few spots or one tissue, whose stain has to be like theirs. Without effect on a model that was trained
        with ``standardize="none"``.
    um_per_px, spot_diameter_um, table_key, image_key, library_key
        As in :func:`stcontrast.pp.crops`.
    store
        Path of a zarr store to write the prediction to as it is made, for more spots than memory holds: one object
        at a time. Its numbers stay on disk and are read lazily; image features that have to be made are not kept. Until
        it is finished it lies in ``<store>.partial``, and the same call goes on there after a break.

    Returns
    -------
    For one AnnData the prediction; for a list the list of the predictions of every AnnData in it, in order. `None`
    where all are SpatialData: every SpatialData gets the prediction as a table `key_added` that annotates the same shapes. In it: ``X`` = log(1 + counts per 10 000), float32; ``layers["lower"]``,
    ``layers["upper"]`` = 90 % interval, NaN on slides of other donors where the model was trained on one donor; ``obs``: the keys, the donor, ``stc_in_distribution``; ``obsm["spatial"]`` in
    pixels; ``var["stc_held_out_r"]``: correlation of each gene on held-out training groups; ``varm["stc_spot_errors"]``
    and ``varm["stc_slide_errors"]``: how the errors of genes go together, for :func:`score_genes`;
    ``uns["stcontrast"]["prediction"]``: units, model, and for each slide whether it is in-sample, of a donor that the
    model knows, or out-of-donor. Image features that were made are kept where their slot was free.

    Raises
    ------
    FileExistsError
        If something lies at `store`.
    FileNotFoundError
        If there is no model in the folder.
    KeyError
        If a column, table, image or slide that is named is absent; the message lists what is there.
    ValueError
        If the model has no genes, `key_added` is taken by something else, or an image cannot be used. All before any
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

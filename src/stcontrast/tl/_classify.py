"""`classify`: predict the subtype of every spot from H&E alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from stcontrast._arguments import checked, one_of
from stcontrast._keys import CLASS
from stcontrast._progress import stage
from stcontrast._reading import Keys, resolve_all
from stcontrast._records import write_record
from stcontrast.fitted import as_model
from stcontrast.tl._features import features_for, plan_features, seen_by
from stcontrast.tl._write import check_donor_key, check_slots_ours, provenance_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from anndata import AnnData
    from spatialdata import SpatialData

    from stcontrast.fitted import Predictor, StandardizeBy
    from stcontrast.pp._encoders import AnyEncoder

__all__ = ["classify"]


@checked(standardize=one_of("slide", "training"))
@stage("classify", whole=True)
def classify(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    model: Predictor | str | PathLike[str],
    *,
    key_added: str = CLASS,
    donor_key: str | None = None,
    encoder: AnyEncoder | Sequence[AnyEncoder] | None = None,
    standardize: StandardizeBy = "slide",
    um_per_px: float | Mapping[str, float] | None = None,
    spot_diameter_um: float | None = None,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_key: str | None = None,
) -> None:
    """Predict the tissue subtype of every spot from its H&E.

    Parameters
    ----------
    data
        One object or a list of them; SpatialData whose table annotates the spots (it may have no genes), or AnnData.
    model
        From :func:`fit` with a `label_key`, or :func:`stcontrast.models.load`, or the folder that the model was saved
        to.
    key_added
        Name of the column of classes. An existing column is replaced only if this function wrote it.
    donor_key
        Column of `obs` with the donor, to record whether the model was trained on it.
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

    Returns
    -------
    `None`. Writes to the table: ``obs["stc_class"]`` (categorical), ``obs["stc_class_confidence"]`` (probability of
    that class), ``obsm["stc_class_proba"]`` (n_spots, n_classes), and ``uns["stcontrast"]["classification"]``: classes
    in order, model, and for each slide whether it is in-sample or out-of-donor. With another `key_added`, all names
    start with it, and the record is ``uns["stcontrast"]["classification_<key_added>"]``.

    Raises
    ------
    KeyError
        If a named column, table, image or slide is absent. The message lists those that exist.
    FileNotFoundError
        If there is no model in the folder.
    ValueError
        If the model was trained without labels, `key_added` holds your own data, or an image cannot be used. All are
        raised before any work is done.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", label_key="subtype", method="ridge")
    >>> new = stc.datasets.toy(n_donors=1, n_spots=40, n_genes=30, seed=1)
    >>> stc.tl.classify(new, model)
    >>> list(new["table"].obs["stc_class"].cat.categories)
    ['fat', 'glands', 'stroma', 'tumour']
    """
    model = as_model(model)
    model.require_classes()
    keys = Keys(
        table_key=table_key, image_key=image_key, slide_key=library_key, um_per_px=um_per_px,
        spot_diameter_um=spot_diameter_um,
    )  # fmt: skip
    sources = resolve_all(data, keys)
    check_donor_key(sources, donor_key)
    for source in sources:
        check_slots_ours(
            source.table, "classification", key_added, obs=[key_added, f"{key_added}_confidence"],
            obsm=[f"{key_added}_proba"],
        )  # fmt: skip
    planned = plan_features(sources, model, encoder)
    for source, blocks in zip(sources, planned, strict=True):
        features = features_for(source, model, blocks)
        proba = model.predict_classes(features, standardize=standardize, **seen_by(source, model))
        table = source.table
        codes = proba.argmax(axis=1)
        table.obs[key_added] = pd.Categorical.from_codes(codes, categories=pd.Index(model.classes))
        table.obs[f"{key_added}_confidence"] = proba.max(axis=1)
        table.obsm[f"{key_added}_proba"] = proba
        record = {
            "classes": model.classes,
            "model_id": model.model_id,
            "provenance": provenance_of(source, model, features, donor_key=donor_key),
        }
        write_record(table, "classification", record, key_added)

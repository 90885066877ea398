"""`classify`: the subtype of every spot from H&E alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from stcontrast._data.gather import depth_of
from stcontrast._data.inputs import Keys, resolve_sources
from stcontrast._keys import CLASS, CLASS_CONFIDENCE, CLASS_PROBA, UNS
from stcontrast.pp._encoders.resolve import resolve_encoder
from stcontrast.tl._features import check_features, features_for
from stcontrast.tl._write import check_donor_key, provenance_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast.fitted import Predictor
    from stcontrast.pp._encoders.resolve import Encoder

__all__ = ["classify"]


def classify(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    model: Predictor,
    *,
    donor_key: str | None = None,
    encoder: str | Encoder | Callable[[NDArray[np.uint8]], Any] | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_diameter_um: float | None = None,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_key: str | None = None,
) -> None:
    """Name the tissue subtype of every spot from its H&E.

    Parameters
    ----------
    data
        One object or a list of them; SpatialData whose table annotates the spots (it may have no genes), or AnnData.
    model
        From :func:`fit` with a `label_key`, or :func:`stcontrast.models.load`.
    donor_key
        Column of `obs` with the donor, to say whether the model has met it.
    encoder
        Only for a model that was trained with a callable, which is not saved with it.
    um_per_px, spot_diameter_um, table_key, image_key, library_key
        As in :func:`stcontrast.pp.crops`.

    Returns
    -------
    `None`. Writes to the table: ``obs["stc_class"]`` (categorical), ``obs["stc_class_confidence"]`` (probability of
    that class), ``obsm["stc_class_proba"]`` (n_spots, n_classes), and ``uns["stcontrast"]["classification"]``: classes
    in order, model, and for each slide whether it is in-sample or out-of-donor.

    Raises
    ------
    KeyError
        If a column, table, image or slide that is named is absent; the message lists what is there.
    ValueError
        If the model was trained without labels, or an image cannot be used. All before any work is done.

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
    model.require_classes()
    keys = Keys(
        table_key=table_key, image_key=image_key, slide_key=library_key, um_per_px=um_per_px,
        spot_diameter_um=spot_diameter_um,
    )  # fmt: skip
    sources = resolve_sources(data, keys)
    check_donor_key(sources, donor_key)
    chosen = model.tower if encoder is None else resolve_encoder(encoder)
    check_features(sources, model.spec["image_features"], encoder=chosen)
    for source in sources:
        features = features_for(source, model.spec["image_features"], encoder=chosen)
        slide, xy = source.slide_and_xy()
        depth = depth_of(source) if model.method.oracle else None
        proba = model.predict(features, slide=slide, xy=xy, depth=depth).proba
        table = source.table
        codes = proba.argmax(axis=1)
        table.obs[CLASS] = pd.Categorical.from_codes(codes, categories=pd.Index(model.classes))
        table.obs[CLASS_CONFIDENCE] = proba.max(axis=1)
        table.obsm[CLASS_PROBA] = proba
        table.uns.setdefault(UNS, {})["classification"] = {
            "classes": model.classes,
            "model_id": model.model_id,
            "provenance": provenance_of(source, model, features, donor_key=donor_key),
        }

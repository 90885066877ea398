"""`find_similar`: find the measured training spots that are nearest to a spot in the joint embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from stcontrast._arguments import checked, one_of
from stcontrast._keys import IMAGE_EMBEDDING
from stcontrast._progress import stage
from stcontrast._reading import Keys, resolve_all
from stcontrast.fitted import as_model
from stcontrast.tl._embed import embeddings_of
from stcontrast.tl._features import features_for, plan_features

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import Sections
    from stcontrast.fitted import Predictor, StandardizeBy
    from stcontrast.pp._encoders import AnyEncoder

__all__ = ["find_similar"]


@checked(standardize=one_of("slide", "training"), by=one_of("image", "gene"))
@stage("find_similar", whole=True)
def find_similar(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    model: Predictor | str | PathLike[str],
    *,
    spots: ArrayLike | None = None,
    k: int = 20,
    by: Literal["image", "gene"] = "image",
    encoder: AnyEncoder | Sequence[AnyEncoder] | None = None,
    standardize: StandardizeBy = "slide",
    um_per_px: float | Mapping[str, float] | None = None,
    spot_diameter_um: float | None = None,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_key: str | None = None,
) -> pd.DataFrame:
    """Find the measured training spots that look similar to a spot, or that express what its image suggests.

    The query is always the image: an H&E slide is enough, and counts are not used. Its image embedding is compared
    with the embeddings of the training spots with counts. If there are more than 20 000 of these, the model keeps a
    random 20 000. A spot that the model was trained on finds itself.

    Parameters
    ----------
    data
        One object or a list of them; SpatialData whose table annotates the spots (it may have no genes), or AnnData.
        Give whole slides, because a spot is compared with its slide. To search for some spots, name them in `spots`.
    model
        From :func:`fit` with counts and the method ``"stcontrast"``, or :func:`stcontrast.models.load`, or the folder
        that the model was saved to.
    spots
        Spots to search for, rows of the table: names (`obs_names`), a boolean mask, or positions. All by default. Only
        for one object.
    k
        Number of training spots to find for each spot.
    by
        ``"image"``: training spots with the nearest image embedding. These are the measured spots that look most
        similar. ``"gene"``: training spots with the nearest gene embedding. These are the measured spots that express
        what the image suggests.
    encoder
        Only for a model that was trained with a callable, because a callable is not saved with the model.
    standardize
        How image features are standardised. ``"slide"``: with mean and deviation of the slide itself, which removes
        differences in stain and scanner. Give the whole slide. ``"training"``: with those of the training slides, for
        a part of a slide, a few spots or one tissue. The stain must then be similar to that of the training slides.
        Has no effect on a model that was trained with ``standardize="none"``.
    um_per_px, spot_diameter_um, table_key, image_key, library_key
        As in :func:`stcontrast.pp.crops`.

    Returns
    -------
    A table with one row for every pair of query and match, queries in the order of `spots`, matches most similar
    first: ``query`` and ``query_slide`` (name and slide of the spot), ``match``, ``slide`` and ``donor`` (name, slide
    and donor of the training spot), ``similarity`` (cosine in the joint embedding, from -1 to 1), ``rank`` (from 1).
    Cosines of ``by="image"`` and ``by="gene"`` are not comparable. Nothing is written, except ``obsm["X_image"]`` if
    this slot was empty.

    Raises
    ------
    FileNotFoundError
        If there is no model in the folder.
    IndexError
        If a position in `spots` is not a row of the table.
    KeyError
        If a name in `spots`, or a named table, image or slide, is absent. The message lists those that exist.
    TypeError
        If `spots` holds neither names nor numbers nor a mask.
    ValueError
        If the model keeps no joint embedding, `spots` selects none or does not fit the table, `k` or `by` is out of
        its range, or an image cannot be used. All are raised before any work is done.

    See Also
    --------
    embed : the joint embedding itself.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", options={"max_epochs": 5})
    >>> new = stc.datasets.toy(n_donors=1, n_spots=40, n_genes=30, seed=1)
    >>> found = stc.tl.find_similar(new, model, spots=["donor1_a_3", "donor1_a_7"], k=5)
    >>> found.shape
    (10, 7)
    >>> list(found.columns)
    ['query', 'query_slide', 'match', 'slide', 'donor', 'similarity', 'rank']
    """
    model = as_model(model)
    model.require_embedding(to_search=True)
    keys = Keys(
        table_key=table_key, image_key=image_key, slide_key=library_key, um_per_px=um_per_px,
        spot_diameter_um=spot_diameter_um,
    )  # fmt: skip
    sources = resolve_all(data, keys)
    if spots is not None and len(sources) > 1:
        msg = f"`spots` are rows of one table, found {len(sources)} objects: search one by one, or leave out `spots`."
        raise ValueError(msg)
    queries = [_rows(source.table, spots) for source in sources]
    planned = plan_features(sources, model, encoder)
    parts = []
    for source, blocks, rows in zip(sources, planned, queries, strict=True):
        features = features_for(source, model, blocks)
        image = embeddings_of(source, model, features, among=rows, standardize=standardize)[IMAGE_EMBEDDING]
        found, similarity = model.method.search(image[rows], k=k, by=by)
        parts.append(_matches(source, model, rows, found, similarity))
    matches = pd.concat(parts, ignore_index=True)
    return matches.astype(dict.fromkeys(("query_slide", "slide", "donor"), "category"))


def _matches(
    source: Sections,
    model: Predictor,
    rows: NDArray[np.intp],
    found: NDArray[np.int64],
    similarity: NDArray[np.float32],
) -> pd.DataFrame:
    """The table of matches of some rows, from rows of the bank and cosines (n_queries, k)."""
    n, k = found.shape
    slide = np.array([item.name for item in source.slides])[source.slide_and_xy()[0]]
    donors = np.array(model.spec["donors"])
    return pd.DataFrame(
        {
            "query": np.repeat(source.table.obs_names.to_numpy(dtype=object)[rows], k),
            "query_slide": np.repeat(slide[rows], k),
            "match": model.bank["spot"][found].ravel(),
            "slide": model.bank["slide"][found].ravel(),
            "donor": donors[model.bank["donor"][found]].ravel(),
            "similarity": similarity.ravel(),
            "rank": np.tile(np.arange(1, k + 1), n),
        }
    )


def _rows(table: AnnData, spots: ArrayLike | None) -> NDArray[np.intp]:
    """Rows of a table by names, mask or positions."""
    n = table.n_obs
    if spots is None:
        return np.arange(n)
    asked = np.atleast_1d(np.asarray(spots))
    if asked.dtype == object:
        # a list of strings or booleans that pandas held
        asked = np.asarray(asked.tolist())
    if asked.dtype == bool:
        if asked.shape != (n,):
            msg = f"The mask `spots` has shape {asked.shape}, but the table has {n} spots."
            raise ValueError(msg)
        asked = np.flatnonzero(asked)
    if asked.size == 0 or asked.ndim > 1:
        msg = f"`spots` must select some spots of the table, in one dimension; found shape {asked.shape}."
        raise ValueError(msg)
    if asked.dtype.kind in "iu":
        outside = asked[(asked < 0) | (asked >= n)]
        if outside.size:
            msg = f"`spots` holds the positions {outside[:5].tolist()}, but the table's rows are 0 to {n - 1}."
            raise IndexError(msg)
        return asked.astype(np.intp)
    if asked.dtype.kind not in "UT":
        msg = f"`spots` must be names of spots, a boolean mask or positions; found values of type {asked.dtype}."
        raise TypeError(msg)
    if not table.obs_names.is_unique:
        msg = "The names of the spots are not unique: give `spots` as positions or a mask."
        raise ValueError(msg)
    rows = table.obs_names.get_indexer(pd.Index(asked.tolist()))
    absent = asked[rows < 0]
    if absent.size:
        msg = f"The table has no spots {absent[:5].tolist()}; some that exist: {table.obs_names[:5].tolist()}."
        raise KeyError(msg)
    return rows

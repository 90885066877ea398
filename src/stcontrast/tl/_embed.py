"""`embed`: compute the joint embedding of image and genes for new slides."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stcontrast._arguments import FLAG, checked, one_of
from stcontrast._keys import EMBEDDING, GENE_EMBEDDING, IMAGE_EMBEDDING, IMAGE_FEATURES
from stcontrast._progress import stage
from stcontrast._reading import Keys, raw_counts, resolve_all, shared_genes, why_few_genes
from stcontrast.fitted import as_model
from stcontrast.tl._features import features_for, plan_features
from stcontrast.tl._write import check_donor_key, check_slots_ours, provenance_of, write_embedding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import Sections
    from stcontrast.fitted import Predictor, StandardizeBy
    from stcontrast.pp._encoders import AnyEncoder

__all__ = ["embed", "embeddings_of"]

logger = logging.getLogger(__name__)


@checked(standardize=one_of("slide", "training"), genes=FLAG)
@stage("embed", whole=True)
def embed(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    model: Predictor | str | PathLike[str],
    *,
    genes: bool = True,
    layer: str | None = None,
    key_added: str = EMBEDDING,
    donor_key: str | None = None,
    encoder: AnyEncoder | Sequence[AnyEncoder] | None = None,
    standardize: StandardizeBy = "slide",
    um_per_px: float | Mapping[str, float] | None = None,
    spot_diameter_um: float | None = None,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_key: str | None = None,
) -> None:
    """Embed every spot in the joint embedding of image and genes.

    An H&E slide is enough: the image side needs only image features. If the table has counts, the gene side is
    embedded too, every spot relative to its slide. Nothing is trained, and the result for a slide does not depend on
    other slides. Give whole slides, because spots are compared with their slide.

    Parameters
    ----------
    data
        One object or a list of them; SpatialData whose table annotates the spots (it may have no genes), or AnnData.
    model
        From :func:`fit` with counts and the method ``"stcontrast"`` or a published contrastive method, or
        :func:`stcontrast.models.load`, or the folder that the model was saved to.
    genes
        Embed the gene side of every table that has genes. Such a table must have all genes of the model. With `False`,
        only the image side is embedded and the counts are not read.
    layer
        Layer with raw counts; `X` by default.
    key_added
        Start of the names of the two slots. Existing slots are replaced only if stcontrast wrote them.
    donor_key
        Column of `obs` with the donor, to record whether the model was trained on it.
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
    `None`. Writes to the table: ``obsm["X_stc_image"]``, float32 (n_spots, n_embedding), rows of unit length;
    ``obsm["X_stc_gene"]`` of the same shape if the table has counts, NaN in spots without counts; and
    ``uns["stcontrast"]["embedding"]``: model, method, the slots, and for each slide whether it is in-sample or
    out-of-donor. With another `key_added` the slots are ``"<key_added>_image"`` and ``"<key_added>_gene"``, and the
    record is ``uns["stcontrast"]["embedding_<key_added>"]``. The two slots always belong to the same model: if no gene
    side is computed, an older one of stcontrast is removed.

    Raises
    ------
    FileNotFoundError
        If there is no model in the folder.
    KeyError
        If a named column, layer, table, image or slide is absent. The message lists those that exist.
    ValueError
        If the model has no joint embedding, a table with genes lacks genes of the model, counts are not raw, a slot
        holds your own data, or an image cannot be used. All are raised before any work is done.

    See Also
    --------
    find_similar : training spots that are near in this embedding.
    embed_genes : the latent of the VAE, without an image.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", options={"max_epochs": 5})
    >>> new = stc.datasets.toy(n_donors=1, n_spots=40, n_genes=30, seed=1)
    >>> stc.tl.embed(new, model)
    >>> new["table"].obsm["X_stc_image"].shape, new["table"].obsm["X_stc_gene"].shape
    ((40, 64), (40, 64))
    """
    model = as_model(model)
    model.require_embedding()
    keys = Keys(
        table_key=table_key, image_key=image_key, slide_key=library_key, um_per_px=um_per_px,
        spot_diameter_um=spot_diameter_um,
    )  # fmt: skip
    sources = resolve_all(data, keys)
    check_donor_key(sources, donor_key)
    if f"{key_added}_image" == IMAGE_FEATURES:
        msg = f"`key_added={key_added!r}` would write to `obsm[{IMAGE_FEATURES!r}]`, which is for image features: give another."
        raise ValueError(msg)
    for source in sources:
        check_slots_ours(source.table, "embedding", key_added, obsm=[f"{key_added}_image", f"{key_added}_gene"])
    planned = plan_features(sources, model, encoder)
    # of all objects before the first is embedded: errors come before any work
    counts = [_counts(source.table, model, layer) if genes else None for source in sources]
    for source, blocks, of_source in zip(sources, planned, counts, strict=True):
        features = features_for(source, model, blocks)
        found = embeddings_of(source, model, features, counts=of_source, standardize=standardize)
        provenance = provenance_of(source, model, features, donor_key=donor_key)
        written = write_embedding(source.table, model, found, provenance=provenance, key_added=key_added)
        logger.info("Added obsm %s.", written)


def embeddings_of(
    source: Sections,
    model: Predictor,
    features: NDArray[np.float32],
    *,
    counts: tuple[sparse.csr_matrix, NDArray[np.float64]] | None = None,
    among: NDArray[np.intp] | None = None,
    standardize: StandardizeBy = "slide",
) -> dict[str, NDArray[np.float32]]:
    """Both sides of the joint embedding (n_spots, d), by their default slots; one slide's design at a time.

    Parameters
    ----------
    source, model
        The object and the model.
    features
        Image features of all spots (n_spots, n_features).
    counts
        Raw counts of the model's genes (n_spots, n_genes) and of the full library (n_spots,); `None`: no gene side.
    among
        Only slides that have one of these rows; the rest is NaN.
    standardize
        By whose moments image features are standardised.
    """
    found: dict[str, NDArray[np.float32]] = {}
    for slide in source.slides:
        rows = slide.rows
        if among is not None and not np.isin(rows, among).any():
            continue
        spots = model.unseen_spots(
            features[rows], slide=np.zeros(len(rows), dtype=np.int64), xy=slide.centers, standardize=standardize,
            names=[slide.name],
        )  # fmt: skip
        if counts is not None:
            known = replace(spots, counts=counts[0][rows], depth=counts[1][rows], genes=model.genes)
            spots = known.with_genes(np.arange(len(model.genes)))
        of_slide = model.method.embed(spots)
        for slot in (IMAGE_EMBEDDING, GENE_EMBEDDING):
            if slot in of_slide:
                if slot not in found:
                    shape = (source.table.n_obs, of_slide[slot].shape[1])
                    found[slot] = np.full(shape, np.nan, dtype=np.float32)
                found[slot][rows] = of_slide[slot]
    return found


def _counts(
    table: AnnData, model: Predictor, layer: str | None
) -> tuple[sparse.csr_matrix, NDArray[np.float64]] | None:
    """Raw counts of the model's genes (n_spots, n_genes), and of the full library (n_spots,); `None` without genes."""
    if table.n_vars == 0:
        return None
    column = {gene: i for i, gene in enumerate(shared_genes([table]))}
    absent = [gene for gene in model.genes if gene not in column]
    if absent:
        msg = (
            f"The table lacks {len(absent)} of the {len(model.genes)} genes of the model: {absent[:5]}. "
            f"{why_few_genes(model.genes, table)} `genes=False` embeds the image side only."
        )
        raise ValueError(msg)
    full = raw_counts(table, layer)
    depth = np.asarray(full.sum(axis=1), dtype=np.float64).ravel()
    return sparse.csr_matrix(full[:, [column[gene] for gene in model.genes]]), depth

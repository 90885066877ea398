"""`image_features`: encode crops at several fields of view with a frozen encoder, and cache the result in the table."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._arguments import check_arguments, checked
from stcontrast._cluster import running_client
from stcontrast._keys import IMAGE_FEATURES
from stcontrast._progress import of_part, stage
from stcontrast._reading import obsm_array, require_images, resolve_slides
from stcontrast._records import read_record, write_record
from stcontrast.pp._encoders import resolve_encoders
from stcontrast.pp._features import cluster
from stcontrast.pp._features.encoding import FeatureSpec, encode_centers
from stcontrast.pp._features.evidence import OF_SLIDE, changed_since, evidence_of, is_as_written, warn_of_looks
from stcontrast.pp._stain import resolve_stain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import Sections, Slide
    from stcontrast.pp._encoders import AnyEncoder
    from stcontrast.pp._stain import StainNormalizer

__all__ = [
    "encode_slides",
    "encode_spots",
    "image_features",
    "is_ours",
    "join_records",
    "parse_fields",
    "record_of",
    "split_blocks",
]

logger = logging.getLogger(__name__)

DEFAULT_FIELDS_UM = (100.0, 200.0, 400.0, 800.0)
# what the blocks of a slot do not share
OF_BLOCK: Final = ("encoder", "n_features", "fingerprint", "windows", "spots")
# of these encoders only the name is known: they may have changed
UNKNOWN: Final = ("callable",)


@checked()
@stage("image features", whole=True)
def image_features(  # noqa: PLR0913
    data: SpatialData | AnnData,
    *,
    encoder: AnyEncoder | Sequence[AnyEncoder] = "texture",
    field_um: float | Sequence[float] = DEFAULT_FIELDS_UM,
    weights: str | Path | None = None,
    pretrained: bool = True,
    size_px: int | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_diameter_um: float | None = None,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_key: str | None = None,
    stain: str | StainNormalizer | None = None,
    key_added: str = IMAGE_FEATURES,
    overwrite: bool = False,
) -> None:
    """Encode the H&E around every spot with one or several frozen encoders.

    Each field of view is cut in µm (:func:`crops`), scaled to the input size of the encoder, and encoded. The features
    of all fields are concatenated. Nothing is fitted across slides: the features of a spot depend only on its own
    crops (with `stain`, on its slide). All fields are cut in one pass over the image, while the encoder runs. If a
    ``distributed.Client`` is running, its workers share the work.

    The slot is a cache. If you call the function again, it encodes only slides that have changed. A slide has changed
    if one of these differs: encoder (weights by content), fields, stain normalisation, µm per pixel, positions of
    spots, or image (its size, and its pixels around eight of the spots). Taking a part of the spots, or another order
    of spots, is no change. Delete the slot to encode all slides again. Every function that uses the features later
    makes the same comparison. If a slide has changed, it logs a warning and computes the features again.

    Parameters
    ----------
    data
        SpatialData whose table annotates the spots; or AnnData with scanpy's images in ``uns["spatial"]``.
    encoder
        ``"texture"`` (the default: statistics of colour, stain and texture, without weights), ``"color"`` (the same
        without texture), the name of a timm model, an :class:`Encoder` such as :class:`TimmEncoder`, or any callable
        from uint8 crops (n, size_px, size_px, 3) to features (n, n_features). A list of encoders makes one block of
        features for each, in this order. A model gives all blocks the same weight.
    field_um
        Side of the crops in µm: one or several fields of view.
    weights
        timm: local safetensors or pth file, instead of a download. For weights with another input normalisation, pass
        ``TimmEncoder(name, weights=..., mean=..., std=...)``.
    pretrained
        timm: download the weights. With `False` and no `weights`, the weights are random.
    size_px
        Side of the encoder's input in pixels; the encoder's own by default (callables: 224). With several encoders,
        give `weights`, `pretrained` and `size_px` to the encoder objects in the list.
    um_per_px
        µm per pixel of the image's finest level, a number or a mapping from slide to number; see :func:`crops`.
    spot_diameter_um
        Diameter of a spot in µm, to derive µm per pixel from; see :func:`crops`.
    table_key
        Table that holds the spots; the only one by default.
    image_key
        Image, or a mapping from slide to image; the finest RGB image under the spots by default. AnnData:
        a key of its images, such as ``"hires"``.
    library_key
        AnnData only: column of `obs` that names the slide of a spot.
    stain
        Normalise the stain of every slide before it is encoded: ``"macenko"``, ``"reinhard"`` or a
        :class:`StainNormalizer`. By default the stain is not normalised, because features are later standardised
        within a slide.
    key_added
        Slot of `obsm` to write.
    overwrite
        Replace content of the slot that stcontrast did not write. Features that stcontrast wrote are always replaced.

    Returns
    -------
    `None`. Writes ``obsm[key_added]``, float32 (n_spots, n_features); and ``uns["stcontrast"]["image_features"]``:
    encoder, fields in µm, stain, number of features and version; and for each slide the µm per pixel, and
    `fingerprint`, `windows` and `spots`, which show later whether the slide has changed
    (``uns["stcontrast"]["image_features_<key_added>"]`` where `key_added` is not the default). With several encoders,
    ``blocks`` has encoder, number of features and fingerprints of each encoder, under ``"0"``, ``"1"``, ...

    Raises
    ------
    KeyError
        If a table, image or column is absent.
    ValueError
        If a slide has no image, an image does not lie under its spots, µm per pixel is unknown, a field has less than
        2 pixels or is more than twice as wide as the image, an encoder is named twice, or the slot holds something
        that stcontrast did not write. All are raised before any work is done.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=1, n_spots=30)
    >>> stc.pp.image_features(sdata, field_um=(100, 200))
    >>> sdata["table"].obsm["X_image"].shape
    (30, 126)

    Two encoders:

    >>> network = stc.pp.TimmEncoder("test_resnet", pretrained=False, size_px=32)
    >>> stc.pp.image_features(sdata, encoder=["texture", network], field_um=(100, 200))
    >>> sdata["table"].obsm["X_image"].shape
    (30, 318)
    """
    fields = parse_fields(field_um)
    sections = resolve_slides(
        data,
        table_key=table_key,
        image_key=image_key,
        um_per_px=um_per_px,
        spot_diameter_um=spot_diameter_um,
        library_key=library_key,
    )
    require_images(sections, fields)
    if not sections.table.var_names.is_unique:
        logger.warning(
            "The table has gene names that are not unique, which `stc.tl.fit` does not accept: call "
            "`adata.var_names_make_unique()`."
        )
    chosen = resolve_encoders(encoder, weights=weights, pretrained=pretrained, size_px=size_px)
    normalizer = resolve_stain(stain)
    specs = [FeatureSpec(item, fields, normalizer) for item in chosen]
    there = obsm_array(sections.table, key_added) if key_added in sections.table.obsm else None
    record = read_record(sections.table, "image_features", key_added)
    ours = record is not None and there is not None and is_ours(there, record)
    if there is not None and not ours and not overwrite:
        msg = (
            f"`obsm[{key_added!r}]` holds something that stcontrast did not write, or that was changed since: give "
            "another `key_added`, or `overwrite=True` to replace it."
        )
        raise ValueError(msg)
    features, record = encode_spots(sections, specs, there=there, record=record)
    sections.table.obsm[key_added] = features
    write_record(sections.table, "image_features", record, key_added)


def encode_spots(
    sections: Sections,
    specs: Sequence[FeatureSpec],
    *,
    there: Any = None,
    record: Mapping[str, Any] | None = None,
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Features of all slides, in the table's order, and the record of what made them.

    Parameters
    ----------
    sections
        The slides.
    specs
        What the blocks of features are made with.
    there, record
        Features (n_spots, n) in the slot, and their record: slides that have not changed are not encoded again.

    Returns
    -------
    Features (n_spots, n), block after block, and the record.
    """
    known = [] if there is None or record is None else split_blocks(np.asarray(there), record)
    parts, records = zip(*_encode_blocks(sections, specs, known), strict=True)
    return (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)), join_records(records)


def split_blocks(features: NDArray[Any], record: Mapping[str, Any]) -> list[tuple[NDArray[Any], dict[str, Any]]]:
    """The blocks of features (n_spots, n) in a slot, each with a record of its own.

    Empty where the features are not as many as the record says: the slot was changed after it was written.
    """
    if features.ndim != 2:
        return []
    shared = {key: value for key, value in record.items() if key != "blocks"}
    own: Mapping[str, Mapping[str, Any]] = record.get("blocks", {"0": {}})
    # a store gives the keys back in the order of the alphabet
    records: list[dict[str, Any]] = [{**shared, **own[key]} for key in sorted(own, key=int)]
    for item in records:
        # a record of before there were blocks
        item.setdefault("n_features", features.shape[1])
    widths = [int(item["n_features"]) for item in records]
    if sum(widths) != features.shape[1]:
        return []
    parts = np.split(features, np.cumsum(widths)[:-1], axis=1)
    return list(zip(parts, records, strict=True))


def is_ours(features: NDArray[Any], record: Mapping[str, Any]) -> bool:
    """Whether features (n_spots, n) in a slot are those that were written there with this record, or some rows of them."""
    blocks = split_blocks(features, record)
    return bool(blocks) and all(is_as_written(block, of_block) for block, of_block in blocks)


def join_records(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record of a slot from those of its blocks, which differ in their encoder alone."""
    if len(records) == 1:
        return records[0]
    shared = {key: value for key, value in records[0].items() if key not in OF_BLOCK}
    return shared | {
        "blocks": {str(i): {key: item[key] for key in OF_BLOCK if key in item} for i, item in enumerate(records)}
    }


def _encode_blocks(
    sections: Sections, specs: Sequence[FeatureSpec], known: Sequence[tuple[NDArray[Any], Mapping[str, Any]]]
) -> Iterator[tuple[NDArray[np.float32], dict[str, Any]]]:
    for i, spec in enumerate(specs):
        with of_part(str(spec.encoder.spec["name"])) if len(specs) > 1 else nullcontext():
            yield _encode_block(sections, spec, known, look=i == 0)


def _encode_block(
    sections: Sections, spec: FeatureSpec, known: Sequence[tuple[NDArray[Any], Mapping[str, Any]]], *, look: bool
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Features of all slides by one encoder, and their record; slides of a known block are taken from there."""
    reused: dict[str, NDArray[Any]] = {}
    for slide in sections.slides if spec.encoder.spec["kind"] not in UNKNOWN else ():
        for block, record in known:
            if slide.name not in reused and changed_since(slide, spec.record, block[slide.rows], record) is None:
                reused[slide.name] = block[slide.rows]
    to_do = [slide for slide in sections.slides if slide.name not in reused]
    for slide in to_do if look else ():
        warn_of_looks(slide)
    features: NDArray[np.float32] | None = None
    if reused:
        width = next(iter(reused.values())).shape[1]
        features = np.empty((sections.table.n_obs, width), dtype=np.float32)
        for slide in sections.slides:
            if slide.name in reused:
                features[slide.rows] = reused[slide.name]
        logger.info("Image features of %d slides are reused: nothing has changed.", len(reused))
    n_fields = len(spec.fields_um)
    total = sum(len(slide.rows) for slide in to_do) * n_fields
    first = f"features, slide {to_do[0].name}" if to_do else "features, which are there"
    with stage(first, total=total, unit="crops") as bar:
        for code, rows, part in encode_slides(to_do, spec):
            bar.rename(f"features, slide {to_do[code].name}")
            if features is None:
                features = np.empty((sections.table.n_obs, part.shape[1]), dtype=np.float32)
            if part.shape[1] != features.shape[1]:
                msg = (
                    f"The encoder {spec.encoder.spec['name']!r} returned {part.shape[1] // n_fields} features for slide "
                    f"{to_do[code].name!r}, {features.shape[1] // n_fields} before."
                )
                raise ValueError(msg)
            features[to_do[code].rows[rows]] = part
            bar.update(len(rows) * n_fields)
    if features is None:  # cannot happen: reading refuses a table without spots
        features = np.empty((0, 0), dtype=np.float32)
    return features, record_of(sections, spec, features)


def record_of(sections: Sections, spec: FeatureSpec, features: NDArray[np.float32]) -> dict[str, Any]:
    """What made a block of features (n_spots, n_features) of all slides, and what tells that it still fits them."""
    evidence = {slide.name: evidence_of(slide, spec.record, features[slide.rows]) for slide in sections.slides}
    by_slide = {key: {name: of_slide[key] for name, of_slide in evidence.items()} for key in OF_SLIDE}
    return spec.record | {"n_features": features.shape[1], **by_slide}


def encode_slides(
    slides: Sequence[Slide], spec: FeatureSpec
) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.float32]]]:
    """Encode the spots of slides, on the workers of a running dask client if there is one.

    Parameters
    ----------
    slides
        Slides with an image and known µm per pixel.
    spec
        What the features are made with.

    Yields
    ------
    Position of a slide, of some of its spots (n,), and their features (n, n_fields × n_features).
    """
    for slide in slides:
        _warn_if_enlarged(slide, spec)
    client = running_client()
    if client is not None:
        yield from cluster.encode_on_cluster(client, slides, spec)
        return
    for code, slide in enumerate(slides):
        if slide.image is None or slide.um_per_px is None:  # cannot happen: `require_images` refuses such slides
            continue
        for rows, features in encode_centers(slide.image, slide.centers, slide.um_per_px, spec):
            yield code, rows, features


def parse_fields(field_um: float | Sequence[float]) -> tuple[float, ...]:
    """One or several fields of view in µm, checked."""
    check_arguments({"field_um": field_um})
    return tuple(float(value) for value in np.atleast_1d(field_um))


def _warn_if_enlarged(slide: Slide, spec: FeatureSpec) -> None:
    size_px = spec.encoder.size_px
    for field, side in zip(spec.fields_um, spec.sides(slide.um_per_px or np.inf), strict=True):
        if side < size_px / 4:
            logger.warning(
                "Slide %s: a field of %g µm is only %.0f pixels wide, enlarged to %d.", slide.name, field, side, size_px
            )
